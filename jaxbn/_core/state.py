"""The state of batch norm: how it starts, and how a batch moves it."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxbn._core import checks, rules
from jaxbn._core.averages import Debiased, of_count
from jaxbn._core.numbers import divide, promote, real_dtype, zero_unless
from jaxbn._core.types import ArraysByName, BatchStats, Moments, Momentum, Params
from jaxbn._sync.sharding import split_as, where


def init(
    num_features: int | tuple[int, ...],
    use_scale: bool = True,
    use_bias: bool = True,
    param_dtype: DTypeLike = jnp.float32,
    *,
    use_count: bool = False,
    num_domains: int | None = None,
    affine_per_domain: bool = False,
) -> tuple[Params, BatchStats]:
    """Parameters and running statistics of a new batch norm.

    Args:
      num_features: C, or one size for each feature axis, in the order of the axes.
      use_scale: whether there is a `scale` [C], ones.
      use_bias: whether there is a `bias` [C], zeros.
      param_dtype: floating or complex dtype of the parameters. The statistics are at least float32. The running mean is
        complex if `param_dtype` is.
      use_count: whether `batch_stats` counts its updates, which `momentum=None` and momentum schedules need.
      num_domains: D, for statistics of D domains, [D, C] each: see `domain` of `jaxbn.batch_norm`.
      affine_per_domain: whether scale and bias are [D, C] as well.

    Returns:
      `params`: {'scale': [C], 'bias': [C]}; `batch_stats`: {'mean': [C] zeros, 'var': [C] ones} and, with
      `use_count`, 'count' [C] int32 zeros. With `num_domains` the statistics are [D, C].

    Raises:
      ValueError: `num_features` is negative, `num_domains` is not positive, or `affine_per_domain` without it.
      TypeError: `num_features` is not an integer, or `param_dtype` is not floating or complex.

    Example:
      >>> import jax, jaxbn
      >>> params, batch_stats = jaxbn.init(3)
      >>> jax.tree.map(lambda v: v.tolist(), (params, batch_stats))  # doctest: +NORMALIZE_WHITESPACE
      ({'bias': [0.0, 0.0, 0.0], 'scale': [1.0, 1.0, 1.0]}, {'mean': [0.0, 0.0, 0.0], 'var': [1.0, 1.0, 1.0]})
    """
    shape = num_features if isinstance(num_features, tuple) else (num_features,)
    for n in shape:
        if not checks.is_integer(n):
            raise TypeError(f"`num_features` must be an integer or a tuple of integers, got {num_features!r}.")
        if n < 0:
            raise ValueError(f"`num_features` must not be negative, got {num_features!r}.")
    for name, value in (("use_scale", use_scale), ("use_bias", use_bias), ("use_count", use_count)):
        checks.check_static_bool(value, name)
    rules.check_num_domains(num_domains, affine_per_domain)
    checks.check_dtype(param_dtype, "param_dtype")
    dtype = jnp.dtype(param_dtype)
    wide = promote(dtype, jnp.float32)
    rows = shape if num_domains is None else (num_domains, *shape)
    of_params = rows if affine_per_domain else shape
    params = {}
    if use_scale:
        params["scale"] = jnp.ones(of_params, dtype)
    if use_bias:
        params["bias"] = jnp.zeros(of_params, dtype)
    batch_stats = {"mean": jnp.zeros(rows, wide), "var": jnp.ones(rows, real_dtype(wide))}
    if use_count:
        batch_stats["count"] = jnp.zeros(rows, jnp.int32)
    return params, batch_stats


def update_batch_stats(
    batch_stats: ArraysByName, moments: Moments, *, momentum: Momentum, unbiased: bool = False
) -> BatchStats:
    """The running statistics after one more batch: `momentum * old + (1 - momentum) * new`.

    A channel whose moments are not finite, or that has no example, keeps its statistics.

    Args:
      batch_stats: {'mean': [C], 'var': [C]} and perhaps 'count' [C] int32, the number of updates so far.
      moments: those of the batch, as `jaxbn.batch_moments` or `jaxbn.merge_moments` return them.
      momentum: weight of the old value, in [0, 1] (PyTorch's is one minus it): a number, a traced scalar, `None` for
        the exact cumulative average, or a callable of a channel's count []. The last two need the count.
      unbiased: whether the running variance is divided by `count - 1`, or by 1 if that is less (Bessel's correction,
        PyTorch's convention).

    Returns:
      New statistics with the keys, shapes and dtypes of the old ones.

    Raises:
      ValueError, TypeError: an argument breaks one of the rules above.

    Example:
      >>> import jax.numpy as jnp, jaxbn
      >>> _, batch_stats = jaxbn.init(1)
      >>> moments = jaxbn.batch_moments(jnp.array([[1.0], [3.0]]))
      >>> jaxbn.update_batch_stats(batch_stats, moments, momentum=0.5)["mean"].tolist()
      [1.0]
    """
    arrays = rules.check_batch_stats(batch_stats)
    momentum = rules.check_momentum(momentum, arrays)
    checks.check_static_bool(unbiased, "unbiased")
    rules.warn_of_half_precision(arrays)
    return commit(arrays, rules.check_moments(moments, arrays), momentum, unbiased)


def commit(batch_stats: BatchStats, moments: Moments, momentum: Momentum, unbiased: bool) -> BatchStats:
    """`update_batch_stats` without its checks."""
    count, mean, var = moments
    usable = (count > 0) & jnp.isfinite(mean) & jnp.isfinite(var)
    if unbiased:
        var = var * divide(count, jnp.maximum(count - 1, jnp.ones((), count.dtype)))
    weights = _weights(momentum, batch_stats)
    updated = dict(batch_stats)
    for name, value in {"mean": mean, "var": var}.items():
        old = batch_stats[name]
        wide = promote(old.dtype, jnp.float32)
        dtype = promote(wide, value.dtype)
        value = zero_unless(usable, value).astype(dtype)
        mixed = _mixed(old.astype(dtype), value, *(w.astype(real_dtype(dtype)).astype(dtype) for w in weights))
        updated[name] = split_as(where(usable, mixed.astype(old.dtype), old), old)
    if "count" in batch_stats:
        # At its largest value it stays: a wrapped one would be negative.
        steps = batch_stats["count"]
        more = (jnp.broadcast_to(usable, mean.shape) if steps.ndim else jnp.any(usable)) & (
            steps < jnp.iinfo(steps.dtype).max
        )
        updated["count"] = split_as(steps + more.astype(steps.dtype), steps)
    return updated


def _weights(momentum: Momentum, batch_stats: BatchStats) -> tuple[jax.Array, jax.Array]:
    """Those of the old and the new value, [] or [C] float, as wide as the statistics.

    Both have all their digits, unless the momentum came as an array: 1 - float32(0.999) is 1e-5 off.
    """
    dtype = promote(batch_stats["var"].dtype, jnp.float32)
    if momentum is None:  # the running statistics are the plain average of all batches
        count = batch_stats["count"].astype(dtype)
        return count / (count + 1), 1 / (count + 1)
    if isinstance(momentum, Debiased):
        return momentum.weights(batch_stats["count"], dtype)
    if callable(momentum):
        momentum = of_count(momentum, batch_stats["count"])
    if not hasattr(momentum, "dtype"):
        return jnp.asarray(momentum, dtype), jnp.asarray(1 - momentum, dtype)
    momentum = jnp.asarray(momentum)
    return momentum, 1 - momentum


def _mixed(old: jax.Array, new: jax.Array, of_old: jax.Array, of_new: jax.Array) -> jax.Array:
    """of_old * old + of_new * new, a step from the heavier: where the two values are equal, so is the result."""
    from_old, from_new = old + (of_new * new - of_new * old), new + (of_old * old - of_old * new)
    return where(of_old.real >= 0.5, from_old, from_new)
