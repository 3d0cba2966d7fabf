"""A linear map that is written together with its transpose.

`linear(forward, transpose, known, tangents)` is `forward(known, tangents)`. Reverse mode calls `transpose(known,
cotangents)`, so that the backward pass stands beside the forward one, and of everything that `forward` computes only
`known` is kept for it. What `jax.custom_derivatives.linear_call` has not, this has: vmap, and a second derivative.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from jaxbn._sync.sharding import split_as

_linear_p = Primitive("linear_with_transpose")
_linear_p.multiple_results = True


def linear(forward: Callable, transpose: Callable, known: Any, tangents: Any) -> Any:
    """`forward(known, tangents)`, linear in the tangents; `transpose(known, cotangents)` gives theirs.

    All are pytrees; a tangent that is None has None for a cotangent.
    """
    known, known_tree = jax.tree.flatten(known)
    tangents, tree = jax.tree.flatten(tangents)
    n = len(known)

    def flat_forward(*args):
        return forward(known_tree.unflatten(args[:n]), tree.unflatten(args[n:]))

    jaxpr, shapes = jax.make_jaxpr(flat_forward, return_shape=True)(*known, *tangents)
    out_tree = jax.tree.structure(shapes)

    def flat_transpose(*args):
        return jax.tree.leaves(transpose(known_tree.unflatten(args[:n]), out_tree.unflatten(args[n:])))

    out = _linear_p.bind(*known, *tangents, forward=jaxpr, transpose=flat_transpose, n=n)
    return out_tree.unflatten(out)


@_linear_p.def_impl
def _evaluate(*args, forward, **_):
    return jaxpr_as_fun(forward)(*args)


_linear_p.def_abstract_eval(lambda *_, forward, **__: forward.out_avals)
mlir.register_lowering(_linear_p, mlir.lower_fun(_evaluate, multiple_results=True))


def _jvp(primals, tangents, *, forward, transpose, n):
    """Linear in the last arguments; in the first n, `known`, the derivative of what `forward` computes."""
    out = _linear_p.bind(*primals, forward=forward, transpose=transpose, n=n)
    known, linear_args = primals[:n], primals[n:]
    terms = []
    if any(type(t) is not ad.Zero for t in tangents[n:]):
        moving = map(ad.instantiate_zeros, tangents[n:])
        terms.append(_linear_p.bind(*known, *moving, forward=forward, transpose=transpose, n=n))
    moved = [i for i in range(n) if type(tangents[i]) is not ad.Zero]
    if moved:

        def of_moved(*values):
            args = list(known)
            for i, value in zip(moved, values, strict=True):
                args[i] = value
            return jaxpr_as_fun(forward)(*args, *linear_args)

        terms.append(jax.jvp(of_moved, [known[i] for i in moved], [tangents[i] for i in moved])[1])
    if not terms:
        return out, [ad.Zero.from_primal_value(o) for o in out]  # pyright: ignore[reportAttributeAccessIssue]
    return out, [functools.reduce(jnp.add, same) for same in zip(*terms, strict=True)]


def _transpose(cotangents, *args, forward, transpose, n):
    known = args[:n]
    cotangents = [ad.instantiate_zeros(c) for c in cotangents]
    wanted = [a.aval for a in args[n:]]

    def of_their_types(*args):
        # What was computed with vectors that are split over devices is split as they are.
        return [split_as(v, aval) for v, aval in zip(transpose(*args), wanted, strict=True)]

    backward = jax.make_jaxpr(of_their_types)(*known, *cotangents)
    # The transpose of the transpose is the map itself.
    out = _linear_p.bind(*known, *cotangents, forward=backward, transpose=jaxpr_as_fun(forward), n=n)
    return [None] * n + out


def _batch(args, dims, *, forward, transpose, n):
    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
    args = [a if d is None else jnp.moveaxis(a, d, 0) for a, d in zip(args, dims, strict=True)]
    args[n:] = [
        jnp.broadcast_to(a, (size, *a.shape)) if d is None else a for a, d in zip(args[n:], dims[n:], strict=True)
    ]
    axes = [None if d is None else 0 for d in dims[:n]]
    forward_all = jax.vmap(jaxpr_as_fun(forward), (*axes, *[0] * (len(args) - n)), axis_size=size)

    def transpose_all(*args):
        return jax.vmap(transpose, (*axes, *[0] * (len(args) - n)), axis_size=size)(*args)

    out = _linear_p.bind(*args, forward=jax.make_jaxpr(forward_all)(*args), transpose=transpose_all, n=n)
    return out, [0] * len(out)


ad.primitive_jvps[_linear_p] = _jvp
ad.primitive_transposes[_linear_p] = _transpose
batching.primitive_batchers[_linear_p] = _batch
