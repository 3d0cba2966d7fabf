"""Moments: the statistics of a batch, and how two of them merge.

`Moments` are computed about a pivot: those of `x - pivot`, with a pivot near the mean. Squaring small numbers instead
of large ones keeps the variance accurate at any offset, and the mean, kept as `pivot + delta`, is known to more digits
than one float holds.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxbn._core import checks
from jaxbn._core.axes import expand, expand_mask, feature_axes, num_rows, reduction_axes, row_sums
from jaxbn._core.merge import (
    Reduction,
    abs_squared,
    accumulator,
    all_sum,
    conj_times,
    divide,
    merge_across_devices,
    real_dtype,
)
from jaxbn._core.types import Axes, AxisIndexGroups, AxisName, Moments
from jaxbn._sync import mapped_axes as sync
from jaxbn._xla.passes import apart, fresh, known_tangents, nothing_kept
from jaxbn._xla.program import program_fits

MOMENTS = "batch_moments"
"""The name under which `jax.checkpoint` policies find the moments of a batch."""


def batch_moments(
    x: jax.Array,
    *,
    axis: Axes = -1,
    mask: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisIndexGroups | None = None,
    use_fast_variance: bool = True,
    pivot: jax.Array | None = None,
) -> Moments:
    """Count, mean and variance of each channel of a batch, however it is split.

    Args:
      x: [..., C] float or complex.
      axis: the feature axis or axes.
      mask: boolean (True counts) or non-negative weights, broadcasts to `x`; a constant for derivatives.
      axis_name: mapped axis or axes that hold the rest of the batch.
      axis_index_groups: a partition of the indices of that axis; each group is a batch of its own.
      use_fast_variance: False reads `x` once more for its exact mean before the variance, for one collective more.
      pivot: [C], a value near the mean (the running mean, say), used in a program over several devices, where one
        from the data would cost a collective.

    Returns:
      `Moments`: count [] (or [C], where the mask differs between channels), mean [C], var [C], at least float32.
      Where there is no example all three are 0.

    Raises:
      ValueError, TypeError: an argument breaks one of the rules above.

    References:
      Ioffe & Szegedy 2015, "Batch normalization", algorithm 1; Chan, Golub & LeVeque 1983, "Algorithms for computing
      the sample variance", for the shift.

    Example:
      >>> import jax.numpy as jnp, jaxbn
      >>> moments = jaxbn.batch_moments(jnp.array([[1.0], [3.0], [9.0]]), mask=jnp.array([[True], [True], [False]]))
      >>> moments.count.item(), moments.mean.tolist(), moments.var.tolist()
      (2.0, [2.0], [1.0])
    """
    x = checks.check_input(x)
    axes = feature_axes(axis, x.ndim)
    names = sync.check_axis_name(axis_name)
    groups = sync.check_groups(axis_index_groups, names)
    if pivot is not None:
        checks.check_vectors({"pivot": pivot}, "", x, axes)
    return _moments(
        x, checks.check_mask(mask, x), pivot, reduction=Reduction(axes, names, groups, not use_fast_variance)
    )


@functools.partial(jax.jit, inline=True, static_argnames="reduction")
def _moments(x, mask, hint, *, reduction):
    pivot, shifted = shifted_moments(reduction, x, mask, hint)
    return shifted._replace(mean=pivot + shifted.mean)


def _weights(mask: jax.Array | None, ndim: int, dtype) -> jax.Array | None:
    return None if mask is None else expand_mask(mask, ndim).astype(real_dtype(dtype))


def _count(x: jax.Array, weights: jax.Array | None, axes: tuple[int, ...]) -> jax.Array:
    """Number of values (sum of weights) a channel: [] where all channels have the same, else [C]."""
    dtype = real_dtype(accumulator(x.dtype))
    if weights is None:
        return jnp.asarray(num_rows(x, axes), dtype)
    repeats = 1
    for a in reduction_axes(axes, x.ndim):
        repeats *= x.shape[a] // weights.shape[a]
    (count,) = row_sums([weights], axes)
    count = count * jnp.asarray(repeats, dtype)
    if all(weights.shape[a] == 1 for a in axes):
        return count.reshape(())
    return jnp.broadcast_to(count, tuple(x.shape[a] for a in axes))


def _weigh(values: jax.Array, weights: jax.Array | None) -> jax.Array:
    """`weights * values`, where NaN under a weight of zero is zero."""
    if weights is None:
        return values
    return jnp.where(weights > 0, weights.astype(values.dtype) * values, jnp.zeros((), values.dtype))


def _centred(x: jax.Array, weights: jax.Array | None, parts, reduction: Reduction) -> jax.Array:
    """x - parts[0] - ..., zero where it has no weight."""
    x = x.astype(parts[0].dtype)
    for part in parts:
        x = x - expand(part, reduction.axes, x.ndim)
    return x if weights is None else jnp.where(weights > 0, x, jnp.zeros((), x.dtype))


def _mean(x: jax.Array, weights: jax.Array | None, reduction: Reduction) -> jax.Array:
    (total,) = row_sums([_weigh(x, weights)], reduction.axes)
    count = _count(x, weights, reduction.axes)
    if reduction.names:
        total, count = all_sum([total, count], reduction)
    return divide(total, count)


def _mean_of_some_rows(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Mean of up to eight rows, spread over the first reduction axis: close to the mean, and almost nothing to read."""
    for i, a in enumerate(reduction_axes(axes, x.ndim)):
        if i == 0:
            x = lax.slice_in_dim(x, 0, None, max(1, x.shape[a] // 8), axis=a)
            x = lax.slice_in_dim(x, 0, min(8, x.shape[a]), axis=a)
        else:
            x = lax.slice_in_dim(x, x.shape[a] // 2, x.shape[a] // 2 + 1, axis=a)
    return x.astype(accumulator(x.dtype)).mean(reduction_axes(axes, x.ndim))


def _pivot(x: jax.Array, weights: jax.Array | None, hint: jax.Array | None, reduction: Reduction) -> jax.Array:
    """A value near the mean, [C], of which nothing but that is asked.

    From the data it is right from the first step on. Where that costs something, `hint` (the running mean) stands in:
    a collective in a program over several devices, a read on a TPU, which otherwise sums as it writes x.
    """
    wide = x.astype(accumulator(x.dtype))
    if reduction.two_pass:
        return _mean(wide, weights, reduction)
    local = reduction._replace(names=(), groups=None)
    pivot = _mean_of_some_rows(x, reduction.axes) if weights is None else _mean(wide, weights, local)
    # A non-finite pivot would spread from its own row to the channel; the sums tell of it anyway.
    pivot = jnp.where(jnp.isfinite(pivot), pivot, jnp.zeros((), pivot.dtype))
    return pivot if hint is None else jnp.where(program_fits("cpu", "cuda", "rocm"), pivot, hint.astype(pivot.dtype))


def _about(pivot: jax.Array, x: jax.Array, weights: jax.Array | None, reduction: Reduction) -> Moments:
    """The moments of `x - pivot` on this device."""
    count = _count(x, weights, reduction.axes)
    first_x, first_pivot = fresh(x, pivot)
    second_x, second_pivot = apart(x, first_pivot)
    total, square = row_sums(
        [
            _weigh(_centred(first_x, weights, (first_pivot,), reduction), weights),
            _weigh(abs_squared(_centred(second_x, weights, (second_pivot,), reduction)), weights),
        ],
        reduction.axes,
    )
    delta = divide(total, count)
    var = jnp.maximum(divide(square, count) - abs_squared(delta), jnp.zeros((), square.dtype))
    return Moments(count, delta, var)


def _near(pivot: jax.Array, local: Moments, x: jax.Array, weights: jax.Array | None, reduction: Reduction):
    """A pivot and moments about it, taken again where a hint was more than eight deviations off in some channel."""

    def again(pivot, local):
        mean = pivot + local.mean
        return mean, _about(mean, x, weights, reduction)

    def as_they_are(pivot, local):
        return pivot, local

    def on_tpu(pivot, local):
        off = abs_squared(local.mean) > 64 * local.var
        return lax.cond(jnp.any(off & jnp.isfinite(local.mean)), again, as_they_are, pivot, local)

    return lax.cond(program_fits("tpu"), on_tpu, as_they_are, pivot, local)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def shifted_moments(
    reduction: Reduction, x: jax.Array, mask: jax.Array | None, hint: jax.Array | None
) -> tuple[jax.Array, Moments]:
    """A pivot [C] and the moments of `x - pivot`, over the reduction axes and the mapped axes.

    The derivative is closed: d mean = E[dx], d var = 2 E[Re conj(x - mean) dx]. The pivot and the mask are constants.
    """
    weights = _weights(mask, x.ndim, accumulator(x.dtype))
    pivot = _pivot(x, weights, hint, reduction)
    local = _about(pivot, x, weights, reduction)
    if hint is not None and not reduction.two_pass:
        pivot, local = _near(pivot, local, x, weights, reduction)
    if not reduction.names:
        return pivot, local
    return merge_across_devices(local, pivot, hint, reduction)


@functools.partial(shifted_moments.defjvp, symbolic_zeros=True)
def _shifted_moments_jvp(reduction, primals, tangents):
    pivot, moments = checkpoint_name(shifted_moments(reduction, *primals), MOMENTS)
    x, mask, _ = primals
    dx, *_ = known_tangents(tangents)
    dmean = dvar = None
    if dx is not None:
        tangent = nothing_kept(functools.partial(moments_tangent, reduction))
        dmean, dvar = tangent(x, mask, pivot, moments, dx.astype(pivot.dtype))
    return (pivot, moments), (jnp.zeros_like(pivot), tangent_moments(moments, dmean, dvar))


def tangent_moments(moments: Moments, dmean, dvar) -> Moments:
    """The tangents as `Moments`, None for zero; varying between devices where the moments count as varying."""
    tangents = zip(moments, (None, dmean, dvar), strict=True)
    return Moments(*(jnp.zeros_like(m) if t is None else sync.as_varying_as(t, m) for m, t in tangents))


def moments_tangent(reduction: Reduction, x, mask, pivot, moments: Moments, dx) -> tuple[jax.Array, jax.Array]:
    """d mean = E[dx] and d var = 2 E[Re conj(x - mean) dx], for `dx` in the dtype of the sums."""
    weights = _weights(mask, x.ndim, dx.dtype)
    x, centre = fresh(x, (pivot, moments.mean))
    centred = _centred(x, weights, centre, reduction)
    dtotal, dsquare = row_sums([_weigh(dx, weights), _weigh(conj_times(centred, dx), weights)], reduction.axes)
    if reduction.names:
        dtotal, dsquare = all_sum([dtotal, dsquare], reduction)
    return divide(dtotal, moments.count), 2 * divide(dsquare, moments.count)
