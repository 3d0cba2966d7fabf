"""Folding one batch norm into the convolution or dense layer beside it: kernels and biases in and out."""

import contextlib
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp

from jaxbn._core import checks, rules
from jaxbn._core.types import BatchStats, Params
from jaxbn._tools.checks import check_mapping
from jaxbn._tools.folding.affine import FeaturesError, affine_of, check_overflow, following, previous


def fold_into_previous(
    layer: Mapping[str, jax.Array],
    params: Params,
    batch_stats: BatchStats,
    *,
    epsilon: float = 1e-5,
    out_axis: int = -1,
) -> dict[str, jax.Array]:
    """A layer that does by itself what `layer` and the batch norm after it did in evaluation.

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
      ValueError: the two differ in their number of features, or the folded kernel overflows its dtype.
      TypeError: an argument has the wrong type.

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
    if not -kernel.ndim <= checks.check_integer(out_axis, "out_axis", -kernel.ndim) < kernel.ndim:
        raise ValueError(f"`out_axis` must be an axis of the kernel, {checks.describe(kernel)}, got {out_axis}.")
    _check_bias(bias, kernel.shape[out_axis])
    with _naming("`layer`"):
        folded = previous(kernel, bias, affine, out_axis)
    kernel, bias = _round(layer, *folded)
    return {**layer, "kernel": kernel, "bias": bias}


def fold_into_next(
    params: Params,
    batch_stats: BatchStats,
    layer: Mapping[str, jax.Array],
    *,
    epsilon: float = 1e-5,
    feature_group_count: int = 1,
) -> dict[str, jax.Array]:
    """A layer that does by itself what the batch norm and `layer` after it did in evaluation.

    Exact for a dense layer, and for a convolution without padding or padded with values of its own input ('CIRCULAR',
    'REFLECT'). With zero padding it is not exact: zeros after a batch norm are not zeros before it.

    Args:
      params: {'scale': [C], 'bias': [C]} of the batch norm; a key that is absent is not used.
      batch_stats: {'mean': [C], 'var': [C]} of the batch norm.
      layer: {'kernel': [..., C / groups, features] float, 'bias': [features]}; 'bias' may be absent.
      epsilon: of the batch norm, >= 0.
      feature_group_count: of the convolution.

    Returns:
      {'kernel': as it was, 'bias': [features]}: always with a bias.

    Raises:
      ValueError: the two differ in their number of features, or the folded kernel overflows its dtype.
      TypeError: an argument has the wrong type.

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
    if kernel.shape[-1] % checks.check_integer(feature_group_count, "feature_group_count", 1):
        raise ValueError(
            f"`feature_group_count` must divide the output features, {kernel.shape[-1]}, got {feature_group_count}."
        )
    _check_bias(bias, kernel.shape[-1])
    with _naming("`layer` and `feature_group_count`"):
        folded = following(kernel, bias, affine, feature_group_count)
    kernel, bias = _round(layer, *folded)
    return {**layer, "kernel": kernel, "bias": bias}


def _checked(params, batch_stats, epsilon) -> tuple[Params, BatchStats, float]:
    rules.check_batch_stats(batch_stats)
    mean = jnp.asarray(batch_stats["mean"])
    rules.check_params(params, mean, tuple(range(mean.ndim)))
    return params, batch_stats, checks.check_epsilon(epsilon)


def _check_layer(layer) -> tuple[jax.Array, jax.Array | None]:
    check_mapping(layer, "layer", "be a dict with 'kernel' (and 'bias')")
    if "kernel" not in layer:
        raise ValueError(f"`layer` must be a dict with 'kernel' (and 'bias'), got {sorted(map(str, layer))}.")
    kernel = rules.check_input(layer["kernel"], "layer['kernel']")
    bias = layer.get("bias")
    if kernel.ndim < 2:
        raise ValueError(f"`layer['kernel']` must have input and output features, got {checks.describe(kernel)}.")
    return kernel, None if bias is None else rules.check_input(bias, "layer['bias']")


def _check_bias(bias: jax.Array | None, features: int) -> None:
    if bias is not None and bias.shape != (features,):
        raise ValueError(f"`layer['bias']` must have the output features, [{features}], got {checks.describe(bias)}.")


@contextlib.contextmanager
def _naming(arguments: str) -> Iterator[None]:
    """Inside this context, features that do not fit are reported as an error of these arguments."""
    try:
        yield
    except FeaturesError as error:
        raise ValueError(f"{arguments} must fit the batch norm, got other features. {error}") from None


def _round(layer, kernel, bias):
    """Kernel and bias in the dtypes of the layer."""
    old = jnp.asarray(layer["kernel"])
    bias_dtype = old.dtype if layer.get("bias") is None else jnp.result_type(layer["bias"])
    new = kernel.astype(old.dtype), bias.astype(bias_dtype)
    check_overflow(old, *new)
    return new
