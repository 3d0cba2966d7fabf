"""One batch in training: its moments, its normalized values, and the derivative of both together.

Apart they are `moments.shifted_moments` and `normalize.apply_affine`, each with a derivative of its own. Together, what
`x` gets from both is added before it is rounded to the dtype of `x`. In bfloat16, for cotangents with a common part (1
+ 0.01 noise), the two nearly cancel: dx is off by 0.16 % of its size if rounded once, by 16 % if each is rounded.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxbn._core.moments import MOMENTS, known_tangents, moments_tangent, shifted_moments, tangent_moments
from jaxbn._core.normalize import Affine, Inputs, add, affine_tangent, apply_affine
from jaxbn._core.numbers import promote, real_dtype, zero_unless
from jaxbn._core.renorm import correction
from jaxbn._core.types import Moments, Reduction
from jaxbn._sync.sharding import where


class Layer(NamedTuple):
    """What a layer holds, [C] each. In the place of a tangent, its tangent."""

    scale: Any
    bias: Any
    mean: Any
    """running mean"""
    var: Any
    """running variance"""
    limits: Any = None
    """r_max and d_max, [] or [C] each, of batch renormalization, or None"""
    frozen: Any = None
    """[] bool, or None for False: the running statistics normalize, and the batch counts as empty"""


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def one_batch(reduction: Reduction, affine: Affine, layer: Layer, inputs: Inputs):
    """`y`, and a pivot with the moments of `x - pivot`; a channel without examples takes the running statistics."""
    pivot, moments = shifted_moments(reduction, inputs.x, inputs.mask, layer.mean)
    moments = _counted(layer, moments)
    centre, var = _statistics(affine, layer, pivot, moments, inputs)
    scale, bias, _ = _corrected(affine, layer, centre, var)
    return apply_affine(affine, scale, bias, centre, var, inputs), pivot, moments


@functools.partial(one_batch.defjvp, symbolic_zeros=True)
def _one_batch_jvp(reduction, affine, primals, tangents):
    layer, inputs = primals
    dlayer, dinputs = known_tangents(tangents)
    # Under their name the moments stand between x and y: who keeps them computes y again in one pass.
    pivot, moments = checkpoint_name(shifted_moments(reduction, inputs.x, inputs.mask, layer.mean), MOMENTS)
    moments = _counted(layer, moments)
    centre, var = _statistics(affine, layer, pivot, moments, inputs)
    scale, bias, of_scale = _corrected(affine, layer, centre, var)
    y = apply_affine(affine, scale, bias, centre, var, inputs)

    wide = centre[0].dtype
    dx, dresidual = (None if t is None else t.astype(wide) for t in (dinputs.x, dinputs.residual))
    dmean = dvar = None
    if dx is not None:
        # What is not finite in a frozen batch is no business of its other elements.
        counted = dx if layer.frozen is None else zero_unless(~layer.frozen, dx)
        counted = counted if jnp.iscomplexobj(pivot) else counted.real  # of a real x with a complex y
        dmean, dvar = moments_tangent(reduction, inputs.x, inputs.mask, pivot, moments, counted.astype(pivot.dtype))
    of_moments = tangent_moments(moments, dmean, dvar)
    if _may_be_empty(affine.axes, layer, inputs):
        empty = moments.count == 0
        dmean, dvar = _where(empty, dlayer.mean, dmean), _where(empty, dlayer.var, dvar)
    dmean, dvar = (None if t is None else t.astype(v.dtype) for t, v in ((dmean, centre[0]), (dvar, var)))
    dscale, dbias = dlayer.scale, dlayer.bias
    if of_scale is not None and dscale is not None:
        r, d = of_scale
        dscale, dbias = r * dscale, add(dbias, d * dscale)
    dy = affine_tangent(
        affine, (scale, bias, centre, var, inputs), (dscale, dbias, dmean, dvar, Inputs(dx, None, dresidual))
    )
    return (y, pivot, moments), (jnp.zeros_like(y) if dy is None else dy, jnp.zeros_like(pivot), of_moments)


def _counted(layer: Layer, moments: Moments) -> Moments:
    """The moments, of no example where the batch does not count."""
    return moments if layer.frozen is None else moments._replace(count=zero_unless(~layer.frozen, moments.count))


def _statistics(affine: Affine, layer: Layer, pivot, moments: Moments, inputs: Inputs):
    """The mean, in two parts, and the variance to normalize with, in the dtype of the computation."""
    centre, var = (pivot, moments.mean), moments.var
    if _may_be_empty(affine.axes, layer, inputs):
        empty = moments.count == 0
        running_mean, running_var = layer.mean.astype(pivot.dtype), layer.var.astype(var.dtype)
        centre = where(empty, running_mean, pivot), where(empty, jnp.zeros_like(running_mean), moments.mean)
        var = where(empty, running_var, var)
    wide = promote(pivot.dtype, affine.dtype)
    return tuple(part.astype(wide) for part in centre), var.astype(real_dtype(wide))


def _corrected(affine: Affine, layer: Layer, centre, var):
    """The scale, the bias, and what a change of the scale changes them by: r and d of batch renormalization, or None.

    x_hat r + d, scaled and shifted, is x_hat with the scale `r scale` and the bias `bias + d scale`.
    """
    if layer.limits is None:
        return layer.scale, layer.bias, None
    r, d = correction(affine.epsilon, layer.limits, centre, var, layer.mean, layer.var)
    if layer.scale is None:
        return r, add(layer.bias, d), (r, d)
    return r * layer.scale, add(layer.bias, d * layer.scale), (r, d)


def _may_be_empty(axes: tuple[int, ...], layer: Layer, inputs: Inputs) -> bool:
    """Whether a channel may have no example that counts."""
    sizes = (n for a, n in enumerate(inputs.x.shape) if a not in axes)
    return layer.frozen is not None or inputs.mask is not None or 0 in sizes


def _where(condition, a, b):
    """`where` of tangents, None for zero."""
    if a is None and b is None:
        return None
    like = b if a is None else a
    a, b = (jnp.zeros_like(like) if v is None else v.astype(like.dtype) for v in (a, b))
    return where(condition, a, b)
