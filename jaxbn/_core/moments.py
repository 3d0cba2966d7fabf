"""Moments: count, mean and variance of a batch, and their derivative.

A mean is kept as a pivot near it and what is missing, and squares are taken of `x - pivot`: squaring small numbers
keeps the variance accurate at any offset, and two floats hold the mean to more digits than one.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero

from jaxbn._core.axes import expand, feature_shape, reduction_axes
from jaxbn._core.linear import linear
from jaxbn._core.merge import as_float32, merge_by_sums, merge_sets
from jaxbn._core.numbers import abs_squared, accumulator, conj_times, divide, real_dtype, zero_unless
from jaxbn._core.types import Moments, Reduction
from jaxbn._sync import mapped_axes as sync
from jaxbn._sync.packing import packed
from jaxbn._xla.one_read import one_read
from jaxbn._xla.passes import elementwise, sums

MOMENTS = "batch_moments"
"""The name under which `jax.checkpoint` policies find the moments of a batch."""


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def shifted_moments(reduction: Reduction, x, mask, hint) -> tuple[jax.Array, Moments]:
    """A pivot [C] and the moments of `x - pivot`, over the reduction axes and the mapped axes.

    `hint` [C] or None is a value that is the same on all devices, best near the mean: the running mean.
    """
    if reduction.two_pass:
        pivot = _mean(reduction, x, mask)
        local = about(reduction.axes, pivot, x, mask)
    else:
        here = reduction._replace(names=(), groups=None)

        def two_reads(x, mask, hint):
            pivot = _mean(here, x, mask)
            return pivot, about(here.axes, pivot, x, mask)

        over, dtype = reduction_axes(here.axes, x.ndim), accumulator(x.dtype)
        pivot, local = one_read(two_reads, functools.partial(about, here.axes), merge_sets, over, dtype, x, mask, hint)
    if not reduction.names:
        return pivot, local
    # Not zeros_like: those would count as different on each device, and the merged moments with them.
    origin = pivot if reduction.two_pass else jnp.zeros(pivot.shape, pivot.dtype) if hint is None else hint
    add = functools.partial(_add, reduction)
    if pivot.dtype in (jnp.float32, jnp.complex64):
        add = as_float32(add, sync.axis_size(reduction.names))
    return merge_by_sums(pivot, local, origin, add)


def _add(reduction: Reduction, arrays: list[jax.Array]) -> list[jax.Array]:
    """Each array, summed over the mapped axes, all of them in one collective."""
    return packed(arrays, lambda v: sync.all_sum(v, reduction.names, reduction.groups))


def counts(mask: jax.Array) -> jax.Array:
    """Which values have a weight."""
    return mask if mask.dtype == bool else mask > 0


def _weigh(values: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The values times their weight, where what has none is zero, NaN too."""
    if mask is None:
        return values
    return zero_unless(counts(mask), values if mask.dtype == bool else mask.astype(values.dtype) * values)


def _centred(x: jax.Array, mask: jax.Array | None, *parts: jax.Array) -> jax.Array:
    """x - parts[0] - ..., one after the other, zero where it has no weight."""
    x = x.astype(parts[0].dtype)
    for part in parts:
        x = x - part
    return x if mask is None else zero_unless(counts(mask), x)


