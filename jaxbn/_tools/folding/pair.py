"""Folding one batch norm into the convolution or dense layer beside it: kernels and biases in and out."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxbn._core import checks
from jaxbn._core.types import BatchStats, Params
from jaxbn._tools.folding.affine import affine_of, check_overflow, following, previous


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
      epsilon: of the batch norm, >= 0.
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
    affine = affine_of(*_checked(params, batch_stats, epsilon), kernel)
    kernel, bias = _round(layer, *previous(kernel, bias, affine, out_axis))
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
      epsilon: of the batch norm, >= 0.
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
    affine = affine_of(*_checked(params, batch_stats, epsilon), kernel)
    kernel, bias = _round(layer, *following(kernel, bias, affine, feature_group_count))
    return {**layer, "kernel": kernel, "bias": bias}


def _checked(params, batch_stats, epsilon) -> tuple[Params, BatchStats, float]:
    checks.check_batch_stats(batch_stats)
    mean = jnp.asarray(batch_stats["mean"])
    checks.check_params(params, mean, tuple(range(mean.ndim)))
    return params, batch_stats, checks.check_epsilon(epsilon)


def _check_layer(layer) -> tuple[jax.Array, jax.Array | None]:
    if not isinstance(layer, Mapping) or "kernel" not in layer:
        raise TypeError(f"`layer` must be a dict with 'kernel' (and 'bias'), got {checks.describe(layer)}.")
    kernel = checks.check_input(layer["kernel"], "layer['kernel']")
    bias = layer.get("bias")
    if kernel.ndim < 2:
        raise ValueError(f"`layer['kernel']` must have input and output features, got {checks.describe(kernel)}.")
    return kernel, None if bias is None else jnp.asarray(bias)


def _round(layer, kernel, bias):
    """Kernel and bias in the dtypes of the layer."""
    old = jnp.asarray(layer["kernel"])
    bias_dtype = old.dtype if layer.get("bias") is None else jnp.result_type(layer["bias"])
    new = kernel.astype(old.dtype), bias.astype(bias_dtype)
    check_overflow(old, *new)
    return new
