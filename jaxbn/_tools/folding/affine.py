"""In evaluation a batch norm is one multiply-add per channel: what that does to the kernel and bias of a neighbor."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxbn._core.axes import expand
from jaxbn._core.normalize import multiplier
from jaxbn._core.numbers import promote, real_dtype

Weights = Mapping[str, Any]
"""{'kernel': array, ...}, those of one layer"""


class FeaturesError(ValueError):
    """A layer and a batch norm differ in their number of features."""


def previous(kernel, bias, affine, out_axis: int = -1, *, multiple: bool = False) -> tuple[jax.Array, jax.Array]:
    """Kernel and bias of `fold_into_previous`, in at least float32; `affine` is what `affine_of` returns.

    `multiple`: the layer may have k times as many features; every C-th of them belongs to the same channel.
    """
    a, mean, shift = affine
    axis = out_axis % kernel.ndim
    _check_features(kernel.shape[axis], f"output features (axis {axis}", kernel, mean, multiple)
    a, mean, shift = (jnp.tile(v, kernel.shape[axis] // max(v.size, 1)) for v in (a, mean, shift))
    rank = max(1 if bias is None else bias.ndim, 1)
    a_bias, mean, shift = (v.reshape((1,) * (rank - 1) + v.shape) for v in (a, mean, shift))
    start = -mean if bias is None else bias.astype(a.dtype) - mean
    return kernel.astype(a.dtype) * expand(a, (axis,), kernel.ndim), start * a_bias + shift


def following(
    kernel, bias, affine, groups: int = 1, in_axis: int = -2, num_out_axes: int = 1, *, multiple: bool = False
):
    """Kernel and bias of `fold_into_next`, in at least float32; `affine` is what `affine_of` returns.

    `multiple`: the layer may have k times as many inputs, as after a flattened image; every C-th is the same channel.
    """
    a, mean, shift = affine
    axis = in_axis % kernel.ndim
    what = f"input features (axis {axis}, groups: {groups}"
    _check_features(kernel.shape[axis] * groups, what, kernel, mean, multiple)
    repeats = kernel.shape[-1] // groups
    copies = kernel.shape[axis] * groups // max(a.size, 1)

    def of_group(v):  # [C] -> what each input of each output is multiplied by
        v = jnp.tile(v, copies)
        if groups == 1:
            return expand(v, (axis,), kernel.ndim)
        return expand(jnp.repeat(v.reshape(groups, -1).T, repeats, axis=1), (axis, kernel.ndim - 1), kernel.ndim)

    kernel = kernel.astype(a.dtype)
    added = jnp.sum(kernel * of_group(shift - mean * a), axis=tuple(range(kernel.ndim - num_out_axes)))
    return kernel * of_group(a), added if bias is None else bias.astype(a.dtype) + added


def identity(params, batch_stats, epsilon: float, shift: jax.Array | None = None):
    """The params and batch_stats, with the same keys, shapes and dtypes, with which a batch norm only adds `shift`."""
    params, batch_stats = dict(params), dict(batch_stats)
    mean, var = batch_stats["mean"], batch_stats["var"]
    one = jnp.ones_like(var)
    # This is exact in floating point too: (1 - epsilon) + epsilon rounds to 1.
    batch_stats.update(mean=jnp.zeros_like(mean), var=one - jnp.asarray(epsilon, var.dtype))
    params.update({k: jnp.full_like(v, k == "scale") for k, v in params.items()})
    if shift is not None and "bias" in params:
        params["bias"] = shift.astype(params["bias"].dtype)
    elif shift is not None:
        batch_stats["mean"] = -shift.astype(mean.dtype)
    return params, batch_stats


def affine_of(params, batch_stats, epsilon: float, kernel) -> tuple[jax.Array, ...]:
    """Multiplier, mean and bias of the batch norm, [C] each, in at least float32."""
    mean, var = jnp.asarray(batch_stats["mean"]), jnp.asarray(batch_stats["var"])
    scale, bias = params.get("scale"), params.get("bias")
    wide = promote(kernel.dtype, mean.dtype, jnp.float32)
    scale = None if scale is None else jnp.asarray(scale, wide)
    a = multiplier(scale, var.astype(real_dtype(wide)), epsilon).astype(wide)
    return a, mean.astype(wide), jnp.zeros_like(a) if bias is None else jnp.asarray(bias, wide)


def fold_weights(norm: Weights, layers: Sequence[Weights], calls: Sequence[Any], backward: bool):
    """The weights of a batch norm and of the layers that absorb it, folded, in their dtypes.

    Args:
      norm: {'mean': [C], 'var': [C]} and perhaps 'scale', 'bias' [C] and others, which stay as they are.
      layers: {'kernel', 'bias'} each; 'bias' may be absent.
      calls: `flow.Call` of the batch norm and of each layer.
      backward: whether there is one layer, before the batch norm.

    Returns:
      norm, layers, and whether what was finite is still finite.

    Raises:
      ValueError: the numbers of features do not fit.
    """
    params = {k: v for k, v in norm.items() if k in ("scale", "bias")}
    stats = {k: v for k, v in norm.items() if k not in params}
    new, shift, finite = [], None, jnp.array(True)
    for layer, call in zip(layers, calls[1:], strict=True):
        kernel, bias = layer["kernel"], layer.get("bias")
        affine = affine_of(params, stats, calls[0].epsilon, kernel)
        if backward:
            kernel, added = previous(kernel, bias, affine, call.out_axis, multiple=True)
        else:
            kernel, added = following(kernel, bias, affine, call.groups, call.in_axis, call.num_out_axes, multiple=True)
        changed = {"kernel": kernel.astype(layer["kernel"].dtype)}
        if bias is None:
            shift = added[: affine[1].size]  # the rest repeats it
        else:
            changed["bias"] = added.astype(bias.dtype)
        finite &= ~_finite(layer["kernel"]) | jnp.array([_finite(v) for v in changed.values()]).all()
        new.append({**layer, **changed})
    params, stats = identity(params, stats, calls[0].epsilon, shift)
    return {**params, **stats}, new, finite


def overflow(dtype) -> str:
    """The message for a folded layer that is not finite."""
    return (
        f"The folded layer is not finite in {dtype.name}: the running statistics are not finite, or too small for that "
        "dtype; nothing was folded."
    )


def _finite(v: jax.Array) -> jax.Array:
    return jnp.isfinite(v).all()


def _check_features(features: int, what: str, kernel, mean, multiple: bool) -> None:
    fits = mean.ndim == 1 and (features == mean.size or (multiple and mean.size and features % mean.size == 0))
    if not fits:
        rule = "as many features, or a multiple" if multiple else "as many features"
        raise FeaturesError(
            f"A batch norm folds into a layer of {rule}: the kernel has {features} {what} of "
            f"{kernel.dtype.name}{list(kernel.shape)}), the batch norm has {list(mean.shape)}."
        )


def check_overflow(old: jax.Array, *new: jax.Array) -> None:
    """Checks that what was finite is still finite, if the values are known and not traced."""
    if any(isinstance(v, Tracer) for v in (old, *new)) or not bool(_finite(old)):
        return
    if not all(bool(_finite(v)) for v in new):
        raise ValueError(overflow(old.dtype))
