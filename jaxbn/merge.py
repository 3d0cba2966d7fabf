"""Merging moments: of two sets, of many, and over the members of mapped axes.

References: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxbn import checks, sync
from jaxbn.types import Moments


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
    return jnp.promote_types(dtype, jnp.float32)


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

    The weighted mean is taken twice, the second time of what the first one left over, so that it does not lose digits
    where the means agree. References: Chan, Golub & LeVeque 1979, equation 2.1, for N sets at once.
    """
    count, mean, var = moments
    parts = count if weights is None else count * weights.reshape((-1,) + (1,) * (count.ndim - 1)).astype(count.dtype)
    parts_of_channel = parts.reshape(parts.shape + (1,) * (mean.ndim - parts.ndim))
    empty = parts_of_channel == 0
    mean = jnp.where(empty, jnp.zeros((), mean.dtype), mean)
    var = jnp.where(empty, jnp.zeros((), var.dtype), var)
    total = parts.sum(0)
    rough = divide((parts_of_channel * mean).sum(0), parts_of_channel.sum(0))
    rest = mean - rough[None]
    delta = divide((parts_of_channel * rest).sum(0), parts_of_channel.sum(0))
    spread = var + abs_squared(rest - delta[None])
    return Moments(total, rough + delta, divide((parts_of_channel * spread).sum(0), parts_of_channel.sum(0)))


def _merge_gathered(local: Moments, reduction: Reduction) -> Moments:
    """Moments of all members of the mapped axes, from one gather of [2C + 1] numbers of each."""
    parts = [local.count, local.mean.real, local.mean.imag, local.var]
    if not jnp.iscomplexobj(local.mean):
        del parts[2]
    packed = jnp.concatenate([p.reshape(-1) for p in parts])
    gathered = sync.gather(packed, reduction.names, invariant=reduction.groups is None)
    split = jnp.split(gathered, list(_offsets(parts)), axis=1)
    count, *mean, var = [g.reshape((g.shape[0],) + p.shape) for g, p in zip(split, parts, strict=True)]
    return merge_stacked(
        Moments(count, lax.complex(*mean) if len(mean) == 2 else mean[0], var),
        sync.members(reduction.names, reduction.groups),
    )


def _offsets(parts):
    end = 0
    for part in parts[:-1]:
        end += part.size
        yield end


def _merge_summed(local: Moments, reduction: Reduction) -> Moments:
    """The same from sums about the common pivot: as accurate as the pivot is close, and no larger on larger axes."""
    count, mean, var = local
    count = jnp.broadcast_to(count, var.shape) if count.ndim else count
    parts = [count, count * mean.real, count * mean.imag, count * (var + abs_squared(mean))]
    if not jnp.iscomplexobj(mean):
        del parts[2]
    packed = sync.all_sum(jnp.concatenate([p.reshape(-1) for p in parts]), reduction.names, None)
    count, *total, square = [
        s.reshape(p.shape) for s, p in zip(jnp.split(packed, list(_offsets(parts))), parts, strict=True)
    ]
    mean = divide(lax.complex(*total) if len(total) == 2 else total[0], count)
    var = jnp.maximum(divide(square, count) - abs_squared(mean), jnp.zeros((), square.dtype))
    return Moments(count, mean, var)


def merge_across_devices(local: Moments, pivot: jax.Array, hint: jax.Array | None, reduction: Reduction):
    """From moments about each device's own pivot to those of all devices about a common one."""
    if not reduction.two_pass:
        common = jnp.zeros_like(local.mean) if hint is None else hint.astype(pivot.dtype)
        local, pivot = local._replace(mean=(pivot - common) + local.mean), common
    if reduction.groups is None and sync.axis_size(reduction.names) > sync.GATHER_LIMIT:
        return pivot, _merge_summed(local, reduction)
    return pivot, _merge_gathered(local, reduction)


def all_sum_pair(dtotal: jax.Array, dsquare: jax.Array, reduction: Reduction):
    """Both sums over the mapped axes, in one collective of [2C]."""
    if jnp.iscomplexobj(dtotal):
        summed = sync.all_sum(jnp.stack([dtotal.real, dtotal.imag, dsquare]), reduction.names, reduction.groups)
        return lax.complex(summed[0], summed[1]), summed[2]
    summed = sync.all_sum(jnp.stack([dtotal, dsquare]), reduction.names, reduction.groups)
    return summed[0], summed[1]
