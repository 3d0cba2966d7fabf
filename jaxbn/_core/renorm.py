"""Batch renormalization: training that normalizes nearly as evaluation does, for batches that are small or not alike.

The normalized value x_hat becomes x_hat r + d, which is (x - running mean) / (running deviation) as long as the limits
allow. So the batch takes part through r and d alone, and these are constants for derivatives.

References: Ioffe 2017, "Batch renormalization: towards reducing minibatch dependence in batch-normalized models",
section 3.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxbn._core import checks
from jaxbn._core.averages import of_count
from jaxbn._core.types import BatchStats

Limit = float | Callable[[jax.Array], ArrayLike]


@dataclasses.dataclass(frozen=True)
class Renorm:
    """The limits of batch renormalization, for the argument or field `renorm` of every batch norm of jaxbn.

    In training the normalized value of a channel, x_hat = (x - batch mean) / (batch deviation), becomes x_hat r + d:
      - r = (batch deviation) / (running deviation), kept in [1 / r_max, r_max],
      - d = (batch mean - running mean) / (running deviation), kept in [-d_max, d_max].
    A deviation is sqrt(var + epsilon). r and d are constants for derivatives. With limits of 1 and 0 this is plain
    batch norm, which is how a warm-up begins. Evaluation is the same as without it.

    Args:
      r_max: a number, at least 1, or a callable of a channel's count [] int32 of updates so far, such as a schedule of
        optax, which needs `batch_stats['count']`.
      d_max: likewise, at least 0.

    Raises:
      ValueError, TypeError: a limit is not one of these.

    References:
      Ioffe 2017, "Batch renormalization: towards reducing minibatch dependence in batch-normalized models", section 3.

    Example:
      >>> import jax.numpy as jnp, jaxbn
      >>> params, batch_stats = jaxbn.init(1)
      >>> x = jnp.array([[1.0], [3.0]])
      >>> y, _ = jaxbn.batch_norm(params, batch_stats, x, use_running_average=False, renorm=jaxbn.Renorm())
      >>> bool(jnp.allclose(y, x, rtol=1e-4))  # x is within the limits of the running statistics, 0 and 1
      True
    """

    r_max: Limit = 3.0
    d_max: Limit = 5.0

    def __post_init__(self) -> None:
        for name, least in (("r_max", 1.0), ("d_max", 0.0)):
            checks.check_limit(getattr(self, name), name, least)

    @property
    def counts(self) -> bool:
        """Whether a limit is a schedule of the count."""
        return callable(self.r_max) or callable(self.d_max)


def needs_count(momentum: Any, renorm: Any) -> bool:
    """Whether the statistics count their updates."""
    return momentum is None or callable(momentum) or (isinstance(renorm, Renorm) and renorm.counts)


def limits_of(renorm: Renorm | None, batch_stats: BatchStats) -> tuple[jax.Array, jax.Array] | None:
    """r_max and d_max, [] or [C], of the next update."""
    if renorm is None:
        return None
    dtype = batch_stats["var"].dtype

    def value(limit: Any, least: float) -> jax.Array:
        v = of_count(limit, batch_stats["count"]) if callable(limit) else jnp.asarray(limit)
        return jnp.maximum(v.astype(dtype), jnp.asarray(least, dtype))

    return value(renorm.r_max, 1.0), value(renorm.d_max, 0.0)


def correction(epsilon: float, limits, centre, var, running_mean, running_var) -> tuple[jax.Array, jax.Array]:
    """r and d, [C] each, in the dtypes of `var` and of the parts of the mean in `centre`."""
    r_max, d_max = (v.astype(var.dtype) for v in limits)
    running_mean, running_var = running_mean.astype(centre[0].dtype), running_var.astype(var.dtype)
    plus = jnp.asarray(epsilon, var.dtype)
    r = jnp.clip(jnp.sqrt((var + plus) / (running_var + plus)), 1 / r_max, r_max)
    d = ((centre[0] - running_mean) + centre[1]) * lax.rsqrt(running_var + plus).astype(running_mean.dtype)
    if jnp.iscomplexobj(d):
        size = jnp.abs(d)
        far = size > d_max
        d = d * jnp.where(far, d_max / jnp.where(far, size, jnp.ones_like(size)), jnp.ones_like(size)).astype(d.dtype)
    else:
        d = jnp.clip(d, -d_max, d_max)
    return lax.stop_gradient((r.astype(running_mean.dtype), d))
