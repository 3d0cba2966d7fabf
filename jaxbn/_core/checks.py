"""Checks of what the user passes, made once at the public boundary: the rule, then what came."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxbn._core.axes import feature_shape


def describe(x) -> str:
    """dtype and shape, as errors show them."""
    return f"{jnp.result_type(x).name}{list(jnp.shape(x))}"


def check_input(x, name: str = "x") -> jax.Array:
    """`x` as an array, floating or complex, with at least one axis."""
    if not isinstance(x, jax.Array | np.ndarray | np.generic | list | tuple | float | complex | int):
        raise TypeError(f"`{name}` must be an array, got {type(x).__name__}.")
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(f"`{name}` must be floating or complex, got {describe(x)}; x.astype(jnp.float32) converts it.")
    if x.ndim < 1:
        raise ValueError(f"`{name}` must have at least one axis, the feature axis, got {describe(x)}.")
    return x


def check_vectors(vectors: Mapping[str, Any], owner: str, x: jax.Array, axes: tuple[int, ...]) -> None:
    """Each [C] vector of `owner` (params or batch_stats) has the feature shape of `x`."""
    shape = feature_shape(x, axes)
    for name, value in vectors.items():
        if jnp.shape(value) != shape:
            raise ValueError(
                f"`{owner}[{name!r}]` must have the feature shape of x, {list(shape)} (axis {axes} of {describe(x)}), "
                f"got {describe(value)}."
            )


def check_params(params, x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array | None, jax.Array | None]:
    """scale and bias, None where absent."""
    if not isinstance(params, Mapping):
        raise TypeError(f"`params` must be a dict with 'scale' and 'bias' (or without), got {type(params).__name__}.")
    unknown = sorted(set(params) - {"scale", "bias"})
    if unknown:
        raise ValueError(f"`params` may hold 'scale' and 'bias' and nothing else, got {unknown}.")
    given = {k: jnp.asarray(v) for k, v in params.items() if v is not None}
    check_vectors(given, "params", x, axes)
    return given.get("scale"), given.get("bias")


def check_batch_stats(batch_stats, x: jax.Array | None = None, axes: tuple[int, ...] = ()) -> None:
    """batch_stats is a mapping with 'mean' and 'var', perhaps a 'count', of the right shapes."""
    if not isinstance(batch_stats, Mapping):
        raise TypeError(f"`batch_stats` must be a dict with 'mean' and 'var', got {type(batch_stats).__name__}.")
    missing = sorted({"mean", "var"} - set(batch_stats))
    unknown = sorted(set(batch_stats) - {"mean", "var", "count"})
    if missing or unknown:
        raise ValueError(
            "`batch_stats` must hold 'mean' and 'var' (and 'count' where the average needs it), got "
            f"{sorted(batch_stats)}: missing {missing}, unknown {unknown}."
        )
    vectors = {k: batch_stats[k] for k in ("mean", "var")}
    if x is not None:
        check_vectors(vectors, "batch_stats", x, axes)
        if jnp.iscomplexobj(x) and not jnp.iscomplexobj(batch_stats["mean"]):
            raise TypeError(
                f"`batch_stats['mean']` must be complex for a complex x ({describe(x)}), got "
                f"{describe(batch_stats['mean'])}; jaxbn.init(..., param_dtype=jnp.complex64) makes it so."
            )
    elif jnp.shape(vectors["mean"]) != jnp.shape(vectors["var"]):
        raise ValueError(
            f"`batch_stats` must have mean and var of one shape, got {describe(vectors['mean'])} and "
            f"{describe(vectors['var'])}."
        )
    if "count" in batch_stats and jnp.shape(batch_stats["count"]) != ():
        raise ValueError(f"`batch_stats['count']` must be a scalar, got {describe(batch_stats['count'])}.")


def check_mask(mask, x: jax.Array) -> jax.Array | None:
    """The mask as an array that broadcasts to `x`: boolean, or real weights."""
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    if jnp.iscomplexobj(mask):
        raise TypeError(f"`mask` must be boolean or real, non-negative weights, got {describe(mask)}.")
    trailing = x.shape[x.ndim - mask.ndim :] if mask.ndim <= x.ndim else None
    if trailing is None or any(m not in (1, n) for m, n in zip(mask.shape, trailing, strict=True)):
        raise ValueError(f"`mask` must broadcast to x, {describe(x)}, got {describe(mask)}.")
    return mask


def check_moments(moments, batch_stats) -> None:
    """Moments whose mean and var are those of `batch_stats`, channel by channel."""
    if not (isinstance(moments, tuple) and len(moments) == 3):
        raise TypeError(f"`moments` must be jaxbn.Moments(count, mean, var), got {type(moments).__name__}.")
    shape = jnp.shape(batch_stats["mean"])
    count, mean, var = moments
    if jnp.shape(mean) != shape or jnp.shape(var) != shape or jnp.shape(count) not in ((), shape):
        raise ValueError(
            f"`moments` must have mean and var of shape {list(shape)}, as batch_stats, and a count of shape [] or "
            f"{list(shape)}, got {describe(count)}, {describe(mean)} and {describe(var)}."
        )


def check_epsilon(epsilon) -> float:
    """A positive number, static."""
    if isinstance(epsilon, Tracer) or not isinstance(epsilon, float | int | np.generic | np.ndarray | jax.Array):
        raise TypeError(f"`epsilon` must be a number known at trace time, got {epsilon!r}.")
    epsilon = float(epsilon)
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise ValueError(f"`epsilon` must be positive and finite, got {epsilon!r}.")
    return epsilon


def check_momentum(momentum, batch_stats) -> None:
    """None, a callable of the count, a traced scalar, or a number in [0, 1]."""
    if momentum is None or callable(momentum):
        if "count" not in batch_stats:
            raise ValueError(
                "`momentum` None or a callable of the count needs batch_stats['count']; "
                "jaxbn.init(..., use_count=True) makes one."
            )
        return
    if isinstance(momentum, Tracer):
        if momentum.shape != () or not jnp.issubdtype(momentum.dtype, jnp.floating):
            raise ValueError(f"`momentum` must be a floating scalar, got {describe(momentum)}.")
        return
    if isinstance(momentum, bool) or not isinstance(momentum, float | int | np.generic | np.ndarray | jax.Array):
        raise TypeError(f"`momentum` must be a number, None or a callable of the count, got {momentum!r}.")
    if np.shape(momentum) != ():
        raise ValueError(f"`momentum` must be a scalar, got {describe(momentum)}.")
    if not 0 <= float(momentum) <= 1:
        raise ValueError(f"`momentum`, the weight of the old value, must be in [0, 1], got {float(momentum)!r}.")


def check_output_dtype(dtype, *inputs) -> jnp.dtype:
    """The dtype of y: that of x unless `dtype` says otherwise; complex where anything that enters is."""
    out = jnp.dtype(inputs[0].dtype if dtype is None else dtype)
    if not jnp.issubdtype(out, jnp.inexact):
        raise TypeError(f"`dtype` must be floating or complex, got {out.name}.")
    if any(jnp.iscomplexobj(i) for i in inputs if i is not None) and not jnp.issubdtype(out, jnp.complexfloating):
        raise TypeError(f"`dtype` must be complex where x, scale, bias or mean is, got {out.name}.")
    return out


def check_residual(residual, x: jax.Array, dtype: jnp.dtype) -> jax.Array | None:
    """The residual has the shape of x and the dtype of y."""
    if residual is None:
        return None
    if jnp.shape(residual) != x.shape or jnp.result_type(residual) != dtype:
        raise ValueError(
            f"`residual` must be of the shape and dtype of y, {dtype.name}{list(x.shape)}, got {describe(residual)}."
        )
    return jnp.asarray(residual)


def check_static_bool(value, name: str) -> None:
    """A Python bool: it decides which program is traced."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"`{name}` must be True or False, known at trace time, got {value!r}.")


def check_virtual_batch_size(size, names: tuple[str, ...], x: jax.Array, axes: tuple[int, ...]) -> int | None:
    """A divisor of the number of examples, without a mapped axis."""
    if size is None:
        return None
    if names:
        raise ValueError(
            f"`virtual_batch_size` and `axis_name` exclude each other: the one splits the batch, the other joins it; "
            f"got {size!r} and {names!r}."
        )
    if isinstance(size, bool) or not hasattr(size, "__index__"):
        raise TypeError(f"`virtual_batch_size` must be an integer or None, got {size!r}.")
    examples = [n for a, n in enumerate(x.shape) if a not in axes][:1]
    if not examples:
        raise ValueError(
            f"`virtual_batch_size` needs an axis that is not a feature axis, got x {describe(x)}, axis {axes}."
        )
    if size < 1 or examples[0] % size:
        raise ValueError(
            f"`virtual_batch_size` must divide the number of examples, {examples[0]} in {describe(x)}, got {size}."
        )
    return int(size)
