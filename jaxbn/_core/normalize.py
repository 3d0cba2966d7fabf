"""The normalization itself, given a mean and a variance: one multiply-add an element, its tangent and its transpose.

References: Ioffe & Szegedy 2015, "Batch normalization", algorithm 1 and section 3 (gamma is `scale`, beta is `bias`).
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxbn._core.axes import expand, reduction_axes
from jaxbn._core.linear import linear
from jaxbn._core.moments import counts, known_tangents
from jaxbn._core.numbers import zero_unless
from jaxbn._sync import mapped_axes as sync
from jaxbn._sync.sharding import stack
from jaxbn._xla.passes import apart, beside, elementwise, slope_point, sums, written_first

SLOPE_AT_OUTPUT = (jax.nn.relu, jax.nn.leaky_relu)
"""Activations whose slope at their output is that at their input."""


class Affine(NamedTuple):
    """How to normalize; static."""

    axes: tuple[int, ...]
    """feature axes, canonical"""
    epsilon: float
    dtype: jnp.dtype
    """of the output"""
    activation: Callable[[jax.Array], jax.Array] | None = None
    """elementwise function of the pre-activation, or None"""


class Inputs(NamedTuple):
    """What an element is computed from: [..., C], or what broadcasts to it. In the place of a tangent, its tangent."""

    x: Any
    mask: Any = None
    residual: Any = None


class Vectors(NamedTuple):
    """What a channel is shifted and multiplied by, of the rank of x: y = (x - centre[0] - ...) * multiplier + bias."""

    centre: tuple[jax.Array, ...]
    multiplier: jax.Array
    bias: jax.Array | None


def multiplier(scale: jax.Array | None, var: jax.Array, epsilon: float) -> jax.Array:
    """scale / sqrt(var + epsilon), [C]: the one number that batch norm multiplies a channel by."""
    inverse = lax.rsqrt(var + jnp.asarray(epsilon, var.dtype))
    return inverse if scale is None else scale * inverse.astype(scale.dtype)


def _live(values: jax.Array, like: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`values`, and zero where `like` is not finite and does not count: a NaN would outlive its weight of zero."""
    return values if mask is None else zero_unless(counts(mask) | jnp.isfinite(like), values)


def _centred(inputs: Inputs, vectors: Vectors) -> jax.Array:
    """x - mean, the parts of the mean one after the other: at a large offset one float would round it."""
    x = _live(inputs.x, inputs.x, inputs.mask).astype(vectors.centre[0].dtype)
    for part in vectors.centre:
        x = x - part
    return x


def _pre_activation(inputs: Inputs, vectors: Vectors) -> jax.Array:
    z = _centred(inputs, vectors) * vectors.multiplier
    z = z if vectors.bias is None else z + vectors.bias
    if inputs.residual is None:
        return z
    residual = inputs.residual
    if residual.dtype != z.dtype:
        # Or XLA:GPU keeps the wider value that the block before has, too: in bfloat16 2.7 activations instead of 2.2.
        residual = apart(residual)
    return z + _live(residual, residual, inputs.mask).astype(z.dtype)


def _output(affine: Affine, inputs: Inputs, vectors: Vectors) -> jax.Array:
    z = _pre_activation(inputs, vectors)
    return (z if affine.activation is None else affine.activation(z)).astype(affine.dtype)


def _slope(affine: Affine, inputs: Inputs, vectors: Vectors, dz: jax.Array, *, transposed: bool = False) -> jax.Array:
    """activation'(z) * dz, in the dtype of dz."""
    activation = affine.activation
    if activation is None:
        return dz
    z = _pre_activation(inputs, vectors)
    if inputs.residual is not None and activation in SLOPE_AT_OUTPUT:
        # In the dtype of y, as the residual's cotangent is anyway: one array for both and for the sums.
        z = slope_point(z.astype(affine.dtype), _output(affine, inputs, vectors))
        return jax.jvp(activation, (z,), (dz.astype(affine.dtype),))[1].astype(dz.dtype)

    def f(z):
        return activation(z).astype(dz.dtype)

    if transposed and jnp.iscomplexobj(z):
        return jax.vjp(f, z)[1](dz)[0]
    return jax.jvp(f, (z,), (dz,))[1]


def _vectors(affine: Affine, scale, bias, centre, var, ndim: int) -> Vectors:
    """In the dtype of the computation, which is that of `centre`, expanded to the rank of x."""
    a = multiplier(scale, var, affine.epsilon).astype(centre[0].dtype)
    return jax.tree.map(lambda v: expand(v, affine.axes, ndim), Vectors(centre, a, bias))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def apply_affine(affine: Affine, scale, bias, centre, var, inputs: Inputs) -> jax.Array:
    """activation((x - mean) * multiplier + bias + residual), where the mean is the sum of the parts in `centre`."""
    vectors = _vectors(affine, scale, bias, centre, var, inputs.x.ndim)
    return elementwise(functools.partial(_output, affine), inputs, vectors)


