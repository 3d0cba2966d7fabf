"""The moments of a batch in one read of x, about a pivot that costs nothing to find.

The meaning reads x twice: for its mean, and for the sums about that. Any value near the mean is as good a pivot.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxbn._xla.passes import GPU
from jaxbn._xla.program import Program, is_static, planned


def one_read(two_reads: Callable, about: Callable, merge: Callable, over: tuple[int, ...], dtype, x, mask, hint):
    """A pivot [C], of that dtype, and the moments about it, of `two_reads(x, mask, hint)`, over the axes `over`.

    `about(pivot, x, mask)` gives the moments of `x - pivot` [C], and `merge(pivots, moments, origin)` those of all
    lanes from those of each. `hint` [C], the running mean, or None: free, but far off in a cold start.
    """

    # A type that says along which axis x is split says where the lanes lie; otherwise they are examples.
    split = [a for a, part in zip(range(x.ndim), jax.typeof(x).sharding.spec, strict=False) if part and a in over]
    lane_axis = split[0] if split else over[0] if over else 0

    def near_some_rows(x, mask, hint):
        pivot = _mean_of_some_rows(x, over, dtype)
        return pivot, about(pivot, x, mask)

    def near_hint(x, mask, hint):
        return _near_hint(about, x, mask, hint.astype(dtype))

    # A plan outlives the trace, so it holds no array.
    fits, has_mask, has_hint = is_static(x) and 0 not in x.shape and bool(over), mask is not None, hint is not None
    size = x.shape[lane_axis] if fits else 0

    def plan(program: Program):
        if not fits:
            return None
        if program.runs_on("tpu"):
            return near_hint if has_hint else None
        if not program.runs_on("cpu", *GPU) or program.pieces == 0:
            return None
        of_lane = two_reads if has_mask else near_some_rows
        lanes = math.gcd(size, program.pieces)
        return of_lane if lanes == 1 else functools.partial(_by_lanes, of_lane, merge, lane_axis, lanes)

    return planned(two_reads, plan)(x, mask, hint)


def _mean_of_some_rows(x: jax.Array, over: tuple[int, ...], dtype) -> jax.Array:
    """Close to the mean, and almost nothing to read: the mean of seven rows without the outliers among them.

    With them, one row at 300 deviations would cost the variance 1 % of its value.
    """
    index: list = [slice(None)] * x.ndim
    for number, a in enumerate(over):
        # In another order along each axis: what stands in the middle of all images is seen at most once.
        places = (np.arange(7) * (number % 6 + 1) + number) % 7
        index[a] = (2 * places + 1) * x.shape[a] // 14
    # A gather: a slice of an axis that is split would first move everything that stands at its place.
    rows = x.at[tuple(index)].get(mode="promise_in_bounds").astype(dtype)
    rows = jnp.moveaxis(rows, over[0] if over[-1] - over[0] < len(over) else 0, 0)  # where indexing puts them
    if jnp.iscomplexobj(rows):
        pivot = lax.complex(_robust_mean(rows.real), _robust_mean(rows.imag))
    else:
        pivot = _robust_mean(rows)
    # A pivot that is not finite would spread from its own row to the channel; the sums tell of it anyway.
    return jnp.where(jnp.isfinite(pivot), pivot, jnp.zeros_like(pivot))


def _robust_mean(rows: jax.Array) -> jax.Array:
    """[7, C] -> [C], of values that go at most four times as far from the median as the median of them goes.

    A value farther away counts as one that far (Huber 1964). The median alone lies half a deviation from the mean; the
    farther off, the more do the moments about it round.
    """
    values = [*rows]
    centre = _median(values)
    far = 4 * _median([abs(v - centre) for v in values])
    return centre + sum(jnp.clip(v - centre, -far, far) for v in values) / len(values)


def _median(values: list[jax.Array]) -> jax.Array:
    """About that of seven: of the one in the middle and of the medians of three on either side."""

    def of_three(a, b, c):
        return jnp.maximum(jnp.minimum(a, b), jnp.minimum(jnp.maximum(a, b), c))

    return of_three(of_three(*values[:3]), values[3], of_three(*values[4:]))


def _near_hint(about: Callable, x, mask, pivot):
    """On a TPU a convolution sums what it writes, and rows of it cost a read: the hint is the pivot.

    Where it was more than eight deviations off in some channel, the mean that came of it is, in a second read.
    """
    moments = about(pivot, x, mask)
    delta = moments.mean
    square = jnp.square(delta.real) + jnp.square(delta.imag) if jnp.iscomplexobj(delta) else jnp.square(delta)
    far = jnp.any((square > 64 * moments.var) & jnp.isfinite(delta))

    def again(pivot, moments):
        # The choice stands between the quotient in the mean and this sum. As one multiply-add in some kernels and two
        # operations in others they would be two means, a rounding apart: too far for a variance of 0.
        mean = pivot + jnp.where(jnp.isfinite(moments.mean), moments.mean, jnp.zeros_like(pivot))
        return mean, about(mean, x, mask)

    return lax.cond(far, again, lambda pivot, moments: (pivot, moments), pivot, moments)


def _by_lanes(of_lane: Callable, merge: Callable, axis: int, lanes: int, x, mask, hint):
    """As many lanes as devices, each about a pivot of its own, of which no other hears: one collective merges them."""

    def cut(v):
        if v is None or v.shape[axis] == 1:
            return v, None
        return v.reshape(*v.shape[:axis], lanes, -1, *v.shape[axis + 1 :]), axis

    (x, a), (mask, b) = cut(x), cut(mask)
    pivots, moments = jax.vmap(of_lane, in_axes=(a, b, None))(x, mask, hint)
    origin = jnp.zeros(pivots.shape[1:], pivots.dtype) if hint is None else hint
    return merge(pivots, moments, origin)
