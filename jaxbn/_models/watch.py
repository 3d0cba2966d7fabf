"""Watching the calls of a model's layers from outside: one way for each framework, with nothing patched.

A watcher is a function that takes a `Call`, runs it and returns its output, or a different one. It is called while a
program is traced, inside whatever transformation the layer is in (scan, vmap, remat, jit), once for each trace.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from jaxbn._models.tree import Path


class Call(NamedTuple):
    """One call of a method of a layer."""

    layer: Any
    """the module"""
    path: Path
    """that of the layer; inside a stack, that of the stack; for a shared layer, the first"""
    method: str
    """'__call__', or the name of another method (linen only)"""
    owner: type
    """the class that defines what runs: if a subclass calls `super()`, first the subclass, then the class above it"""
    run: Callable[..., Any]
    """the method itself, a function of `args` and `kwargs`"""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outermost: bool
    """whether the method was called from outside, and not through `super()`"""


Watcher = Callable[[Call], Any]


@contextlib.contextmanager
def watch_linen(watch: Watcher) -> Iterator[None]:
    """Inside this context, the calls of all methods of all linen modules are watched."""
    from flax import linen as nn

    def intercept(run, args, kwargs, context):
        method = context.method_name
        function = getattr(context.orig_method, "func", None)
        # A function that is not a method of the class is Flax's own: the setup, or what nn.scan was given.
        owners = [c for c in type(context.module).__mro__ if method in vars(c)]
        for owner in owners:
            own = vars(owner)[method]
            if function in (own, getattr(own, "__wrapped__", own)):
                outermost = owner is owners[0]
                return watch(Call(context.module, context.module.path, method, owner, run, args, kwargs, outermost))
        return run(*args, **kwargs)

    with nn.intercept_methods(intercept):
        yield


def watch_nnx(model: Any, watch: Watcher, bases: Callable[[Path, Any], type | None]) -> Any:
    """A copy of an nnx model whose calls are watched, even after it has gone through `nnx.split` and `nnx.merge`.

    Args:
      model: an nnx module.
      watch: gets a `Call` for each `__call__` of a layer and, if there is one, of its base class.
      bases: a function of (path, module) that returns a class of which the module is an instance, whose own `__call__`
        is watched too (the module's own class if there is nothing else to watch), or None not to watch the module.
    """
    from flax import nnx

    copy = nnx.clone(model)
    if any(getattr(v, "ref", False) for _, v in nnx.iter_graph(copy) if isinstance(v, nnx.Variable)):
        copy = nnx.with_vars(copy, ref=False)  # references belong to the model, and jit cannot return them
    watched = _Watched(watch)
    for path, module in modules_of(copy).items():
        base = bases(path, module)
        if base is not None and hasattr(module, "__call__"):  # noqa: B004 (`callable` would narrow its type)
            module._jaxbn_watch = _Place(path, watched)
            object.__setattr__(module, "__class__", _watched_class(type(module), base))
    return copy


def modules_of(model: Any) -> dict[Path, Any]:
    """The modules of an nnx model by path, each listed once."""
    from flax import nnx

    modules: Any = nnx.iter_modules(model)
    return dict(modules)


class _Watched:
    """Holds the watcher of one copy. Each has an identity of its own, so that no trace of another copy is reused."""

    def __init__(self, watch: Watcher) -> None:
        self.watch = watch


class _Place(NamedTuple):
    """The static attribute of a watched module. Flax keeps it when it splits and merges."""

    path: Path
    watched: _Watched


@functools.cache
def _watched_class(cls: type, base: type) -> type:
    """A subclass whose calls are watched, along with those of `base` that it makes through `super()`."""
    above: tuple[type, ...] = (cls,) if cls is base else (cls, _watched_class(base, base))

    def call(self, *args, **kwargs):
        path, watched = self._jaxbn_watch
        # Not `cls.__call__`: the watched class of the base comes between `cls` and that base.
        run = super(watched_class, self).__call__
        outermost = type(self) is watched_class
        return watched.watch(Call(self, path, "__call__", cls, run, args, kwargs, outermost))

    watched_class = type(cls.__name__, above, {"__call__": call, "__module__": cls.__module__})
    return watched_class