def _count(axes: tuple[int, ...], x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Number of values (sum of weights) of a channel: [] where all channels have the same, else [C]."""
    over = reduction_axes(axes, x.ndim)
    repeats = functools.reduce(lambda n, a: n * x.shape[a], (a for a in over if mask is None or mask.shape[a] == 1), 1)
    dtype = real_dtype(accumulator(x.dtype))
    repeats = jnp.asarray(repeats).astype(dtype)
    if mask is None:
        return repeats
    # Ones are counted as integers: float32 stops at 2^24.
    (count,) = sums([lambda m, _: m.astype(jnp.int32) if m.dtype == bool else m.astype(dtype)], mask, (), over)
    count = count.astype(dtype) * repeats
    if all(mask.shape[a] == 1 for a in axes):
        return count.reshape(())
    return jnp.broadcast_to(count, feature_shape(x, axes))


def _mean(reduction: Reduction, x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """sum w x / sum w, finite: what is not finite would spread through it, and the sums tell of it anyway."""
    zero = jnp.zeros((), accumulator(x.dtype))
    (total,) = sums(
        [lambda v, zero: _weigh(_centred(v[0], v[1], zero), v[1])],
        (x, mask),
        zero,
        reduction_axes(reduction.axes, x.ndim),
    )
    count = _count(reduction.axes, x, mask)
    if reduction.names:
        total, count = _add(reduction, [total, count])
    mean = divide(total, count)
    return zero_unless(jnp.isfinite(mean), mean)


def about(axes: tuple[int, ...], pivot: jax.Array, x: jax.Array, mask: jax.Array | None) -> Moments:
    """The moments of `x - pivot`, of what is here."""
    total, square = sums(
        [
            lambda v, pivot: _weigh(_centred(*v, pivot), v[1]),
            lambda v, pivot: _weigh(abs_squared(_centred(*v, pivot)), v[1]),
        ],
        (x, mask),
        expand(pivot, axes, x.ndim),
        reduction_axes(axes, x.ndim),
    )
    count = _count(axes, x, mask)
    delta = divide(total, count)
    return Moments(count, delta, jnp.maximum(divide(square, count) - abs_squared(delta), jnp.zeros((), square.dtype)))


@functools.partial(shifted_moments.defjvp, symbolic_zeros=True)
def _shifted_moments_jvp(reduction, primals, tangents):
    pivot, moments = checkpoint_name(shifted_moments(reduction, *primals), MOMENTS)
    x, mask, _ = primals
    dx, *_ = known_tangents(tangents)
    dmean = dvar = None
    if dx is not None:
        dmean, dvar = moments_tangent(reduction, x, mask, pivot, moments, dx.astype(pivot.dtype))
    return (pivot, moments), (jnp.zeros_like(pivot), tangent_moments(moments, dmean, dvar))


def moments_tangent(reduction: Reduction, x, mask, pivot, moments: Moments, dx) -> tuple[jax.Array, jax.Array]:
    """d mean = E[dx] and d var = 2 E[Re conj(x - mean) dx], for `dx` in the dtype of the sums."""
    over = reduction_axes(reduction.axes, x.ndim)

    def tangent(known, dx):
        x, mask, centre = known
        return sums(
            [
                lambda v, _: _weigh(v[2], v[1]),
                lambda v, centre: _weigh(conj_times(_centred(*v[:2], *centre), v[2]), v[1]),
            ],
            (x, mask, dx),
            centre,
            over,
        )

    def transpose(known, cotangents):
        """dx = w (dtotal + conj(x - mean) dsquare)"""
        x, mask, centre = known

        def cotangent(v, vectors):
            centre, total, square = vectors
            return _weigh(total + jnp.conj(_centred(*v, *centre)) * square.astype(total.dtype), v[1])

        total, square = (expand(c, reduction.axes, x.ndim) for c in cotangents)
        return elementwise(cotangent, (x, mask), (centre, total, square))

    centre = tuple(expand(part, reduction.axes, x.ndim) for part in (pivot, moments.mean))
    total, square = linear(tangent, transpose, (x, mask, centre), dx)
    if reduction.names:
        total, square = _add(reduction, [total, square])
    return divide(total, moments.count), 2 * divide(square, moments.count)


def tangent_moments(moments: Moments, dmean, dvar) -> Moments:
    """The tangents as `Moments`, None for zero; varying between devices where the moments count as varying."""
    tangents = zip(moments, (None, dmean, dvar), strict=True)
    return Moments(*(jnp.zeros_like(m) if t is None else sync.as_varying_as(t, m) for m, t in tangents))


def known_tangents(tangents):
    """The tree of tangents with None for those that are known to be zero."""

    def is_zero(tangent):
        return isinstance(tangent, SymbolicZero)

    return jax.tree.map(lambda t: None if is_zero(t) else t, tangents, is_leaf=is_zero)
