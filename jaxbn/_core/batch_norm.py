"""The public functions: what they take, what they return, and what they check."""

from typing import Unpack

import jax
from jax.typing import ArrayLike

from jaxbn._core import rules
from jaxbn._core.layer import Layer
from jaxbn._core.normalize import Inputs
from jaxbn._core.options import (
    BatchOptions,
    NormalizeOptions,
    Options,
    TrainOptions,
    check,
    check_affine,
    check_batch,
    takes,
)
from jaxbn._core.step import moments_of, normalized, step, train
from jaxbn._core.types import ArraysByName, BatchStats, Moments


@takes(Options)
def batch_norm(
    params: ArraysByName,
    batch_stats: ArraysByName,
    x: ArrayLike,
    *,
    use_running_average: bool | jax.Array,
    **options: Unpack[Options],
) -> tuple[jax.Array, BatchStats]:
    """Normalizes `x` with the statistics of the batch, or with the running ones, and returns it with the new state.

    Args:
      params: {'scale': [C], 'bias': [C]}; either key may be absent and is not used then.
      batch_stats: {'mean': [C], 'var': [C]} and perhaps 'count' [C] int32, as `jaxbn.init` makes them; with `domain`
        [D, C] each.
      x: [..., C] float or complex. The feature axis or axes may be anywhere: see `axis`.
      use_running_average: False in training: normalize with the batch and update the state. True in evaluation:
        normalize with `batch_stats` and return it as it is. A boolean array [], traced or not, puts both into one
        program, each with its own results and derivatives; it must be the same on all devices of `axis_name`.
      axis: the feature axis or axes.
      momentum: weight of the old statistics, in [0, 1]: a number, a traced scalar, a callable of a channel's count []
        of updates so far, or `None` for the exact cumulative average. The last two need `batch_stats['count']`. A
        Python number is part of the program: outside `jit`, each new one compiles it again, and an array does not.
      epsilon: added to the variance, >= 0, in the unit of the variance; a number known at trace time.
      dtype: dtype of `y`. None means that of `x`.
      mask: boolean (True counts) or non-negative weights; broadcasts to `x`. It is a constant: no gradient flows into
        it. Values that it leaves out are normalized like the rest (a non-finite one as if it were 0) and have no effect
        on anything else.
      axis_name: mapped axis or axes (of `vmap`, `pmap` or `shard_map`) over which the batch is split.
      axis_index_groups: a partition of the indices of that axis. Each group is a batch of its own.
      virtual_batch_size: number of examples in a virtual ("ghost") batch. Consecutive chunks of that many examples,
        along the first axis that is not a feature axis, are normalized separately.
      renorm: `jaxbn.Renorm(r_max, d_max)`, batch renormalization: in training the running statistics normalize, as far
        as its limits allow.
      domain: which of D domains the batch is from, each with running statistics of its own: an integer in [0, D), or
        an integer array [], traced or not. A tuple of K different integers says that the batch consists of K equal
        parts, one after the other along the first axis that is not a feature axis, each from a domain of its own and
        normalized by itself. With `axis_name`, what each device holds consists of these parts, so interleave the
        domains before the batch is split; an index must be the same on all devices. `scale` and `bias` may be [D, C]
        too. A traced index out of range gives NaN, and the state stays.
      use_fast_variance: False takes the exact mean first and then the variance about it. This costs one more read of
        `x` and, if the batch is split, one more collective.
      unbiased: whether the running variance is divided by `count - 1`, PyTorch's convention.
      activation: applied to the result in the same pass: 'relu', 'leaky_relu', 'relu6', 'silu', 'gelu', 'tanh',
        'sigmoid', or an elementwise callable.
      residual: [..., C], of the shape of `x` and the dtype of `y`; added before the activation.

    Returns:
      `y` of the shape of `x`, and `batch_stats` with the keys, shapes and dtypes of the old one. A channel without any
      example is normalized with the running statistics and keeps them; one that is not finite keeps them too.

    Raises:
      ValueError, TypeError: an argument breaks one of the rules above. The message names the argument, the rule and
        what it got.

    References:
      Ioffe & Szegedy 2015, "Batch normalization", algorithms 1 and 2, section 3; Hoffer et al. 2017, section 3, for
      virtual batches; Ioffe 2017, "Batch renormalization", section 3, for `renorm`; Xie et al. 2020, "Adversarial
      examples improve image recognition", section 4, and Chang et al. 2019, "Domain-specific batch normalization for
      unsupervised domain adaptation", section 3, for `domain`.

    Example:
      >>> import jax.numpy as jnp, jaxbn
      >>> params, batch_stats = jaxbn.init(2)
      >>> x = jnp.array([[0.0, 5.0], [2.0, 5.0]])
      >>> y, batch_stats = jaxbn.batch_norm(params, batch_stats, x, use_running_average=False, momentum=0.9)
      >>> y.round(3).tolist(), batch_stats["mean"].round(3).tolist()
      ([[-1.0, 0.0], [1.0, 0.0]], [0.10000000149011612, 0.5])
    """
    y, _, batch_stats = step(params, batch_stats, x, options, use_running_average=use_running_average)
    return y, batch_stats


