"""One step of batch norm, put together: the rows of its state, the batch or its parts, what it returns and keeps."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxbn._core import checks, rules
from jaxbn._core.chunks import over_chunks, over_parts
from jaxbn._core.domains import in_rows, is_row, nan_unless_known, row_of
from jaxbn._core.layer import Layer, one_batch
from jaxbn._core.merge import Accumulated, merge_into
from jaxbn._core.moments import shifted_moments
from jaxbn._core.normalize import Affine, Inputs, apply_affine
from jaxbn._core.numbers import accumulator, promote, real_dtype
from jaxbn._core.options import Arrays, BatchOptions, Options, Static, check, check_batch
from jaxbn._core.renorm import Renorm, limits_of
from jaxbn._core.state import commit
from jaxbn._core.types import BatchStats, Domain, Moments, Reduction


def step(
    params,
    batch_stats,
    x,
    options: Options,
    *,
    use_running_average: bool | jax.Array,
    batch_moments: Accumulated | None = None,
) -> tuple[jax.Array, Accumulated | None, BatchStats]:
    """One call of a layer: y, and its state after it, of the tree and the dtypes of the state before it.

    In evaluation the state stays. In training the moments of the batch join `batch_moments`, those of the microbatches
    so far, where there are some; otherwise they move `batch_stats`. Where an array decides, evaluation is training
    with a batch that does not count.
    """
    chosen = checks.check_choice(use_running_average, "use_running_average")
    static, arrays = check(params, batch_stats, x, options, training=chosen is not True)
    if isinstance(chosen, jax.Array):
        arrays = arrays._replace(frozen=chosen)
    elif chosen:
        return _evaluate(static.affine, arrays._replace(momentum=None)), batch_moments, batch_stats
    if batch_moments is not None:
        rules.check_moments_so_far(batch_moments.mean, arrays.batch_stats)
        y, moments = train(static, arrays)
        return y, merge_into(batch_moments, moments), batch_stats
    y, batch_stats = _train_and_commit(static, arrays)
    return y, None, batch_stats


def _train(static: Static, arrays: Arrays) -> tuple[jax.Array, Moments]:
    """y, and the moments of the batch, [C], or [D, C] of every domain."""
    batch = functools.partial(one_batch, static.reduction, static.affine)
    if static.chunk is not None:
        batch = functools.partial(over_chunks, batch, static.reduction.axes, static.chunk)
    chosen, layer = _layer(static.affine, static.renorm, arrays)
    y, pivot, moments = _each_part(static.reduction.axes, chosen, batch)(layer, arrays.inputs)
    return y, _of_rows(chosen, pivot, moments)


train = jax.jit(_train, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _train_and_commit(static: Static, arrays: Arrays) -> tuple[jax.Array, BatchStats]:
    y, moments = _train(static, arrays)
    momentum = static.momentum if arrays.momentum is None else arrays.momentum
    return y, commit(arrays.batch_stats, moments, momentum, static.unbiased)


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(affine: Affine, arrays: Arrays) -> jax.Array:
    def batch(layer, inputs):
        return _normalized(affine, layer, inputs), (), ()

    chosen, layer = _layer(affine, None, arrays)
    return _each_part(affine.axes, chosen, batch)(layer, arrays.inputs)[0]


def _normalized(affine: Affine, layer: Layer, inputs: Inputs) -> jax.Array:
    """y, with the statistics that stand in the layer."""
    wide = promote(inputs.x.dtype, jnp.float32, affine.dtype)
    centre = (layer.mean.astype(wide),)
    return apply_affine(affine, layer.scale, layer.bias, centre, layer.var.astype(real_dtype(wide)), inputs)


normalized = jax.jit(_normalized, static_argnums=0)


def _layer(affine: Affine, renorm: Renorm | None, arrays: Arrays) -> tuple[jax.Array | None, Layer]:
    """Which rows of the state normalize, None without domains; and those, [C], or for each of K parts [K, C]."""
    scale, bias, stats, chosen = arrays.scale, arrays.bias, arrays.batch_stats, None
    if arrays.domain is not None:
        num_features, num_domains = len(affine.axes), len(stats["mean"])
        chosen = is_row(arrays.domain, num_domains)
        scale, bias, stats = jax.tree.map(
            lambda v: row_of(chosen, v) if v.ndim > num_features else v, (scale, bias, stats)
        )
        if scale is None:
            scale = jnp.ones((), promote(accumulator(arrays.inputs.x.dtype), affine.dtype))
        # If the domain is traced and out of range, y is NaN.
        scale = nan_unless_known(chosen, scale, num_features)
    return chosen, Layer(scale, bias, stats["mean"], stats["var"], limits_of(renorm, stats), arrays.frozen)


def _each_part(axes: tuple[int, ...], chosen: jax.Array | None, batch: Callable) -> Callable:
    """`batch`, of each part of the examples where they are from several domains."""
    if chosen is None or chosen.ndim == 1:
        return batch
    return functools.partial(over_parts, batch, axes, len(chosen))


def _of_rows(chosen: jax.Array | None, pivot: jax.Array, moments: Moments) -> Moments:
    """From moments about a pivot to those of the batch [C], or of every domain [D, C]."""
    moments = moments._replace(mean=pivot + moments.mean)
    return moments if chosen is None else in_rows(chosen, moments)


@functools.partial(jax.jit, static_argnums=(0, 1))
def moments_of(reduction: Reduction, num_domains: int | None, inputs: Inputs, hint, domain) -> Moments:
    """Those of the batch, [C], or of every domain, [D, C]."""

    def batch(_, inputs):
        return inputs.x, *shifted_moments(reduction, inputs.x, inputs.mask, hint)

    chosen = None if num_domains is None else is_row(domain, num_domains)
    _, pivot, moments = _each_part(reduction.axes, chosen, batch)((), inputs)
    return _of_rows(chosen, pivot, moments)


def moments_by_domain(x: ArrayLike, domain: Domain, num_domains: int, options: BatchOptions) -> Moments:
    """`batch_moments` [D, C], empty for the domains that the batch is not from."""
    reduction, x, mask = check_batch(x, options)
    chosen = rules.check_domain(domain, num_domains, x, reduction.axes)
    return moments_of(reduction, num_domains, Inputs(x, mask), None, chosen)
