"""What JAX calls differently in the versions that jaxbn runs on, the newest name first."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend import core


def varying_axes(x: jax.Array) -> frozenset[str]:
    """The axes of the `jax.shard_map` around us along which `x` may differ between devices; empty without its check."""
    aval = jax.typeof(x)
    if hasattr(aval, "manual_axis_type"):
        return frozenset(aval.manual_axis_type.varying)
    return frozenset(aval.vma)  # jax 0.8 and 0.9


def as_varying(x: jax.Array, names: tuple[str, ...]) -> jax.Array:
    """Marks `x` as different between the devices along `names`, along which it was the same."""
    if hasattr(lax, "pcast"):
        return lax.pcast(x, names, to="varying")
    return lax.pvary(x, names)  # jax 0.8.1  # pyright: ignore[reportAttributeAccessIssue]


def jaxprs_in_params(params: Mapping[str, Any]) -> Iterable[Any]:
    """The programs inside an equation."""
    if hasattr(core, "jaxprs_in_params"):
        return core.jaxprs_in_params(dict(params))
    return jax.core.jaxprs_in_params(params)  # jax 0.8  # pyright: ignore[reportAttributeAccessIssue]


def evaluate(eqn: core.JaxprEqn, inputs: Sequence[Any]) -> list[Any]:
    """The outputs of an equation."""
    params: Any = eqn.primitive.get_bind_params(eqn.params)
    # jax 0.8 gives functions and parameters apart.
    functions, params = ((), params) if isinstance(params, dict) else params
    result = eqn.primitive.bind(*functions, *inputs, **params)
    return list(result) if eqn.primitive.multiple_results else [result]


def inputs_of_scan(eqn: core.JaxprEqn, inputs: Sequence[Any]) -> list[list[Any]]:
    """The constants of a scan, its carry, and the arrays along which it runs."""
    if "ft_in" in eqn.params:
        return [list(part) for part in eqn.params["ft_in"].update(inputs).unpack()]
    consts = eqn.params["num_consts"]  # jax 0.10
    carry = consts + eqn.params["num_carry"]
    return [list(inputs[:consts]), list(inputs[consts:carry]), list(inputs[carry:])]