@takes(TrainOptions)
def normalize_batch(
    params: ArraysByName, batch_stats: ArraysByName, x: ArrayLike, **options: Unpack[TrainOptions]
) -> tuple[jax.Array, Moments]:
    """The training half of `batch_norm`: returns the moments of the batch instead of the new state.

    For gradient accumulation: merge the moments of all microbatches of a step with `jaxbn.merge_moments`, and update
    the running statistics once with `jaxbn.update_batch_stats`. The arguments are those of `jaxbn.batch_norm`;
    `batch_stats` is only read.

    Returns:
      `y` of the shape of `x`, and the `jaxbn.Moments` of the whole batch, even if it is split over devices or into
      virtual batches. With `domain` they are [D, C], and empty for the domains that the batch is not from.

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
    static, arrays = check(params, batch_stats, x, options, training=True)
    return train(static, arrays)


@takes(NormalizeOptions)
def normalize(
    params: ArraysByName, x: ArrayLike, mean: ArrayLike, var: ArrayLike, **options: Unpack[NormalizeOptions]
) -> jax.Array:
    """activation((x - mean) * scale / sqrt(var + epsilon) + bias + residual), in one pass over `x`.

    Args:
      params: {'scale': [C], 'bias': [C]}; either key may be absent and is not used then.
      x: [..., C] float or complex.
      mean: [C], in the unit of `x`.
      var: [C] float, in the squared unit of `x`.
      axis: the feature axis or axes of `x`.
      epsilon: added to the variance, >= 0.
      dtype: dtype of the result. None means that of `x`.
      activation: a name ('relu', 'silu', ...) or an elementwise callable.
      residual: [..., C], of the shape of `x` and the dtype of the result.

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
    reduction, x, _ = check_batch(x, {"axis": options.get("axis", -1)})
    mean, var = rules.check_statistics(mean, var, x, reduction.axes)
    affine, scale, bias, inputs = check_affine(params, x, (mean,), reduction.axes, options)
    return normalized(affine, Layer(scale, bias, mean, var), inputs)


@takes(BatchOptions)
def batch_moments(x: ArrayLike, *, pivot: ArrayLike | None = None, **options: Unpack[BatchOptions]) -> Moments:
    """Count, mean and variance of each channel of a batch, however it is split.

    Args:
      x: [..., C] float or complex.
      axis: the feature axis or axes.
      mask: boolean (True counts) or non-negative weights; broadcasts to `x`; a constant for derivatives.
      axis_name: mapped axis or axes over which the batch is split.
      axis_index_groups: a partition of the indices of that axis. Each group is a batch of its own.
      use_fast_variance: False takes the exact mean first and then the variance about it, for one more read of `x`.
      pivot: [C], a value near the mean, such as the running mean. It is a hint, used where one from the data would cost
        more: the result does not depend on it beyond rounding.

    Returns:
      `Moments`: count [] (or [C], where the mask differs between channels), mean [C], var [C], at least float32.
      Without any example all three are 0.

    Raises:
      ValueError, TypeError: an argument breaks one of the rules above.

    References:
      Ioffe & Szegedy 2015, "Batch normalization", algorithm 1; Chan, Golub & LeVeque 1983, "Algorithms for computing
      the sample variance", for the shift.

    Example:
      >>> import jax.numpy as jnp, jaxbn
      >>> moments = jaxbn.batch_moments(jnp.array([[1.0], [3.0], [9.0]]), mask=jnp.array([[True], [True], [False]]))
      >>> moments.count.item(), moments.mean.tolist(), moments.var.tolist()
      (2.0, [2.0], [1.0])
    """
    reduction, x, mask = check_batch(x, options)
    if pivot is not None:
        pivot = rules.check_vector("pivot", pivot, x, reduction.axes)
    return moments_of(reduction, None, Inputs(x, mask), pivot, None)
