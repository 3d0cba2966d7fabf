"""Feature axes: which axes of an array hold the channels, how [C] vectors meet it, and how it is summed to [C]."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxbn._core.types import Axes
from jaxbn._xla.program import program_fits


def feature_axes(axis: Axes, ndim: int) -> tuple[int, ...]:
    """Canonical form of `axis` for an array of rank `ndim`: sorted, non-negative, each once.

    Raises:
      ValueError: an axis is out of range or named twice, or none is named.
      TypeError: an axis is not an integer.
    """
    axes = tuple(axis) if isinstance(axis, Sequence) else (axis,)
    if not axes:
        raise ValueError("`axis` must name at least one feature axis, got ().")
    for a in axes:
        if isinstance(a, bool) or not hasattr(a, "__index__"):
            raise TypeError(f"`axis` must be an integer or a sequence of integers, got {axis!r}.")
        if not -ndim <= a < ndim:
            raise ValueError(f"`axis` must be in [{-ndim}, {ndim}) for an input of rank {ndim}, got {a}.")
    canonical = tuple(sorted(a % ndim for a in axes))
    if len(set(canonical)) != len(canonical):
        raise ValueError(f"`axis` must name each axis once, got {axis!r} for an input of rank {ndim}.")
    return canonical


def reduction_axes(axes: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """All axes that are not feature axes."""
    return tuple(a for a in range(ndim) if a not in axes)


def feature_shape(x, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that scale, bias and statistics have for `x`: [C], or one size for each feature axis."""
    return tuple(x.shape[a] for a in axes)


def num_rows(x, axes: tuple[int, ...]) -> int:
    """How many values a channel has."""
    return math.prod(x.shape[a] for a in reduction_axes(axes, x.ndim))


def expand(vector: jax.Array, axes: tuple[int, ...], ndim: int) -> jax.Array:
    """[C] -> rank `ndim`, with size 1 on every reduction axis. A scalar stays one."""
    return jnp.expand_dims(vector, reduction_axes(axes, ndim)) if vector.ndim else vector


def expand_mask(mask: jax.Array, ndim: int) -> jax.Array:
    """The mask with leading axes of size 1 up to rank `ndim`."""
    return mask.reshape((1,) * (ndim - mask.ndim) + mask.shape)


def is_split(x: jax.Array) -> bool:
    """Whether the type of `x` says that it is split over devices (explicit sharding)."""
    return any(part is not None for part in jax.typeof(x).sharding.spec)


def broadcast_like(v: jax.Array, x: jax.Array) -> jax.Array:
    """`v` in the shape of `x`, split over devices as it is."""
    return jnp.broadcast_to(v, x.shape, out_sharding=jax.typeof(x).sharding if is_split(x) else None)


def _num_blocks(x: jax.Array, axes: tuple[int, ...], of_warps: bool = False) -> int:
    """In how many blocks of rows XLA:GPU sums an array, 1 where it should sum it in one go.

    In one go, wide and short arrays are summed by too few threads, and with a slope in front of the sum operands are
    written to memory first. Two levels, the first of about 128 blocks of 8 to 64 rows, have neither. `of_warps`: a
    block of less than a warp of 32 rows becomes a loop instead of a reduction, which cannot write a second result on
    its way; where the sums of larger blocks still keep a GPU busy, they are larger.
    """
    rows, examples, features = math.prod(x.shape[:-1]), x.shape[0], x.shape[-1]
    if axes != (x.ndim - 1,) or rows == 0 or is_split(x):
        return 1
    # Whole examples in a block, or whole blocks in an example: an array that is split by examples stays split.
    candidates = [b for b in _divisors(rows) if examples % b == 0 or b % examples == 0]
    blocks = next(b for b in candidates if rows <= b * min(max(rows // 128, 8), 64))
    larger = [b for b in candidates if rows // b >= 32 and b * features >= 16384]
    return max(larger) if of_warps and larger else blocks


def _divisors(n: int) -> list[int]:
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def _in_blocks(array: jax.Array, blocks: int) -> jax.Array:
    """[N, ..., C] -> [blocks, rows / blocks, C]."""
    return array.reshape(blocks, -1, array.shape[-1])


def row_sums(arrays: Sequence[jax.Array], axes: tuple[int, ...]) -> list[jax.Array]:
    """Each array, all of one shape, summed over its reduction axes: [C]."""
    reduced = reduction_axes(axes, arrays[0].ndim)

    def in_one_go(arrays):
        return [a.sum(reduced) for a in arrays]

    def in_two_levels(arrays):
        # Without the barrier XLA merges the two levels again.
        return [a.sum(0) for a in lax.optimization_barrier([_in_blocks(a, blocks).sum(1) for a in arrays])]

    blocks = _num_blocks(arrays[0], axes)
    if blocks == 1:
        return in_one_go(arrays)
    return lax.cond(program_fits("cuda", "rocm", parts=blocks), in_two_levels, in_one_go, list(arrays))


def spread(
    vectors: Sequence[jax.Array], like: jax.Array, axes: tuple[int, ...], *, beside_a_result: bool = False
) -> list[jax.Array]:
    """Each [C] vector, to be added to arrays of the shape of `like`. Its transpose is as fast as `row_sums`.

    `beside_a_result`: the transpose writes an array in the same pass.
    """
    shape = like.shape

    def in_one_go(vectors):
        return [jnp.broadcast_to(expand(v, axes, len(shape)), shape) for v in vectors]

    def in_two_levels(vectors):
        levels = lax.optimization_barrier([jnp.broadcast_to(v, (blocks, v.size)) for v in vectors])
        rows = math.prod(shape[:-1]) // blocks
        return [jnp.broadcast_to(v[:, None], (blocks, rows, shape[-1])).reshape(shape) for v in levels]

    blocks = _num_blocks(like, axes, of_warps=beside_a_result)
    if blocks == 1:
        return [expand(v, axes, len(shape)) for v in vectors]
    return lax.cond(program_fits("cuda", "rocm", parts=blocks), in_two_levels, in_one_go, list(vectors))
