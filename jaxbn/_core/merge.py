"""Merging moments: of two sets, of many, and over the members of mapped axes.

References: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxbn._core import checks
from jaxbn._core.types import Moments, promote
from jaxbn._sync import mapped_axes as sync
from jaxbn._sync.packing import packed, sum_and_error, with_tail, without_tail


class Reduction(NamedTuple):
    """Over what the moments are taken; static."""

    axes: tuple[int, ...]
    """feature axes, canonical"""
    names: tuple[str, ...] = ()
    """mapped axes"""
    groups: tuple[tuple[int, ...], ...] | None = None
    """groups of indices of the mapped axes"""
    two_pass: bool = False
    """read the batch once more, for its mean as the pivot"""


def accumulator(dtype) -> jnp.dtype:
    """The dtype in which values of `dtype` are summed: at least float32."""
    return promote(dtype, jnp.float32)


def real_dtype(dtype) -> jnp.dtype:
    """float32 for complex64, float64 for complex128, and a real dtype itself."""
    return jnp.finfo(dtype).dtype


def abs_squared(x: jax.Array) -> jax.Array:
    return lax.square(x.real) + lax.square(x.imag) if jnp.iscomplexobj(x) else lax.square(x)


def conj_times(a: jax.Array, b: jax.Array) -> jax.Array:
    """Real part of conj(a) b."""
    return a.real * b.real + a.imag * b.imag if jnp.iscomplexobj(a) else a * b


def divide(total: jax.Array, count: jax.Array) -> jax.Array:
    """`total / count`, zero where there is no count."""
    count = count.astype(total.dtype)
    one = jnp.ones((), count.dtype)
    return total / jnp.where(count == 0, one, count)


def merge_moments(*moments: Moments) -> Moments:
    """Moments of the union of disjoint sets, exact to rounding; empty sets change nothing.

    Args:
      *moments: at least one `Moments`, with counts [] or [C], means [C] and variances [C].

    Returns:
      `Moments` of all of them; its variance includes that between the means.

    Raises:
      TypeError: an argument is no `Moments`, or there is none.
      ValueError: their shapes differ.

    References:
      Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances", eq. 2.1.

    Example:
      >>> import jax.numpy as jnp, jaxbn
      >>> a, b = jaxbn.batch_moments(jnp.array([[1.0], [3.0]])), jaxbn.batch_moments(jnp.array([[5.0]]))
      >>> jaxbn.merge_moments(a, b).mean.tolist()
      [3.0]
    """
    if not moments:
        raise TypeError("`merge_moments` takes at least one `Moments`, got none.")
    for m in moments:
        checks.check_moments(m, {"mean": moments[0].mean if isinstance(moments[0], Moments) else 0})
    counts = [jnp.asarray(m.count) for m in moments]
    if any(c.ndim for c in counts):
        counts = [jnp.broadcast_to(c, jnp.shape(m.mean)) for c, m in zip(counts, moments, strict=True)]
    mean, var = (jnp.stack([jnp.asarray(m[i]) for m in moments]) for i in (1, 2))
    return merge_stacked(Moments(jnp.stack(counts), mean, var))


def merge_stacked(moments: Moments, weights: jax.Array | None = None) -> Moments:
    """Moments of the union of the sets along axis 0: of `count` [N] or [N, C], `mean` [N, C] and `var` [N, C].

    `weights` [N] bool leaves sets out.
    """
    rough, merged = _merge_about_mean(moments, weights)
    return merged._replace(mean=rough + merged.mean)


def _merge_about_mean(moments: Moments, weights: jax.Array | None, tails: jax.Array | None = None):
    """A rough mean, and the merged moments about it: no digit is lost where the means agree.

    `tails` [N, C] are further digits of the means.
    """
    count, mean, var = moments
    if weights is not None:
        count = count * weights.reshape((-1,) + (1,) * (count.ndim - 1)).astype(count.dtype)
    full = count.reshape(count.shape + (1,) * (mean.ndim - count.ndim))
    mean, var = (jnp.where(full == 0, jnp.zeros((), v.dtype), v) for v in (mean, var))
    rough = divide((full.astype(mean.dtype) * mean).sum(0), full.sum(0))
    rest = mean - rough[None]
    rest = rest if tails is None else rest + tails
    return rough, merge_sums(Moments(count, rest, var), lambda sums: [s.sum(0) for s in sums])


def merge_sums(moments: Moments, add: Callable[[list[jax.Array]], list[jax.Array]]) -> Moments:
    """Moments of the union of the sets that `add` sums over; the means are small, about a common pivot.

    References: Chan, Golub & LeVeque 1979, equation 2.1, for any number of sets at once.
    """
    count, mean, var = moments
    full = count.reshape(count.shape + (1,) * (mean.ndim - count.ndim))
    count, total, square = add([count, full.astype(mean.dtype) * mean, full * (var + abs_squared(mean))])
    mean = divide(total, count)
    return Moments(count, mean, jnp.maximum(divide(square, count) - abs_squared(mean), jnp.zeros((), square.dtype)))


def merge_across_devices(local: Moments, pivot: jax.Array, hint: jax.Array | None, reduction: Reduction):
    """From moments about each device's own pivot to those of all devices about a common one, in one collective."""
    # Not zeros_like: those would count as different on each device, and the merged moments with them.
    zeros = jnp.zeros(local.mean.shape, local.mean.dtype)
    common = pivot if reduction.two_pass else zeros if hint is None else hint.astype(pivot.dtype)
    offset, lost = sum_and_error(pivot, -common)
    mean, tail = sum_and_error(offset, local.mean)
    if reduction.groups is None and sync.axis_size(reduction.names) > sync.GATHER_LIMIT:
        # As accurate as the pivot is close, and no larger on larger axes.
        return common, merge_sums(local._replace(mean=mean), lambda sums: all_sum(sums, reduction))
    carried = [local.count, mean, with_tail(local.var, mean, lost + tail)]
    everyone = packed(carried, lambda v: sync.gather(v, reduction.names, invariant=reduction.groups is None))
    count, mean, var = everyone
    var, tails = without_tail(var, mean)
    members = sync.members(reduction.names, reduction.groups)
    rough, merged = _merge_about_mean(Moments(count, mean, var), members, tails)
    pivot, lost = sum_and_error(common, rough)
    return pivot, merged._replace(mean=lost + merged.mean)


def all_sum(arrays: list[jax.Array], reduction: Reduction) -> list[jax.Array]:
    """Each array, summed over the mapped axes, all of them in one collective."""
    return packed(arrays, lambda v: sync.all_sum(v, reduction.names, reduction.groups))
