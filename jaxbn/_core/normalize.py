"""The normalization itself, given a mean and a variance: one multiply-add an element, with its closed derivative."""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxbn._core import checks
from jaxbn._core.activations import check_activation
from jaxbn._core.axes import broadcast_like, expand, feature_axes, spread
from jaxbn._core.merge import accumulator, real_dtype
from jaxbn._core.types import Activation, Axes, Params, promote
from jaxbn._sync import mapped_axes as sync
from jaxbn._xla.passes import fresh, known_tangents, narrow_sum, nothing_kept


class Affine(NamedTuple):
    """How to normalize; static."""

    axes: tuple[int, ...]
    """feature axes, canonical"""
    epsilon: float
    dtype: jnp.dtype
    """of the output"""
    activation: Callable[[jax.Array], jax.Array] | None = None
    """elementwise function of the pre-activation, or None"""


def multiplier(scale: jax.Array | None, var: jax.Array, epsilon: float) -> jax.Array:
    """scale / sqrt(var + epsilon), [C]: the one number that batch norm multiplies a channel by.

    References: Ioffe & Szegedy 2015, algorithm 1 (gamma is `scale`).
    """
    inverse = lax.rsqrt(var + jnp.asarray(epsilon, var.dtype))
    return inverse if scale is None else scale * inverse.astype(scale.dtype)


def normalize(
    params: Params,
    x: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    *,
    axis: Axes = -1,
    epsilon: float = 1e-5,
    dtype=None,
    activation: Activation | None = None,
    residual: jax.Array | None = None,
) -> jax.Array:
    """activation((x - mean) * scale / sqrt(var + epsilon) + bias + residual), in one pass over `x`.

    Args:
      params: {'scale': [C], 'bias': [C]}; a key that is absent is not used.
      x: [..., C] float or complex.
      mean: [C], in the unit of `x`.
      var: [C] float, in its square.
      axis: the feature axis or axes of `x`.
      epsilon: added to the variance, > 0.
      dtype: of the result; that of `x` where None.
      activation: a name ('relu', 'silu', ...) or an elementwise callable.
      residual: of the shape of `x` and the dtype of the result.

    Returns:
      [..., C], of the shape of `x`.

    Raises:
      ValueError, TypeError: an argument breaks one of the rules above.

    References:
      Ioffe & Szegedy 2015, "Batch normalization", algorithm 2, steps 10 and 11.

    Example:
      >>> import jax.numpy as jnp, jaxbn
      >>> params, _ = jaxbn.init(1)
      >>> jaxbn.normalize(params, jnp.array([[7.0]]), jnp.array([5.0]), jnp.array([4.0])).round(3).tolist()
      [[1.0]]
    """
    x = checks.check_input(x)
    axes = feature_axes(axis, x.ndim)
    scale, bias = checks.check_params(params, x, axes)
    mean, var = jnp.asarray(mean), jnp.asarray(var)
    checks.check_vectors({"mean": mean, "var": var}, "", x, axes)
    dtype = checks.check_output_dtype(dtype, x, scale, bias, mean)
    return _normalize(
        scale,
        bias,
        x,
        mean,
        var,
        checks.check_residual(residual, x, dtype),
        axes=axes,
        epsilon=checks.check_epsilon(epsilon),
        dtype=dtype,
        activation=check_activation(activation, x, dtype),
    )


@functools.partial(jax.jit, inline=True, static_argnames=("axes", "epsilon", "dtype", "activation"))
def _normalize(scale, bias, x, mean, var, residual, *, axes, epsilon, dtype, activation):
    wide = promote(accumulator(x.dtype), dtype)
    scale, bias, mean = (None if v is None else v.astype(wide) for v in (scale, bias, mean))
    affine = Affine(axes, epsilon, dtype, activation)
    return apply_affine(affine, scale, bias, x, (mean,), var.astype(real_dtype(wide)), residual)


def _subtract(x: jax.Array, parts, axes: tuple[int, ...]) -> jax.Array:
    """x - parts[0] - ..., [C] each, one after the other: at a large offset, one float would round the mean."""
    for part in parts:
        x = x - expand(part, axes, x.ndim)
    return x


class _Vectors(NamedTuple):
    """What a channel is multiplied by and shifted by: y = (x - centre) * multiplier + bias; [C] each."""

    multiplier: jax.Array
    bias: jax.Array | None
    centre: tuple[jax.Array, ...]


