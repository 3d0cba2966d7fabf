"""What the compiler must not share between two passes over an array, so that it does not write it to memory.

XLA keeps a value that several kernels use. Here such values (x - mean, a slope, a wider copy of x) cost less to compute
again than to write and read, and a barrier hides that they are the same. Barriers change no number.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxbn.program import program_fits
from jaxbn.sync import as_varying_as


def fresh(x: jax.Array, vectors: Any) -> tuple[jax.Array, Any]:
    """`x` and a tree of [C] vectors, as if nobody else read them.

    On a GPU or TPU it is enough to hide the vectors: what comes of x and them is then another value, and kernels that
    read x at once still share the read. On a CPU every sum is a kernel of its own, and even the conversion of a
    bfloat16 x would be shared through memory: there x hides with the vectors.
    """

    vectors = jax.tree.map(lambda v: as_varying_as(v, x), vectors)

    def on_cpu(x, vectors):
        return lax.optimization_barrier((x, vectors))

    def elsewhere(x, vectors):
        return x, lax.optimization_barrier(vectors)

    return lax.cond(program_fits("cpu"), on_cpu, elsewhere, x, vectors)


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
        return sum(terms[1:], start=terms[0]).astype(dtype)

    if len(terms) == 1 or terms[0].dtype == jnp.dtype(dtype):
        return elsewhere(terms)
    return lax.cond(program_fits("cpu"), on_cpu, elsewhere, terms)
