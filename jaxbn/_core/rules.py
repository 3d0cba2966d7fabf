"""The rules of batch norm for what a user passes, checked once at the public boundary: what has to fit to what."""

import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxbn._core.axes import feature_shape
from jaxbn._core.checks import (
    check_array,
    check_dtype,
    check_integer,
    check_number,
    check_schedule,
    check_static_bool,
    describe,
    is_integer,
    values_of,
)
from jaxbn._core.numbers import accumulator, real_dtype
from jaxbn._core.types import Moments


def check_input(x, name: str = "x") -> jax.Array:
    """`x` as an array, floating or complex, with at least one axis."""
    x = check_array(x, name)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(f"`{name}` must be floating or complex, got {describe(x)}; x.astype(jnp.float32) converts it.")
    if x.ndim < 1:
        raise ValueError(f"`{name}` must have at least one axis, the feature axis, got {describe(x)}.")
    return x


def check_vectors(
    vectors: Mapping[str, Any], owner: str, x: jax.Array, axes: tuple[int, ...], num_domains: int | None = None
) -> None:
    """Each vector [C] of `owner` (params or batch_stats) has the feature shape of `x`, or is [D, C] for D domains."""
    shape = feature_shape(x, axes)
    for name, value in vectors.items():
        if jnp.shape(value) not in (shape, shape if num_domains is None else (num_domains, *shape)):
            what = f"{owner}[{name!r}]" if owner else name
            hint = "; with statistics per domain, say which in `domain`" if jnp.shape(value)[1:] == shape else ""
            raise ValueError(
                f"`{what}` must have the feature shape of x, {list(shape)} (axis {axes} of {describe(x)}), "
                f"got {describe(value)}{hint}."
            )


def check_params(
    params, x: jax.Array, axes: tuple[int, ...], num_domains: int | None = None
) -> tuple[jax.Array | None, jax.Array | None]:
    """scale and bias, None where absent; [C], or [D, C] if there are domains."""
    if not isinstance(params, Mapping):
        raise TypeError(f"`params` must be a dict with 'scale' and 'bias' (or without), got {type(params).__name__}.")
    unknown = sorted(map(str, set(params) - {"scale", "bias"}))
    if unknown:
        raise ValueError(f"`params` may hold 'scale' and 'bias' and nothing else, got {unknown}.")
    given = {k: check_array(v, f"params[{k!r}]") for k, v in params.items() if v is not None}
    for k, v in given.items():
        if not jnp.issubdtype(v.dtype, jnp.inexact):
            raise TypeError(f"`params[{k!r}]` must be floating or complex, got {describe(v)}.")
    check_vectors(given, "params", x, axes, num_domains)
    return given.get("scale"), given.get("bias")


def check_batch_stats(
    batch_stats, x: jax.Array | None = None, axes: tuple[int, ...] = (), *, domains: bool = False
) -> dict[str, jax.Array]:
    """batch_stats as a dict of arrays: 'mean' and 'var', perhaps a 'count', of one shape, that of the features of x.

    With domains they have one row for each.
    """
    if not isinstance(batch_stats, Mapping):
        raise TypeError(f"`batch_stats` must be a dict with 'mean' and 'var', got {type(batch_stats).__name__}.")
    missing = sorted({"mean", "var"} - set(batch_stats))
    unknown = sorted(map(str, set(batch_stats) - {"mean", "var", "count"}))
    if missing or unknown:
        raise ValueError(
            "`batch_stats` must hold 'mean' and 'var' (and 'count' where the average needs it), got "
            f"{sorted(map(str, batch_stats))}: missing {missing}, unknown {unknown}."
        )
    arrays = {k: check_array(v, f"batch_stats[{k!r}]") for k, v in batch_stats.items()}
    mean, var = arrays["mean"], arrays["var"]
    if not jnp.issubdtype(mean.dtype, jnp.inexact) or not jnp.issubdtype(var.dtype, jnp.floating):
        raise TypeError(f"`batch_stats` must have a floating mean and var, got {describe(mean)} and {describe(var)}.")
    if x is not None and domains:
        shape = feature_shape(x, axes)
        if mean.shape != var.shape or mean.ndim != len(shape) + 1 or mean.shape[1:] != shape or not len(mean):
            rows = f"[D, {', '.join(map(str, shape))}] (axis {axes} of {describe(x)}), with D of at least 1"
            raise ValueError(
                "`batch_stats` must have a row for each domain where there is a `domain`, of the feature shape of x: "
                f"{rows}, got {describe(mean)} and {describe(var)}; jaxbn.init(..., num_domains=D) makes such, "
                "jaxbn.add_domains out of one set."
            )
    elif x is not None:
        check_vectors({"mean": mean, "var": var}, "batch_stats", x, axes)
    if x is not None:
        if jnp.iscomplexobj(x) and not jnp.iscomplexobj(mean):
            raise TypeError(
                f"`batch_stats['mean']` must be complex for a complex x ({describe(x)}), got {describe(mean)}; "
                "jaxbn.init(..., param_dtype=jnp.complex64) makes it so."
            )
    elif mean.shape != var.shape:
        raise ValueError(
            f"`batch_stats` must have mean and var of one shape, got {describe(mean)} and {describe(var)}."
        )
    count = arrays.get("count")
    of_old = not domains and count is not None and count.shape == ()
    if count is not None and not ((of_old or count.shape == mean.shape) and jnp.issubdtype(count.dtype, jnp.integer)):
        raise ValueError(
            f"`batch_stats['count']`, the updates of each channel, must be integers of shape {list(mean.shape)}"
            f"{'' if domains else ', or [] for all together'}, got {describe(count)}."
        )
    return arrays


