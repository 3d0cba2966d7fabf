"""Folding one batch norm into the convolution or dense layer beside it: kernels and biases in and out."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxbn._core import checks
from jaxbn._core.axes import expand
from jaxbn._core.normalize import multiplier
from jaxbn._core.numbers import promote, real_dtype
from jaxbn._core.types import BatchStats, Params


def fold_into_previous(
    layer: Mapping[str, jax.Array],
    params: Params,
    batch_stats: BatchStats,
    *,
    epsilon: float = 1e-5,
    out_axis: int = -1,
) -> dict[str, jax.Array]:
    """The layer that alone does what it and the batch norm after it did in evaluation.

    It is computed in at least float32 and rounded once, to the dtypes of the layer.

    Args:
      layer: {'kernel': [..., C] float, 'bias': [C]} of a dense layer or a convolution (grouped, depthwise, transposed);
        'bias' may be absent.
      params: {'scale': [C], 'bias': [C]} of the batch norm; a key that is absent is not used.
      batch_stats: {'mean': [C], 'var': [C]} of the batch norm.
      epsilon: of the batch norm, > 0.
      out_axis: the axis of the kernel that holds the output features: -1, or -2 for `ConvTranspose` with
        `transpose_kernel=True`.

    Returns:
      {'kernel': [..., C], 'bias': [C]}: always with a bias.

    Raises:
      ValueError: the two have another number of features, or the folded kernel overflows its dtype.

    References:
      Jacob et al. 2018, "Quantization and training of neural networks for efficient integer-arithmetic-only inference",
      section 3.2.

    Example:
      >>> import jax.numpy as jnp, jaxbn
      >>> layer = {"kernel": jnp.array([[2.0, 3.0]])}
      >>> params, batch_stats = {"scale": jnp.array([1.0, 4.0])}, {"mean": jnp.ones(2), "var": jnp.full(2, 4.0)}
      >>> folded = jaxbn.fold_into_previous(layer, params, batch_stats, epsilon=1e-12)
      >>> folded["kernel"].tolist(), folded["bias"].tolist()
      ([[1.0, 6.0]], [-0.5, -2.0])
    """
    kernel, bias = _check_layer(layer)
    kernel, bias = _round(layer, *previous(kernel, bias, params, batch_stats, epsilon, out_axis))
    return {**layer, "kernel": kernel, "bias": bias}


def fold_into_next(
    params: Params,
    batch_stats: BatchStats,
    layer: Mapping[str, jax.Array],
    *,
    epsilon: float = 1e-5,
    feature_group_count: int = 1,
) -> dict[str, jax.Array]:
    """The layer that alone does what the batch norm before it and it did in evaluation.

    Exact for a dense layer, and for a convolution that pads with nothing, or with what it reads ('CIRCULAR',
    'REFLECT'): zeros that are padded after a batch norm are no zeros before it.

    Args:
      params: {'scale': [C], 'bias': [C]} of the batch norm; a key that is absent is not used.
      batch_stats: {'mean': [C], 'var': [C]} of the batch norm.
      layer: {'kernel': [..., C / groups, features] float, 'bias': [features]}; 'bias' may be absent.
      epsilon: of the batch norm, > 0.
      feature_group_count: of the convolution.

    Returns:
      {'kernel': as it was, 'bias': [features]}: always with a bias.

    Raises:
      ValueError: the two have another number of features, or the folded kernel overflows its dtype.

    Example:
      >>> import jax.numpy as jnp, jaxbn
      >>> layer = {"kernel": jnp.array([[2.0], [3.0]]), "bias": jnp.array([1.0])}
      >>> batch_stats = {"mean": jnp.array([1.0, 0.0]), "var": jnp.array([4.0, 1.0])}
      >>> folded = jaxbn.fold_into_next({}, batch_stats, layer, epsilon=1e-12)
      >>> folded["kernel"].tolist(), folded["bias"].tolist()
      ([[1.0], [3.0]], [0.0])
    """
    kernel, bias = _check_layer(layer)
    kernel, bias = _round(layer, *following(kernel, bias, params, batch_stats, epsilon, feature_group_count))
    return {**layer, "kernel": kernel, "bias": bias}


def previous(kernel, bias, params, batch_stats, epsilon, out_axis) -> tuple[jax.Array, jax.Array]:
    """Kernel and bias of `fold_into_previous`, in at least float32."""
    axis = out_axis % kernel.ndim
    _check_features(kernel.shape[axis], f"output features (axis {axis}", kernel, batch_stats)
    a, mean, shift = _affine(params, batch_stats, epsilon, kernel)
    start = -mean if bias is None else bias.astype(a.dtype) - mean
    return kernel.astype(a.dtype) * expand(a, (axis,), kernel.ndim), start * a + shift


def following(kernel, bias, params, batch_stats, epsilon, groups) -> tuple[jax.Array, jax.Array]:
    """Kernel and bias of `fold_into_next`, in at least float32."""
    axis = kernel.ndim - 2
    _check_features(kernel.shape[axis] * groups, f"input features (axis {axis}, groups: {groups}", kernel, batch_stats)
    a, mean, shift = _affine(params, batch_stats, epsilon, kernel)
    repeats = kernel.shape[-1] // groups
    axes = (axis, kernel.ndim - 1)

    def of_group(v):  # [C] -> what each input of each output is multiplied by
        return expand(jnp.repeat(v.reshape(groups, -1).T, repeats, axis=1), axes, kernel.ndim)

    kernel = kernel.astype(a.dtype)
    added = jnp.sum(kernel * of_group(shift - mean * a), axis=tuple(range(kernel.ndim - 1)))
    return kernel * of_group(a), added if bias is None else bias.astype(a.dtype) + added


def identity(params: Params, batch_stats: BatchStats, epsilon: float, shift: jax.Array | None = None):
    """The params and batch_stats, of the keys, shapes and dtypes given, with which a batch norm only adds `shift`."""
    params, batch_stats = dict(params), dict(batch_stats)
    mean, var = batch_stats["mean"], batch_stats["var"]
    one = jnp.ones_like(var)
    # In floating point too: (1 - epsilon) + epsilon rounds to 1.
    batch_stats.update(mean=jnp.zeros_like(mean), var=one - jnp.asarray(epsilon, var.dtype))
    params.update({k: jnp.full_like(v, k == "scale") for k, v in params.items()})
    if shift is not None and "bias" in params:
        params["bias"] = shift.astype(params["bias"].dtype)
    elif shift is not None:
        batch_stats["mean"] = -shift.astype(mean.dtype)
    return params, batch_stats


def _affine(params, batch_stats, epsilon, kernel):
    """Multiplier, mean and bias of the batch norm, [C] each, in at least float32."""
    checks.check_batch_stats(batch_stats)
    scale, bias = checks.check_params(params, batch_stats["mean"], (0,))
    mean, var = jnp.asarray(batch_stats["mean"]), jnp.asarray(batch_stats["var"])
    wide = promote(kernel.dtype, mean.dtype, jnp.float32)
    scale = None if scale is None else scale.astype(wide)
    a = multiplier(scale, var.astype(real_dtype(wide)), checks.check_epsilon(epsilon)).astype(wide)
    return a, mean.astype(wide), jnp.zeros_like(a) if bias is None else bias.astype(wide)


def _check_layer(layer) -> tuple[jax.Array, jax.Array | None]:
    if not isinstance(layer, Mapping) or "kernel" not in layer:
        raise TypeError(f"`layer` must be a dict with 'kernel' (and 'bias'), got {checks.describe(layer)}.")
    kernel = checks.check_input(layer["kernel"], "layer['kernel']")
    bias = layer.get("bias")
    if kernel.ndim < 2:
        raise ValueError(f"`layer['kernel']` must have input and output features, got {checks.describe(kernel)}.")
    return kernel, None if bias is None else jnp.asarray(bias)


def _check_features(features: int, what: str, kernel, batch_stats) -> None:
    shape = jnp.shape(batch_stats["mean"])
    if shape != (features,):
        raise ValueError(
            f"A batch norm folds into a layer of as many features: the kernel has {features} {what} of "
            f"{checks.describe(kernel)}), the batch norm has {list(shape)}."
        )


def _round(layer, kernel, bias):
    """Kernel and bias in the dtypes of the layer."""
    old = jnp.asarray(layer["kernel"])
    bias_dtype = old.dtype if layer.get("bias") is None else jnp.result_type(layer["bias"])
    new = kernel.astype(old.dtype), bias.astype(bias_dtype)
    check_overflow(old, *new)
    return new


def check_overflow(old: jax.Array, *new: jax.Array) -> None:
    """What was finite stays so; under a trace there is nothing to look at."""
    if any(isinstance(v, Tracer) for v in (old, *new)) or not bool(jnp.isfinite(old).all()):
        return
    if not all(bool(jnp.isfinite(v).all()) for v in new):
        raise ValueError(
            f"The folded layer is not finite in {old.dtype.name}: the running statistics are not finite, or too small "
            "for that dtype; nothing was folded."
        )
