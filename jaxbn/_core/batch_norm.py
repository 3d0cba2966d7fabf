"""Batch norm: moments, normalization and the running statistics, put together."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxbn._core import checks
from jaxbn._core.activations import check_activation
from jaxbn._core.axes import expand_mask, feature_axes, is_split, reduction_axes
from jaxbn._core.layer import one_batch
from jaxbn._core.merge import Reduction, accumulator, merge_sums
from jaxbn._core.normalize import Affine, normalize
from jaxbn._core.state import update_batch_stats
from jaxbn._core.types import (
    Activation,
    Axes,
    AxisIndexGroups,
    AxisName,
    BatchStats,
    Moments,
    Momentum,
    Params,
    promote,
)
from jaxbn._sync.mapped_axes import check_axis_name, check_groups
from jaxbn._xla.program import program_fits


def batch_norm(
    params: Params,
    batch_stats: BatchStats,
    x: jax.Array,
    *,
    use_running_average: bool,
    axis: Axes = -1,
    momentum: Momentum = 0.99,
    epsilon: float = 1e-5,
    dtype=None,
    mask: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisIndexGroups | None = None,
    virtual_batch_size: int | None = None,
    use_fast_variance: bool = True,
    unbiased: bool = False,
    activation: Activation | None = None,
    residual: jax.Array | None = None,
) -> tuple[jax.Array, BatchStats]:
    """Normalizes `x` with the statistics of the batch, or with the running ones, and returns it with the new state.

    Args:
      params: {'scale': [C], 'bias': [C]}; a key that is absent is not used.
      batch_stats: {'mean': [C], 'var': [C]} and perhaps 'count' [], as `jaxbn.init` makes them.
      x: [..., C] float or complex, the feature axis or axes anywhere.
      use_running_average: False in training: normalize with the batch and update the state. True in evaluation:
        normalize with `batch_stats` and return it as it is.
      axis: the feature axis or axes.
      momentum: weight of the old statistics, in [0, 1]: a number, a traced scalar, a callable of
        `batch_stats['count']`, or `None` for the exact cumulative average.
      epsilon: added to the variance, > 0, in its unit.
      dtype: of `y`; that of `x` where None.
      mask: boolean (True counts) or non-negative weights, broadcasts to `x`. A constant: no gradient flows into it.
        What it leaves out is normalized like the rest (a non-finite value as if it were 0) and changes nothing else.
      axis_name: mapped axis or axes (of `vmap`, `pmap`, `shard_map`) that hold the rest of the batch.
      axis_index_groups: a partition of the indices of that axis; each group is a batch of its own.
      virtual_batch_size: consecutive chunks of that many examples are normalized by themselves (ghost batch norm);
        examples lie along the first axis that is not a feature axis.
      use_fast_variance: False reads `x` once more for its exact mean before the variance, for one collective more.
      unbiased: whether the running variance is divided by `count - 1`, PyTorch's convention.
      activation: applied to the result in the same pass: 'relu', 'leaky_relu', 'relu6', 'silu', 'gelu', 'tanh',
        'sigmoid', or an elementwise callable.
      residual: of the shape of `x` and the dtype of `y`, added before the activation.

    Returns:
      `y` of the shape of `x`, and `batch_stats` with the keys, shapes and dtypes of the old one. A channel without any
      example is normalized with the running statistics and keeps them; one that is not finite keeps them too.

    Raises:
      ValueError, TypeError: an argument breaks one of the rules above; the message names it, the rule and what came.

    References:
      Ioffe & Szegedy 2015, "Batch normalization", algorithms 1 and 2, section 3; Hoffer et al. 2017, section 3, for
      virtual batches.

    Example:
      >>> import jax.numpy as jnp, jaxbn
      >>> params, batch_stats = jaxbn.init(2)
      >>> x = jnp.array([[0.0, 5.0], [2.0, 5.0]])
      >>> y, batch_stats = jaxbn.batch_norm(params, batch_stats, x, use_running_average=False, momentum=0.9)
      >>> y.round(3).tolist(), batch_stats["mean"].round(3).tolist()
      ([[-1.0, 0.0], [1.0, 0.0]], [0.10000000149011612, 0.5])
    """
    checks.check_static_bool(use_running_average, "use_running_average")
    if use_running_average:
        checks.check_batch_stats(batch_stats)
        y = normalize(
            params, x, batch_stats["mean"], batch_stats["var"],
            axis=axis, epsilon=epsilon, dtype=dtype, activation=activation, residual=residual,
        )  # fmt: skip
        return y, batch_stats
    checks.check_batch_stats(batch_stats)
    checks.check_momentum(momentum, batch_stats)
    y, moments = normalize_batch(
        params, batch_stats, x,
        axis=axis, epsilon=epsilon, dtype=dtype, mask=mask,
        axis_name=axis_name, axis_index_groups=axis_index_groups, virtual_batch_size=virtual_batch_size,
        use_fast_variance=use_fast_variance, activation=activation, residual=residual,
    )  # fmt: skip
    return y, update_batch_stats(batch_stats, moments, momentum=momentum, unbiased=unbiased)


def normalize_batch(
    params: Params,
    batch_stats: BatchStats,
    x: jax.Array,
    *,
    axis: Axes = -1,
    epsilon: float = 1e-5,
    dtype=None,
    mask: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisIndexGroups | None = None,
    virtual_batch_size: int | None = None,
    use_fast_variance: bool = True,
    activation: Activation | None = None,
    residual: jax.Array | None = None,
) -> tuple[jax.Array, Moments]:
    """The training half of `batch_norm`, with the moments of the batch instead of the new state.

    For gradient accumulation: merge the moments of a step's microbatches with `jaxbn.merge_moments`, and commit them
    once with `jaxbn.update_batch_stats`. The arguments are those of `jaxbn.batch_norm`; `batch_stats` is read only.

    Returns:
      `y` of the shape of `x`, and the `jaxbn.Moments` of the batch: of all of it, where it is split over devices or
      virtual batches.

    Raises:
      ValueError, TypeError: as `jaxbn.batch_norm`.

    Example:
      >>> import jax.numpy as jnp, jaxbn
      >>> params, batch_stats = jaxbn.init(1)
      >>> _, first = jaxbn.normalize_batch(params, batch_stats, jnp.array([[1.0], [3.0]]))
      >>> _, second = jaxbn.normalize_batch(params, batch_stats, jnp.array([[5.0]]))
      >>> moments = jaxbn.merge_moments(first, second)
      >>> moments.count.item(), moments.mean.item()
      (3.0, 3.0)
    """
    x = checks.check_input(x)
    axes = feature_axes(axis, x.ndim)
    scale, bias = checks.check_params(params, x, axes)
    checks.check_batch_stats(batch_stats, x, axes)
    dtype = checks.check_output_dtype(dtype, x, scale, bias)
    names = check_axis_name(axis_name)
    reduction = Reduction(axes, names, check_groups(axis_index_groups, names), not use_fast_variance)
    return _train(
        scale,
        bias,
        batch_stats["mean"],
        batch_stats["var"],
        x,
        checks.check_mask(mask, x),
        checks.check_residual(residual, x, dtype),
        reduction=reduction,
        chunk=checks.check_virtual_batch_size(virtual_batch_size, names, x, axes),
        epsilon=checks.check_epsilon(epsilon),
        dtype=dtype,
        activation=check_activation(activation, x, dtype),
    )


@functools.partial(jax.jit, inline=True, static_argnames=("reduction", "chunk", "epsilon", "dtype", "activation"))
def _train(scale, bias, mean, var, x, mask, residual, *, reduction, chunk, epsilon, dtype, activation):
    wide = promote(accumulator(x.dtype), dtype)
    scale, bias = (None if v is None else v.astype(wide) for v in (scale, bias))
    batch = functools.partial(one_batch, reduction, Affine(reduction.axes, epsilon, dtype, activation))
    arrays = (scale, bias, mean, var, x, mask, residual)
    if chunk is None:
        y, pivot, moments = batch(*arrays)
        return y, moments._replace(mean=pivot + moments.mean)
    over_chunks = functools.partial(_over_chunks, batch, reduction_axes(reduction.axes, x.ndim)[0], chunk)
    if is_split(x):
        # Chunks may span devices, which a type with explicit sharding cannot say: leave it to the partitioner.
        sharding = jax.typeof(x).sharding
        over_chunks = jax.sharding.auto_axes(over_chunks, out_sharding=(sharding, NamedSharding(sharding.mesh, P())))
    return over_chunks(*arrays)  # pyright: ignore[reportCallIssue]


def _over_chunks(batch, axis: int, chunk: int, scale, bias, mean, var, x, mask, residual):
    """Virtual batches: `batch` for each chunk by itself, and the moments of all of them."""

    def split(v):
        if v is None or v.shape[axis] == 1:
            return v, None
        return v.reshape(*v.shape[:axis], -1, chunk, *v.shape[axis + 1 :]), axis

    mask = None if mask is None else expand_mask(mask, x.ndim)
    (chunks, a), (mask, b), (residual, c) = split(x), split(mask), split(residual)
    over_batches = jax.vmap(batch, in_axes=(None, None, None, None, a, b, c), out_axes=(axis, 0, 0))
    y, pivots, moments = over_batches(scale, bias, mean, var, chunks, mask, residual)
    # About a common pivot, one sum merges them: one collective where the chunks lie on several devices.
    common = jnp.where(program_fits(), pivots[0], mean.astype(pivots.dtype))
    about_common = moments._replace(mean=(pivots - common[None]) + moments.mean)
    merged = merge_sums(about_common, lambda sums: [s.sum(0) for s in sums])
    return y.reshape(x.shape), merged._replace(mean=common + merged.mean)