@functools.partial(apply_affine.defjvp, symbolic_zeros=True)
def _apply_affine_jvp(affine, primals, tangents):
    y = apply_affine(affine, *primals)
    dscale, dbias, dcentre, dvar, dinputs = known_tangents(tangents)
    wide = primals[2][0].dtype
    dinputs = Inputs(
        *(None if t is None or f is None else t.astype(wide) for t, f in zip(dinputs, primals[4], strict=True))
    )
    dy = affine_tangent(affine, primals, (dscale, dbias, add(*dcentre), dvar, dinputs._replace(mask=None)))
    return y, jnp.zeros_like(y) if dy is None else dy


def affine_tangent(affine: Affine, primals, tangents) -> jax.Array | None:
    """The tangent of y, where those of x and of the residual are in the dtype of the computation; None is zero.

    With inverse = 1 / sqrt(var + epsilon) and the multiplier a = scale * inverse, an element has
      dz = a dx + (x - mean) k + c + dresidual,    dy = activation'(z) dz,
    and a channel k = dscale * inverse - a * inverse^2 * dvar / 2 and c = dbias - a * dmean.
    """
    scale, bias, centre, var, inputs = primals
    dscale, dbias, dmean, dvar, dinputs = tangents
    wide, ndim = centre[0].dtype, inputs.x.ndim
    # Apart from the vectors of the forward pass, or XLA would store the slope there for this one.
    vectors = apart(_vectors(affine, scale, bias, centre, var, ndim))
    inverse = multiplier(None, var, affine.epsilon)
    a = multiplier(scale, var, affine.epsilon).astype(wide)
    k = add(
        None if dscale is None else dscale * inverse.astype(wide),
        None if dvar is None else a * (inverse * inverse * dvar * -0.5).astype(wide),
    )
    c = add(dbias, None if dmean is None else -a * dmean)
    of_channels = None
    if k is not None or c is not None:
        pair = stack(*(jnp.zeros_like(a) if v is None else v for v in (k, c)))
        # As one array, so that its transpose, a sum over devices, is one collective.
        of_channels = tuple(expand(v, affine.axes, ndim) for v in sync.as_varying_as(pair, inputs.x))
    if of_channels is None and dinputs.x is None and dinputs.residual is None:
        return None

    # What reverse mode calls later holds no array but those that it is given.
    has_channels, has_x, has_residual = (v is not None for v in (of_channels, dinputs.x, dinputs.residual))
    over = reduction_axes(affine.axes, ndim)

    def tangent(known, tangents):
        of_channels, dinputs = tangents

        def of_element(arrays, vectors):
            (inputs, dinputs), (vectors, of_channels) = arrays, vectors
            dz: Any = None
            if dinputs.x is not None:
                dz = vectors.multiplier * _live(dinputs.x, inputs.x, inputs.mask)
            if of_channels is not None:
                k, c = of_channels
                dz = add(dz, _centred(inputs, vectors) * k + c)
            if dinputs.residual is not None:
                dz = add(dz, _live(dinputs.residual, inputs.residual, inputs.mask))
            return _slope(affine, inputs, vectors, dz).astype(affine.dtype)

        return elementwise(of_element, (known[0], dinputs), (known[1], of_channels))

    def transpose(known, dy):
        """g = activation'(z) dy; k gets sum (x - mean) g, c gets sum g, x gets a g, and the residual gets g."""
        inputs, vectors = known

        def g(arrays, vectors):
            return _slope(affine, arrays[0], vectors, arrays[1].astype(wide), transposed=True)

        dk_dc = dx = dresidual = None
        if has_residual:

            def to_residual(arrays, vectors):
                return g(arrays, vectors).astype(arrays[0].residual.dtype)

            dresidual = written_first(elementwise(to_residual, (inputs, dy), vectors))
        if has_channels:

            def summed(arrays, vectors):
                *given, dresidual = arrays
                of_element = g(given, vectors)
                return of_element if dresidual is None else beside(of_element, dresidual.astype(wide))

            dk_dc = sums(
                [(lambda arrays, vectors: _centred(arrays[0], vectors), summed), summed],
                (inputs, dy, dresidual),
                vectors,
                over,
                beside_a_result=has_residual,
                cheap=affine.activation is None,
            )
            dk_dc = tuple(expand(v, affine.axes, ndim) for v in dk_dc)
        if has_x:

            def to_x(arrays, vectors):
                return vectors.multiplier * _live(g(arrays, vectors), arrays[0].x, arrays[0].mask)

            def from_residual(arrays, vectors):
                inputs, dresidual = arrays
                return vectors.multiplier * _live(dresidual.astype(wide), inputs.x, inputs.mask)

            if dresidual is None:
                dx = elementwise(to_x, (inputs, dy), vectors)
            else:
                dx = elementwise(from_residual, (inputs._replace(residual=None), dresidual), vectors)
        if dresidual is not None:  # x and the channels get what a residual that is not finite does not
            dresidual = _live(dresidual, inputs.residual, inputs.mask).astype(wide)
        return dk_dc, Inputs(dx, None, dresidual)

    return linear(tangent, transpose, (inputs, vectors), (of_channels, dinputs))


def add(*terms: jax.Array | None) -> Any:
    """Sum of the terms that are not None; None where all are."""
    known = [t for t in terms if t is not None]
    return functools.reduce(operator.add, known) if known else None
