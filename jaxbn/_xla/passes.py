"""How a pass over memory is written for XLA: `elementwise` and `sums`, and what keeps two passes apart.

XLA keeps a value that several kernels use. Here such values (x - mean, a slope, a wider copy of x) cost less to compute
again than to write and read, and a barrier hides that they are the same. Barriers change no number.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

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
) -> list[jax.Array]:
    """Each `f(arrays, vectors)`, or the product of several such factors, summed over axes: one read of each array.

    `beside_a_result`: what is summed is also written, by `elementwise`, and both are best one pass.
    """

    terms = [f if isinstance(f, tuple) else (f,) for f in fs]

    def value(factors, arrays, vectors):
        return functools.reduce(operator.mul, [f(arrays, vectors) for f in factors])

    def meaning(arrays, vectors):
        return [value(factors, arrays, vectors).sum(over) for factors in terms]

    def one_by_one(arrays, vectors):
        # On a CPU every sum is a kernel of its own: what it shared with others, or its factors, would be written to
        # memory. Equal barriers are merged, so each stands behind the last, and the first is that of `elementwise`.
        arrays, vectors = lax.optimization_barrier((arrays, vectors))
        found = []
        for factors in terms:
            values = []
            for f in factors:
                arrays, vectors = lax.optimization_barrier((arrays, vectors))
                values.append(f(arrays, vectors))
            found.append(functools.reduce(operator.mul, values).sum(over))
        return found

    def together(arrays, vectors):
        return meaning(arrays, lax.optimization_barrier(vectors))

    def in_rows(v):
        v = v.reshape(-1, v.shape[-1])
        return jnp.pad(v, ((0, -v.shape[0] % blocks), (0, 0))) if v.shape[0] % blocks else v

    def in_blocks(arrays, vectors):
        values = []
        vectors = lax.optimization_barrier(vectors) if beside_a_result else vectors  # not the barrier of the result
        for factors in terms:
            if beside_a_result or blocks <= 16 or not values:  # one slope for two sums, or one for each
                vectors = lax.optimization_barrier(vectors)
            values.append(value(factors, arrays, vectors))
        values = [in_rows(v).reshape(blocks, -1, v.shape[-1]).sum(1) for v in values]
        # Without the barrier XLA merges the two levels again.
        values = lax.optimization_barrier(values)
        if blocks <= 16:  # the next kernel adds so few on its way
            return [v.sum(0) for v in values]
        return jnp.split(jnp.concatenate(values, axis=1).sum(0), len(values))  # one kernel, not one for each

    leaves = jax.tree.leaves(arrays)
    shape: Any = jnp.broadcast_shapes(*(a.shape for a in leaves))
    blocks = num_blocks(shape, over, of_warps=beside_a_result) if is_static(*leaves) else 1
    rows = math.prod(shape[:-1])

    def plan(program: Program):
        if program.runs_on("cpu"):
            return one_by_one
        if program.runs_on(*GPU):
            whole = program.pieces > 0 and blocks % program.pieces == 0 and rows % blocks == 0
            fits = blocks > 1 and (whole or program.pieces == 1)
            return in_blocks if fits else together
        return None

    return planned(meaning, plan)(arrays, vectors)


def num_blocks(shape: tuple[int, ...], over: tuple[int, ...], *, of_warps: bool = False) -> int:
    """In how many blocks of rows XLA:GPU sums an array, 1 where it should sum it in one go.

    In one go, wide and short arrays are summed by too few threads, and with a slope in front of the sum operands are
    written to memory first. Two levels, the first of about 128 blocks of 8 to 64 rows, have neither. `of_warps`: a
    block of less than a warp of 32 rows becomes a loop instead of a reduction, which cannot write a second result on
    its way; where the sums of larger blocks still keep a GPU busy, they are larger.
    """
    rows, examples = math.prod(shape[:-1]), shape[0] if shape else 0
    if over != tuple(range(len(shape) - 1)) or rows == 0:
        return 1
    # Whole examples in a block, or whole blocks in an example: an array that is split by examples stays split.
    candidates = [b for b in _divisors(rows) if examples % b == 0 or b % examples == 0]
    size = min(max(rows // 128, 8), 64)
    if rows <= 256 and not of_warps:  # launches are the time: what up to 16 blocks leave is added by the next kernel
        return -(-rows // max(size, -(-rows // 16)))
    blocks = next(b for b in candidates if rows <= b * size)
    if blocks * size > 2 * rows:  # no divisor is near: the last block is filled up
        return -(-rows // size)
    larger = [b for b in candidates if rows // b >= 32 and b * shape[-1] >= 16384]
    return max(larger) if of_warps and larger else blocks


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