def warn_of_half_precision(batch_stats: Mapping[str, jax.Array]) -> None:
    """Says which running statistics are too coarse to train."""
    for name in ("mean", "var"):
        if jnp.finfo(batch_stats[name].dtype).bits < 32:
            warnings.warn(
                f"`batch_stats[{name!r}]` is {describe(batch_stats[name])}: running statistics below float32 cannot "
                "move by 1 % and stick far from their value. Keep them in float32, in a model cast as a whole too.",
                stacklevel=4,
            )


def check_statistics(mean, var, x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """A mean and a variance [C] to normalize x with."""
    arrays = {"mean": check_array(mean, "mean"), "var": check_array(var, "var")}
    if not all(jnp.issubdtype(v.dtype, jnp.inexact) for v in arrays.values()) or jnp.iscomplexobj(arrays["var"]):
        raise TypeError(
            f"`mean` must be floating or complex and `var` floating, got {describe(mean)} and {describe(var)}."
        )
    check_vectors(arrays, "", x, axes)
    return arrays["mean"], arrays["var"]


def check_vector(name: str, vector, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """A floating vector [C] of that name."""
    vector = check_array(vector, name)
    if not jnp.issubdtype(vector.dtype, jnp.inexact):
        raise TypeError(f"`{name}` must be floating, got {describe(vector)}.")
    check_vectors({name: vector}, "", x, axes)
    return vector


def check_mask(mask, x: jax.Array) -> jax.Array | None:
    """The mask as an array that broadcasts to `x`: boolean, or real weights."""
    if mask is None:
        return None
    given, mask = mask, check_array(mask, "mask")
    if jnp.iscomplexobj(mask):
        raise TypeError(f"`mask` must be boolean or real, non-negative weights, got {describe(mask)}.")
    trailing = x.shape[x.ndim - mask.ndim :] if mask.ndim <= x.ndim else None
    if trailing is None or any(not (m == 1 or m == n) for m, n in zip(mask.shape, trailing, strict=True)):
        raise ValueError(f"`mask` must broadcast to x, {describe(x)}, got {describe(mask)}.")
    weights = values_of(mask, given)
    if mask.dtype != bool and not np.all((weights >= 0) & np.isfinite(weights)):
        raise ValueError(
            f"`mask` must hold non-negative weights, got {describe(mask)} with some that are not, or are not finite."
        )
    return mask if mask.dtype == bool else mask.astype(real_dtype(accumulator(x.dtype)))


def check_moments(moments, batch_stats) -> Moments:
    """Moments whose mean and var are those of `batch_stats`, channel by channel."""
    if not (isinstance(moments, tuple) and len(moments) == 3):
        raise TypeError(f"`moments` must be jaxbn.Moments(count, mean, var), got {type(moments).__name__}.")
    shape = jnp.shape(batch_stats["mean"])
    names = ("count", "mean", "var")
    count, mean, var = (check_array(v, f"moments.{name}") for name, v in zip(names, moments, strict=True))
    if mean.shape != shape or var.shape != shape or count.shape not in ((), shape):
        raise ValueError(
            f"`moments` must have mean and var of shape {list(shape)}, as batch_stats, and a count of shape [] or "
            f"{list(shape)}, got {describe(count)}, {describe(mean)} and {describe(var)}."
        )
    for name, value, given in (("count", count, moments[0]), ("var", var, moments[2])):
        if jnp.iscomplexobj(value):
            raise TypeError(f"`moments.{name}` must be real, got {describe(value)}.")
        if np.any(values_of(value, given) < 0):
            raise ValueError(f"`moments.{name}` must not be negative, got {describe(value)} with values below 0.")
    if not jnp.issubdtype(mean.dtype, jnp.inexact) or not jnp.issubdtype(var.dtype, jnp.floating):
        raise TypeError(f"`moments` must have a floating mean and var, got {describe(mean)} and {describe(var)}.")
    return Moments(count if jnp.issubdtype(count.dtype, jnp.floating) else count.astype(var.dtype), mean, var)


def check_momentum(momentum, batch_stats) -> Any:
    """None, a callable of the count, an array [] (a traced one too), or a number in [0, 1]."""
    if momentum is None or callable(momentum):
        if "count" not in batch_stats:
            raise ValueError(
                "`momentum` None or a callable of the count needs batch_stats['count']; "
                f"jaxbn.init(..., use_count=True) makes one. Got {sorted(batch_stats)}."
            )
        if momentum is not None:
            check_schedule(momentum, *MOMENTUM)
        return momentum
    if isinstance(momentum, Tracer):
        if momentum.shape != () or not jnp.issubdtype(momentum.dtype, jnp.floating):
            raise ValueError(f"`momentum` must be a floating scalar, got {describe(momentum)}.")
        return momentum
    number = check_number(momentum, "momentum") if not isinstance(momentum, str) else momentum
    if isinstance(number, str):
        raise TypeError(f"`momentum` must be a number, None or a callable of the count, got {momentum!r}.")
    if not 0 <= number <= 1:
        raise ValueError(f"`momentum`, the weight of the old value, must be in [0, 1], got {number!r}.")
    return momentum if isinstance(momentum, jax.Array) and jnp.issubdtype(momentum.dtype, jnp.floating) else number


MOMENTUM = (
    "momentum",
    "`momentum`, the weight of the old value, must be in [0, 1], a number or a callable that gives one",
    0.0,
    1.0,
)


def check_output_dtype(dtype, *inputs) -> jnp.dtype:
    """The dtype of y: that of x unless `dtype` says otherwise; complex where anything that enters is."""
    check_dtype(dtype, "dtype")
    out = jnp.dtype(inputs[0].dtype if dtype is None else dtype)
    if any(jnp.iscomplexobj(i) for i in inputs if i is not None) and not jnp.issubdtype(out, jnp.complexfloating):
        raise TypeError(f"`dtype` must be complex where x, scale, bias or mean is, got {out.name}.")
    return out


def check_residual(residual, x: jax.Array, dtype: jnp.dtype) -> jax.Array | None:
    """The residual has the shape of x and the dtype of y."""
    if residual is None:
        return None
    residual = check_array(residual, "residual")
    if residual.shape != x.shape or residual.dtype != dtype:
        raise ValueError(
            f"`residual` must be of the shape and dtype of y, {dtype.name}{list(x.shape)}, got {describe(residual)}."
        )
    return residual


def check_moments_so_far(mean: jax.Array, batch_stats: Mapping[str, jax.Array]) -> None:
    """The moments of the microbatches before this one are of the shape of the statistics."""
    if mean.shape != batch_stats["mean"].shape:
        raise ValueError(
            f"`batch_moments` must have the shape of `batch_stats`, {list(batch_stats['mean'].shape)}, got "
            f"{list(mean.shape)}; `zero_moments` begins them anew."
        )


def check_module(module) -> None:
    """The fields of a module that Flax uses before the core sees them."""
    for name in ("use_bias", "use_scale", "force_float32_reductions"):
        if hasattr(module, name):
            check_static_bool(getattr(module, name), name)
    for name in ("dtype", "param_dtype"):
        check_dtype(getattr(module, name), name)
    check_num_domains(module.num_domains, module.affine_per_domain)
    if callable(module.momentum):
        check_schedule(module.momentum, *MOMENTUM)


def check_domain_of_module(module, domain) -> None:
    """The call names a domain if the module has several, and only then."""
    if (domain is None) != (module.num_domains is None):
        raise ValueError(
            f"`domain` is given in the call if the module has `num_domains`, and only then, got {domain!r} for "
            f"num_domains={module.num_domains!r}."
        )


def check_num_domains(num_domains, affine_per_domain) -> None:
    """A positive number of domains that have statistics of their own, or None; and whether scale and bias do too."""
    if num_domains is not None:
        check_integer(num_domains, "num_domains", 1)
    check_static_bool(affine_per_domain, "affine_per_domain")
    if affine_per_domain and num_domains is None:
        raise ValueError("`affine_per_domain` needs `num_domains`, got None.")


def check_domain(domain, num_domains: int | None, x: jax.Array, axes: tuple[int, ...]) -> jax.Array | None:
    """An index [] of a domain, or [K] of those of K equal parts of the examples; in range, as far as it is known."""
    if domain is None or num_domains is None:
        return None
    rule = (
        f"`domain` must be an integer in [0, {num_domains}), an integer array [], or a tuple of different integers, "
        "known at trace time"
    )
    if not isinstance(domain, tuple | list):
        index = _check_index(domain, rule)
        known = values_of(index).reshape(-1) if isinstance(index, jax.Array) else [index]
        if any(not 0 <= d < num_domains for d in known):
            raise ValueError(f"{rule}, got {domain!r}.")
        if not isinstance(index, jax.Array):
            return jax.device_put(np.int32(index))
        if index.dtype.itemsize > 4:  # as int32, 2^32 would be 0
            index = jnp.where((index >= 0) & (index < num_domains), index, jnp.full_like(index, num_domains))
        return index.astype(jnp.int32)
    parts = [_check_index(d, rule) for d in domain]
    if any(isinstance(d, jax.Array) for d in parts):
        raise TypeError(f"{rule}, got {domain!r}.")
    if not parts or len(set(parts)) < len(parts) or not all(0 <= d < num_domains for d in parts):
        raise ValueError(f"{rule}, got {domain!r}.")
    examples = _number_of_examples("`domain`, for parts of the batch,", x, axes)
    if examples % len(parts):
        raise ValueError(
            f"`domain` must divide the number of examples, {examples} in {describe(x)}, into as many equal parts as it "
            f"names, got {domain!r}."
        )
    return jax.device_put(np.asarray(parts, np.int32))


def _check_index(value, rule: str) -> int | jax.Array:
    """An int, or an integer array [] of JAX."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer | np.ndarray | jax.Array):
        raise TypeError(f"{rule}, got {value!r}.")
    if not jnp.issubdtype(jnp.result_type(value), jnp.integer):
        raise TypeError(f"{rule}, got {value!r}.")
    if jnp.shape(value) != ():
        raise ValueError(f"{rule}, got {value!r}.")
    return value if isinstance(value, jax.Array) else int(value)


def check_virtual_batch_size(
    size, names: tuple[str, ...], x: jax.Array, axes: tuple[int, ...], num_parts: int = 1
) -> int | None:
    """A divisor of the number of examples, or of those of each part, without a mapped axis."""
    if size is None:
        return None
    if names:
        raise ValueError(
            f"`virtual_batch_size` and `axis_name` exclude each other: the one splits the batch, the other joins it; "
            f"got {size!r} and {names!r}."
        )
    if not is_integer(size):
        raise TypeError(f"`virtual_batch_size` must be an integer or None, got {size!r}.")
    examples = _number_of_examples("`virtual_batch_size`", x, axes) // num_parts
    if size < 1 or examples % size:
        raise ValueError(
            f"`virtual_batch_size` must divide the number of examples, {examples} "
            f"{'' if num_parts == 1 else 'in each part of the batch, '}in {describe(x)}, got {size}."
        )
    return int(size)


def _number_of_examples(who: str, x: jax.Array, axes: tuple[int, ...]) -> int:
    examples = [n for a, n in enumerate(x.shape) if a not in axes][:1]
    if not examples:
        raise ValueError(f"{who} needs an axis that is not a feature axis, got x {describe(x)}, axis {axes}.")
    return examples[0]
