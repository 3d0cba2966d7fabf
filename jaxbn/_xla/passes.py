"""How a pass over memory is written for XLA: `elementwise` and `sums`, and what keeps two passes apart.

XLA keeps a value that several kernels use. Here such values (x - mean, a slope, a wider copy of x) cost less to compute
again than to write and read, and a barrier hides that they are the same. Barriers change no number.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxbn._xla.program import Program, is_static, planned

GPU = ("cuda", "rocm")


def elementwise(f: Callable, arrays: Any, vectors: Any) -> jax.Array:
    """`f(arrays, vectors)`, of the shape of x: one read of each array, one write."""

    def plan(program: Program):
        if program.runs_on("cpu"):
            return lambda arrays, vectors: f(*lax.optimization_barrier((arrays, vectors)))
        if program.runs_on(*GPU):
            return lambda arrays, vectors: f(arrays, lax.optimization_barrier(vectors))
        return None

    return planned(f, plan)(arrays, vectors)


def sums(
    fs: Sequence[Callable | tuple[Callable, ...]],
    arrays: Any,
    vectors: Any,
    over: tuple[int, ...],
    *,
    beside_a_result: bool = False,
    cheap: bool = True,
) -> list[jax.Array]:
    """Each `f(arrays, vectors)`, or the product of several such factors, summed over axes: one read of each array.

    `beside_a_result`: what is summed is also written, by `elementwise`, and both are best one pass. `cheap`: a factor
    of several sums takes little more than reading its arrays, and is better computed again than written.
    """

    terms = [f if isinstance(f, tuple) else (f,) for f in fs]

    def product(values):
        return functools.reduce(operator.mul, values)

    def value(factors, arrays, vectors):
        return product([f(arrays, vectors) for f in factors])

    def meaning(arrays, vectors):
        return [value(factors, arrays, vectors).sum(over) for factors in terms]

    def one_by_one(arrays, vectors):
        # On a CPU every sum is a kernel of its own: what it shared with others, or its factors, would be written to
        # memory. Equal barriers are merged, so each stands behind the last, and the first is that of `elementwise`.
        arrays, vectors = lax.optimization_barrier((arrays, vectors))
        found, known = [], {}
        for factors in terms:
            for f in factors:
                if f not in known or cheap or beside_a_result:
                    arrays, vectors = lax.optimization_barrier((arrays, vectors))
                    known[f] = f(arrays, vectors)
            found.append(product([known[f] for f in factors]).sum(over))
        return found

    def together(arrays, vectors):
        return meaning(arrays, lax.optimization_barrier(vectors))

    def in_blocks(cut: Cut, pieces: int, arrays, vectors):
        blocks = cut.number(shape)
        values = []
        if beside_a_result or reads < 3:  # to store a slope that takes a third array to compute saves reading it
            vectors = lax.optimization_barrier(vectors)  # not the barrier of `elementwise`
        for factors in terms:
            if beside_a_result or blocks <= 20 or not values:  # one slope for two sums, or one for each
                vectors = lax.optimization_barrier(vectors)
            values.append(cut.sum(jnp.broadcast_to(value(factors, arrays, vectors), shape)))
        # Without the barrier XLA merges the two levels again.
        values = lax.optimization_barrier(values)
        if blocks <= 20 or pieces > 1:  # the next kernel adds so few on its way; and features may be split
            return [v.sum(tuple(range(v.ndim - 1))) for v in values]
        values = [v.reshape(-1, v.shape[-1]) for v in values]
        return jnp.split(jnp.concatenate(values, axis=1).sum(0), len(values))  # one kernel, not one for each

    # A plan outlives the trace, so it holds no array.
    leaves = jax.tree.leaves(arrays)
    reads, static = len(leaves), is_static(*leaves)
    shape: Any = jnp.broadcast_shapes(*(a.shape for a in leaves))
    channels_last = static and over and over == tuple(range(len(shape) - 1)) and 0 not in shape

    def plan(program: Program):
        if program.runs_on("cpu"):
            return one_by_one
        if program.runs_on(*GPU):
            known = channels_last and program.pieces > 0
            cut = best_cut(shape, program.pieces, of_warps=beside_a_result) if known else None
            return functools.partial(in_blocks, cut, program.pieces) if cut and cut.number(shape) > 1 else together
        return None

    return planned(meaning, plan)(arrays, vectors)


class Cut(NamedTuple):
    """Where an array [..., C] is cut into blocks of rows: before `axis` between any two rows, along it into so many."""

    axis: int
    pieces: int
    """the partitioner may cut the axis here; no block lies on both sides, so that no piece moves"""
    parts: int
    """of each piece, the last one filled up where it is smaller"""

    def number(self, shape: tuple[int, ...]) -> int:
        """Blocks of an array of that shape."""
        return math.prod(shape[: self.axis]) * self.pieces * self.parts

    def sum(self, v: jax.Array) -> jax.Array:
        """[..., n, ..., C] -> [..., pieces, parts, C], of each block."""
        axis = self.axis + 1
        v = v.reshape(*v.shape[: self.axis], self.pieces, -1, *v.shape[axis:])
        if missing := -v.shape[axis] % self.parts:
            v = jnp.pad(v, [(0, missing if a == axis else 0) for a in range(v.ndim)])
        v = v.reshape(*v.shape[:axis], self.parts, -1, *v.shape[axis + 1 :])
        return v.sum(tuple(range(axis + 1, v.ndim - 1)))


def best_cut(shape: tuple[int, ...], pieces: int, *, of_warps: bool = False) -> Cut:
    """Into which blocks of rows XLA:GPU should sum an array [..., C] that is cut into so many pieces along any axes.

    In one go, wide and short arrays are summed by too few threads, and with a slope in front of the sum operands are
    written to memory first. Two levels, the first of about 128 blocks of 8 to 64 rows, have neither. `of_warps`: a
    block of less than a warp of 32 rows becomes a loop instead of a reduction, which cannot write a second result on
    its way; where the sums of larger blocks still keep a GPU busy, they are larger.
    """
    rows, cuts = math.prod(shape[:-1]), _cuts(shape, pieces)
    if of_warps and (large := _of_warps(shape, cuts)):
        return large
    wanted = -(-rows // min(max(rows // 128, 8), 64))
    # Launches are the time: the next kernel adds what up to 20 blocks leave.
    few = rows <= (512 if len(shape) == 2 else 256) and not of_warps
    if few:
        wanted = min(wanted, max(16, -(-rows // 26)))  # a block of a warp of 32 rows would be a kernel of its own
    cut = next(c for c in cuts if c.number(shape) >= wanted)
    if cut.number(shape) <= (20 if few else 2 * wanted):
        return cut
    parts = -(-wanted // cut._replace(parts=1).number(shape))
    return cut._replace(parts=parts)


def _cuts(shape: tuple[int, ...], pieces: int) -> list[Cut]:
    """All into equal blocks, the fewest first."""
    cuts = [Cut(a, g, p) for a, n in enumerate(shape[:-1]) for g in [math.gcd(n, pieces)] for p in _divisors(n // g)]
    return sorted(cuts, key=lambda cut: cut.number(shape))


def _of_warps(shape: tuple[int, ...], cuts: list[Cut]) -> Cut | None:
    """The one with most blocks of at least a warp each, where those keep a GPU busy."""
    rows = math.prod(shape[:-1])
    fit = [c for c in cuts if rows >= 32 * c.number(shape) and c.number(shape) * shape[-1] >= 12288]
    return fit[-1] if fit else None


def _divisors(n: int) -> list[int]:
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def apart(values: Any) -> Any:
    """A tree of values as others than those that it is made of: what follows from both shall not be stored for both."""

    def plan(program: Program):
        return lax.optimization_barrier if program.runs_on("cpu", *GPU) else None

    return planned(lambda values: values, plan)(values)


def slope_point(z: jax.Array, y: jax.Array) -> jax.Array:
    """`z`; or `y`, where the slope of an activation is the same at its output y as at its input z.

    On a TPU a convolution's epilogue then reads y, which is in memory anyway, instead of x and the residual.
    """
    return planned(lambda z, y: z, lambda program: (lambda z, y: y) if program.runs_on("tpu") else None)(z, y)


def written_first(value: jax.Array) -> jax.Array:
    """A result that is summed, and that another result is made of: which pass writes it.

    On a GPU that of the sums, where their blocks have a warp of rows each: 28 bytes per element of float32 backward
    with a residual. Others cannot write on their way, so the pass to the other result writes both: 32, and one kernel
    less than a pass of its own, which a CPU makes.
    """
    static, shape = is_static(value), value.shape

    def plan(program: Program):
        if program.runs_on("cpu"):
            return lax.optimization_barrier
        known = program.runs_on(*GPU) and static and 0 not in shape and program.pieces > 0
        return lax.optimization_barrier if known and _of_warps(shape, _cuts(shape, program.pieces)) else None

    return planned(lambda value: value, plan)(value)


def beside(computed: jax.Array, written: jax.Array) -> jax.Array:
    """One of two equal arrays, to be summed: `computed` from what it is made of, or `written` by a pass before.

    On a CPU sums of what is computed move 46 bytes per element of bfloat16 with a residual, forward and backward, and
    of what is written 30.
    """

    def plan(program: Program):
        return (lambda computed, written: written) if program.runs_on("cpu") else None

    return planned(lambda computed, written: computed, plan)(computed, written)