def _pre_activation(affine: Affine, vectors: _Vectors, x, residual) -> jax.Array:
    y = _subtract(x.astype(vectors.multiplier.dtype), vectors.centre, affine.axes)
    y = y * expand(vectors.multiplier, affine.axes, x.ndim)
    if vectors.bias is not None:
        y = y + expand(vectors.bias, affine.axes, x.ndim)
    return y if residual is None else y + residual.astype(y.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def apply_affine(affine: Affine, scale, bias, x, centre, var, residual) -> jax.Array:
    """activation((x - mean) * multiplier + bias + residual), where the mean is the sum of the parts in `centre`."""
    x, vectors = fresh(x, _Vectors(multiplier(scale, var, affine.epsilon), bias, centre))
    y = _pre_activation(affine, vectors, x, residual)
    return (y if affine.activation is None else affine.activation(y)).astype(affine.dtype)


@functools.partial(apply_affine.defjvp, symbolic_zeros=True)
def _apply_affine_jvp(affine, primals, tangents):
    y = apply_affine(affine, *primals)
    dy = nothing_kept(functools.partial(affine_tangent, affine))(primals, known_tangents(tangents))
    return y, jnp.zeros_like(y) if dy is None else dy


def affine_tangent(affine: Affine, primals, tangents) -> jax.Array | None:
    """multiplier * dx + (x - mean) * k + c, with [C] vectors k and c, times the slope of the activation.

    Its transpose is the backward pass: the sums of dy * (x - mean) and of dy, then one multiply-add an element.
    """
    scale, bias, x, centre, var, residual = primals
    dscale, dbias, dx, dcentre, dvar, dresidual = tangents
    inverse = multiplier(None, var, affine.epsilon)
    # The barrier tells these vectors from those of the forward pass, which shall not be stored for this one.
    vectors = lax.optimization_barrier(_Vectors(multiplier(scale, var, affine.epsilon), bias, centre))
    a, wide = vectors.multiplier, vectors.multiplier.dtype
    k = _add(
        None if dscale is None else dscale * inverse.astype(wide),
        None if dvar is None else a * (inverse * inverse * dvar * -0.5).astype(wide),
    )
    dmean = _add(*dcentre)
    c = _add(dbias, None if dmean is None else -a * dmean)

    terms = [None if dx is None else expand(a, affine.axes, x.ndim) * dx.astype(wide)]
    if dresidual is not None:
        # The transpose writes the residual's cotangent in its first pass; behind the barrier, the second pass reads
        # that instead of y's cotangent and the residual.
        with_residual = _add(*terms, dresidual.astype(wide)).astype(dresidual.dtype)
        terms = [lax.optimization_barrier(with_residual).astype(wide)]
    if k is not None or c is not None:
        k, c = (jnp.zeros_like(a) if v is None else v for v in (k, c))
        k, c = spread(_as_varying_pair(k, c, x), x, affine.axes, beside_a_result=dresidual is not None)
        own_x, vectors = fresh(x, vectors)
        terms += [_subtract(own_x.astype(wide), vectors.centre, affine.axes) * k, c]
    terms = [broadcast_like(t, x) for t in terms if t is not None]
    if affine.activation is not None:
        if dresidual is None and k is not None:
            # Two sums in the transpose: with one slope they fuse, beside the residual's cotangent with one each.
            terms[-2:] = [_add(*terms[-2:])]
        # Otherwise each term takes its slope from x by itself: XLA would store one that they share.
        for i, term in enumerate(terms):
            own_x, vectors = fresh(x, vectors)
            z = _pre_activation(affine, vectors, own_x, residual)
            terms[i] = jax.jvp(affine.activation, (z,), (term,))[1]
    return narrow_sum(terms, affine.dtype) if terms else None


def _add(*terms: jax.Array | None) -> Any:
    """Sum of the terms that are not None; None where all are."""
    known = [t for t in terms if t is not None]
    return functools.reduce(operator.add, known) if known else None


def _as_varying_pair(k, c, x):
    """k and c, marked as varying where x does, as one array: its transpose is then one collective and not two."""
    return tuple(sync.as_varying_as(jnp.stack([k, c]), x))
