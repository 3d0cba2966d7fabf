"""Running a model that names the mapped axes of its training where they do not exist."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxbn._models.watch import Call
from jaxbn._sync.mapped_axes import stand_in, standing_in


def with_axes_bound(f: Callable[[], Any]) -> Any:
    """`f()`, a pytree of arrays, with each axis name that it needs and that is not bound as an axis of size 1.

    `f` is called again for each such name. Groups of the indices of such an axis are one group.
    """
    names: list[str] = []
    while True:
        try:
            return _under(names, f)
        except Exception as error:
            name = _unbound_name(error)
            if name is None or name in names:
                raise
            names.append(name)


def _under(names: list[str], f: Callable[[], Any]) -> Any:
    if not names:
        return f()
    *outer, name = names

    def run(_):
        with standing_in(name):
            return _under(outer, f)

    return jax.tree.map(lambda v: v[0], jax.vmap(run, axis_name=name)(jnp.zeros(1)))


def run_layer(call: Call) -> Any:
    """Runs the call of a batch norm. Flax's would hand its groups to JAX, which takes none for an axis bound here."""
    layer, groups, names = call.layer, call.layer.axis_index_groups, axis_names(call.layer)
    if groups is None or not stand_in(names):
        return call.run(*call.args, **call.kwargs)
    # The layer belongs to the trace and not to the user; linen forbids an assignment while it runs.
    object.__setattr__(layer, "axis_index_groups", None)
    try:
        return call.run(*call.args, **call.kwargs)
    finally:
        object.__setattr__(layer, "axis_index_groups", groups)


def axis_names(layer: Any) -> tuple[str, ...]:
    """The mapped axes that a batch norm names."""
    names = layer.axis_name
    return () if names is None else (names,) if isinstance(names, str) or not isinstance(names, Iterable) else (*names,)


def _unbound_name(error: BaseException | None) -> str | None:
    """The axis name that the error, or the one it was raised from, says is not bound."""
    while error is not None and not isinstance(error, NameError):
        error = error.__cause__ or error.__context__
    found = re.search(r"unbound axis name: (.+?)(\. |$)", str(error))
    return found and found[1]
