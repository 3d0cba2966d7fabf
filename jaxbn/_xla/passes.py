"""What the compiler must not share between two passes over an array, so that it does not write it to memory.

XLA keeps a value that several kernels use. Here such values (x - mean, a slope, a wider copy of x) cost less to compute
again than to write and read, and a barrier hides that they are the same. Barriers change no number.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxbn._sync.mapped_axes import as_varying_as
from jaxbn._xla.program import program_fits


def fresh(x: jax.Array, vectors: Any) -> tuple[jax.Array, Any]:
    """`x` and a tree of [C] vectors, as if nobody else read them: for another pass over `x`."""
    return apart(x, lax.optimization_barrier(vectors))


def apart(x: jax.Array, vectors: Any) -> tuple[jax.Array, Any]:
    """The same for another sum of the same pass.

    On a GPU or TPU such sums are one kernel and may share all they want. On a CPU every sum is a kernel of its own:
    what two of them share is written to memory, be it the conversion of a bfloat16 x.
    """
    vectors = jax.tree.map(lambda v: as_varying_as(v, x), vectors)
    return lax.cond(program_fits("cpu"), lax.optimization_barrier, lambda both: both, (x, vectors))


def narrow_sum(terms: list[jax.Array], dtype) -> jax.Array:
    """Sum of the terms, in `dtype`. The transpose hands the cotangent to each term.

    On a CPU it is handed on before it is widened, for the reason above; forward mode then rounds each term and not
    their sum.
    """

    def on_cpu(terms):
        total = terms[-1].astype(dtype)
        for term in terms[-2::-1]:
            total = term.astype(dtype) + lax.optimization_barrier(total)
        return total

    def elsewhere(terms):
        return functools.reduce(operator.add, terms).astype(dtype)

    if len(terms) == 1 or terms[0].dtype == jnp.dtype(dtype):
        return elsewhere(terms)
    return lax.cond(program_fits("cpu"), on_cpu, elsewhere, terms)


def nothing_kept(rule: Callable) -> Callable:
    """A rule of derivatives of which only the arguments are kept for its transpose: x and [C] vectors."""
    return jax.checkpoint(rule, policy=jax.checkpoint_policies.nothing_saveable, prevent_cse=False)


def known_tangents(tangents: Any) -> Any:
    """The tree of tangents with None for those that are known to be zero."""

    def is_zero(tangent):
        return isinstance(tangent, SymbolicZero)

    return jax.tree.map(lambda t: None if is_zero(t) else t, tangents, is_leaf=is_zero)
