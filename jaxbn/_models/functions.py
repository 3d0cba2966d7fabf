"""A Flax model as a function that also returns what each of its layers returned, for `jaxbn.testing`."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
from jax.extend.core import get_opaque_trace_state

from jaxbn._tools.optional import load


class Network(NamedTuple):
    """A model as a function."""

    params: Any
    apply: Callable
    """(params, *inputs) -> output, state written, {name of a layer: its output}"""
    order: list[str]
    """names of the layers in the order in which they return, filled when `apply` is traced"""


def as_function(model, variables, inputs, options) -> Network:
    """The model in training, with `options` for its call.

    Raises:
      TypeError: it is neither a module of linen nor of nnx.
    """
    linen, nnx = load("flax.linen", "jaxbn.testing"), load("flax.nnx", "jaxbn.testing")
    if isinstance(model, linen.Module):
        return _of_linen(linen, model, variables, inputs, options)
    if isinstance(model, nnx.Module):
        return _of_nnx(nnx, model, options)
    raise TypeError(f"`model` must be a flax.linen.Module or a flax.nnx.Module, got {type(model).__name__}.")


def _of_linen(linen, model, variables, inputs, options) -> Network:
    if variables is None:
        variables = jax.jit(functools.partial(model.init, **options))(jax.random.key(0), *inputs)
    variables = dict(variables)
    params = variables.pop("params", {})
    order = []

    def apply(params, *inputs):
        calls = _Calls(type(model).__name__, order)

        def record(call, args, kwargs, context):
            output = call(*args, **kwargs)
            if context.method_name == "__call__":
                calls.add(context.module.path, output)
            return output

        with linen.intercept_methods(record):
            output, state = model.apply(
                {"params": params, **variables}, *inputs, **options, mutable=linen.DenyList("params")
            )
        # The collection goes last: names start with that of the layer.
        state = {f"{name_of(path[1:])} ({name_of(path[:1])})": v for path, v in jax.tree.leaves_with_path(state)}
        return output, state, calls.outputs

    return Network(params, apply, order)


def _of_nnx(nnx, model, options) -> Network:
    graphdef, params, random, others = nnx.split(model, nnx.Param, nnx.RngState, ...)
    order = []

    def apply(params, *inputs):
        model = nnx.merge(graphdef, params, random, others, copy=True)
        calls = _Calls(type(model).__name__, order)
        paths = {id(module): path for path, module in nnx.iter_modules(model)}
        classes = {type(module) for _, module in nnx.iter_modules(model) if callable(module)}

        def recorded(call):
            @functools.wraps(call)
            def wrapper(self, *args, **kwargs):
                output = call(self, *args, **kwargs)
                if id(self) in paths:
                    calls.add(paths[id(self)], output)
                return output

            return wrapper

        with contextlib.ExitStack() as patches:
            for cls in classes:
                patches.enter_context(mock.patch.object(cls, "__call__", recorded(cls.__call__)))
            output = model(*inputs, **options)
        return output, nnx.split(model, nnx.Param, nnx.RngState, ...)[3], calls.outputs

    return Network(params, apply, order)


class _Calls:
    """What the layers of one call returned, by name."""

    def __init__(self, root: str, order: list[str]):
        self.root, self.order, self.outputs, self.seen = root, order, {}, {}
        self.trace = get_opaque_trace_state(convention="flax")

    def add(self, path, output) -> None:
        name = "/".join(map(str, path)) or self.root
        self.seen[name] = self.seen.get(name, 0) + 1
        name += f", call {self.seen[name]}" if self.seen[name] > 1 else ""
        if name not in self.order:
            self.order.append(name)
        # Inside a scan or remat of the model the output belongs to an inner trace and cannot leave it.
        if get_opaque_trace_state(convention="flax") == self.trace:
            self.outputs[name] = output


def name_of(path) -> str:
    """The path of a leaf of a tree, as 'Block_0/kernel'."""
    keys = [getattr(k, "key", getattr(k, "idx", None)) for k in path]
    return "/".join(str(k) for k in keys if k is not None)
