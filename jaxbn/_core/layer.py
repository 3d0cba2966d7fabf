"""One batch in training: its moments and its normalized values, with the derivative of both together.

Apart they are `moments.shifted_moments` and `normalize.apply_affine`, each with a derivative of its own. Together, what
`x` gets from both is added before it is rounded to the dtype of `x`, and values under a mask are cleaned on the way
without a copy of `x` that is kept.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxbn._core.axes import expand_mask
from jaxbn._core.merge import Reduction, real_dtype
from jaxbn._core.moments import MOMENTS, moments_tangent, shifted_moments, tangent_moments
from jaxbn._core.normalize import Affine, affine_tangent, apply_affine
from jaxbn._core.types import promote
from jaxbn._xla.passes import known_tangents, nothing_kept


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def one_batch(reduction: Reduction, affine: Affine, scale, bias, mean, var, x, mask, residual):
    """`y`, and a pivot with the moments of `x - pivot`; a channel without examples takes the running `mean`, `var`."""
    pivot, moments = shifted_moments(reduction, x, mask, mean)
    return _normalized(affine, pivot, moments, scale, bias, mean, var, x, mask, residual), pivot, moments


@functools.partial(one_batch.defjvp, symbolic_zeros=True)
def _one_batch_jvp(reduction, affine, primals, tangents):
    _, _, mean, _, x, mask, _ = primals
    # Under their name the moments stand between x and y: who keeps them computes y again in one pass.
    pivot, moments = checkpoint_name(shifted_moments(reduction, x, mask, mean), MOMENTS)
    y = _normalized(affine, pivot, moments, *primals)

    @nothing_kept
    def tangent(primals, pivot, moments, tangents):
        scale, bias, mean, var, x, mask, residual = primals
        dscale, dbias, running_dmean, running_dvar, dx, dresidual = tangents
        dmean = dvar = None
        if dx is not None:
            dx = _clean(x, dx, mask).astype(pivot.dtype)
            dmean, dvar = moments_tangent(reduction, x, mask, pivot, moments, dx)
        centre, batch_var = _statistics(pivot, moments, mean, var, mask, affine)
        of_batch = dmean, dvar
        if mask is not None:
            empty = moments.count == 0
            dmean, dvar = (_where(empty, r, b) for r, b in ((running_dmean, dmean), (running_dvar, dvar)))
        dmean, dvar = (None if t is None else t.astype(v.dtype) for t, v in ((dmean, centre[0]), (dvar, batch_var)))
        x = _clean(x, x, mask)
        primals = scale, bias, x, centre, batch_var, residual
        return affine_tangent(affine, primals, (dscale, dbias, dx, (dmean,), dvar, dresidual)), *of_batch

    scale, bias, mean, var, x, _, residual = known_tangents(tangents)
    dy, dmean, dvar = tangent(primals, pivot, moments, (scale, bias, mean, var, x, residual))
    dy = jnp.zeros_like(y) if dy is None else dy
    return (y, pivot, moments), (dy, jnp.zeros_like(pivot), tangent_moments(moments, dmean, dvar))


def _normalized(affine: Affine, pivot, moments, scale, bias, mean, var, x, mask, residual):
    centre, batch_var = _statistics(pivot, moments, mean, var, mask, affine)
    return apply_affine(affine, scale, bias, _clean(x, x, mask), centre, batch_var, residual)


def _statistics(pivot, moments, mean, var, mask, affine: Affine):
    """The mean, in two parts, and the variance to normalize with."""
    centre, batch_var = (pivot, moments.mean), moments.var
    if mask is not None:
        empty = moments.count == 0
        mean, var = mean.astype(pivot.dtype), var.astype(batch_var.dtype)
        centre = jnp.where(empty, mean, pivot), jnp.where(empty, jnp.zeros_like(mean), moments.mean)
        batch_var = jnp.where(empty, var, batch_var)
    wide = promote(pivot.dtype, affine.dtype)
    return tuple(part.astype(wide) for part in centre), batch_var.astype(real_dtype(wide))


def _clean(x, values, mask):
    """`values`, and zero where `x` is not finite and does not count: a NaN would outlive its weight of zero."""
    if mask is None:
        return values
    counts = expand_mask(mask, x.ndim).astype(bool)
    return jnp.where(counts | jnp.isfinite(x), values, jnp.zeros((), values.dtype))


def _where(condition, a, b):
    """`jnp.where` of tangents, None for zero."""
    if a is None and b is None:
        return None
    like = b if a is None else a
    a, b = (jnp.zeros_like(like) if v is None else v.astype(like.dtype) for v in (a, b))
    return jnp.where(condition, a, b)
