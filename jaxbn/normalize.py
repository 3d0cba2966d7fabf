"""The normalization itself, given a mean and a variance: one multiply-add an element, with its closed derivative."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxbn import checks, sync
from jaxbn.activations import check_activation
from jaxbn.axes import expand, feature_axes
from jaxbn.merge import accumulator, real_dtype
from jaxbn.types import Activation, Axes, Params


class Affine(NamedTuple):
    """How to normalize; static."""

    axes: tuple[int, ...]
    """feature axes, canonical"""
    epsilon: float
    dtype: jnp.dtype
    """of the output"""
    activation: object = None
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
        activation=check_activation(activation),
    )


@functools.partial(jax.jit, inline=True, static_argnames=("axes", "epsilon", "dtype", "activation"))
def _normalize(scale, bias, x, mean, var, residual, *, axes, epsilon, dtype, activation):
    return normalize_centred(scale, bias, x, (mean,), var, residual, axes, epsilon, dtype, activation)


def normalize_centred(scale, bias, x, centre, var, residual, axes, epsilon, dtype, activation) -> jax.Array:
    """`normalize` without its checks, with the mean as the sum of the parts in `centre`, in at least float32."""
    wide = jnp.promote_types(accumulator(x.dtype), dtype)
    scale, bias, *centre = (None if v is None else v.astype(wide) for v in (scale, bias, *centre))
    affine = Affine(axes, epsilon, dtype, activation)
    return apply_affine(affine, scale, bias, x, tuple(centre), var.astype(real_dtype(wide)), residual)


def _subtract(x: jax.Array, parts, axes: tuple[int, ...]) -> jax.Array:
    """x - parts[0] - parts[1] - ..., [C] each, one after the other: at a large offset, one float would round the mean."""
    for part in parts:
        x = x - expand(part, axes, x.ndim)
    return x


def _pre_activation(affine: Affine, scale, bias, x, centre, var, residual) -> jax.Array:
    y = _subtract(x.astype(centre[0].dtype), centre, affine.axes)
    y = y * expand(multiplier(scale, var, affine.epsilon), affine.axes, x.ndim)
    if bias is not None:
        y = y + expand(bias, affine.axes, x.ndim)
    return y if residual is None else y + residual.astype(y.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def apply_affine(affine: Affine, scale, bias, x, centre, var, residual) -> jax.Array:
    """activation((x - mean) * multiplier + bias + residual), where the mean is the sum of the parts in `centre`."""
    y = _pre_activation(affine, scale, bias, x, centre, var, residual)
    return (y if affine.activation is None else affine.activation(y)).astype(affine.dtype)


@functools.partial(apply_affine.defjvp, symbolic_zeros=True)
def _apply_affine_jvp(affine, primals, tangents):
    y = apply_affine(affine, *primals)
    tangents = jax.tree.map(
        lambda t: None if isinstance(t, SymbolicZero) else t, tangents, is_leaf=lambda t: isinstance(t, SymbolicZero)
    )

    # Nothing but x, the residual and [C] vectors is kept for the transpose.
    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable, prevent_cse=False)
    def tangent(primals, tangents):
        return _tangent(affine, primals, tangents)

    dy = tangent(primals, tangents)
    return y, jnp.zeros_like(y) if dy is None else dy.astype(y.dtype)


def _tangent(affine: Affine, primals, tangents) -> jax.Array | None:
    """multiplier * dx + (x - mean) * k + c, with [C] vectors k and c, times the slope of the activation."""
    scale, bias, x, centre, var, residual = primals
    dscale, dbias, dx, dcentre, dvar, dresidual = tangents
    wide = centre[0].dtype
    inverse = multiplier(None, var, affine.epsilon)
    a = multiplier(scale, var, affine.epsilon)
    k = _add(
        None if dscale is None else dscale * inverse,
        None if dvar is None else a * inverse * inverse * dvar * -0.5,
    )
    dmean = _add(*dcentre) if any(d is not None for d in dcentre) else None
    c = _add(dbias, None if dmean is None else -a * dmean)
    k, c = _as_varying_pair(k, c, x)
    expanded = functools.partial(expand, axes=affine.axes, ndim=x.ndim)
    terms = [
        None if dx is None else expanded(a) * dx.astype(wide),
        None if dresidual is None else dresidual.astype(wide),
        None if k is None else expanded(k) * _subtract(x.astype(wide), centre, affine.axes),
        None if c is None else jnp.broadcast_to(expanded(c), x.shape),
    ]
    dy = _add(*terms)
    if dy is None or affine.activation is None:
        return dy
    z = _pre_activation(affine, scale, bias, x, centre, var, residual)
    return jax.jvp(affine.activation, (z,), (dy,))[1]


def _add(*terms):
    """Sum of the terms that are not None; None where all are."""
    terms = [t for t in terms if t is not None]
    return functools.reduce(lambda a, b: a + b, terms) if terms else None


def _as_varying_pair(k, c, x):
    """k and c, marked as varying where x does, as one array: its transpose is then one collective and not two."""
    if k is None or c is None or k.dtype != c.dtype:
        return tuple(None if v is None else sync.as_varying_as(v, x) for v in (k, c))
    return tuple(sync.as_varying_as(jnp.stack([k, c]), x))
