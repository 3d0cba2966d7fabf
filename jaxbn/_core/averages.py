"""Averages of the running statistics whose momentum depends on the number of updates so far."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def of_count(schedule: Callable[[jax.Array], Any], count: jax.Array) -> jax.Array:
    """A schedule of one count [], for a count [] or [C]."""
    values = jax.vmap(lambda n: jnp.asarray(schedule(n)))
    return values(count.reshape(-1)).reshape(count.shape)


def debiased(momentum: float) -> "Debiased":
    """A momentum that makes the running statistics an exponential average without the bias of its start.

    The n-th update, counted from 0, weighs the old statistics with m (1 - m^n) / (1 - m^(n+1)). The first batch
    replaces them, whatever they were. After n batches they are the mean of these, with weights m^(n-1), ..., m, 1.
    Adam corrects for the start at the time of use, which gives the same; here the statistics are right as they stand.

    Args:
      momentum: m, in [0, 1): the weight of the old value in the long run. Instead of m = 1 use `None`, the plain
        average.

    Returns:
      A hashable callable of the number of updates, for the argument or field `momentum` of every batch norm of jaxbn.

    Raises:
      ValueError: `momentum` is not in [0, 1).
      TypeError: `momentum` is not a number that is known at trace time.

    References:
      Kingma & Ba 2015, "Adam: a method for stochastic optimization", section 3.

    Example:
      >>> import jax, jax.numpy as jnp, jaxbn, jaxbn.linen, jaxbn.nnx
      >>> from flax import nnx
      >>> x = jnp.array([[1.0], [3.0]])
      >>> params, batch_stats = jaxbn.init(1, use_count=True)
      >>> momentum = jaxbn.debiased(0.99)
      >>> _, batch_stats = jaxbn.batch_norm(params, batch_stats, x, use_running_average=False, momentum=momentum)
      >>> batch_stats["mean"].tolist(), batch_stats["count"].item()
      ([2.0], 1)
      >>> layer = jaxbn.linen.BatchNorm(use_running_average=False, momentum=momentum)
      >>> variables = layer.init(jax.random.key(0), x)
      >>> _, updates = layer.apply(variables, x, mutable=["batch_stats"])
      >>> updates["batch_stats"]["mean"].tolist()
      [2.0]
      >>> layer = jaxbn.nnx.BatchNorm(1, momentum=momentum, rngs=nnx.Rngs(0))
      >>> y = layer(x)
      >>> layer.mean[...].tolist()
      [2.0]
    """
    if isinstance(momentum, bool) or not isinstance(momentum, float | int):
        raise TypeError(f"`momentum` must be a number known at trace time, got {momentum!r}.")
    if not 0 <= momentum < 1:
        raise ValueError(
            f"`momentum` must be in [0, 1), got {momentum!r}; momentum=None of a batch norm is the plain average."
        )
    return Debiased(float(momentum))


@dataclasses.dataclass(frozen=True)
class Debiased:
    """What `jaxbn.debiased` returns: the momentum of the update that follows `count` others."""

    momentum: float
    """in the long run"""

    def __call__(self, count: jax.Array) -> jax.Array:
        """The momentum [] float32 of the next update, for a count [] of those before."""
        return self.weights(count)[0]

    def weights(self, count: jax.Array, dtype: DTypeLike = jnp.float32) -> tuple[jax.Array, jax.Array]:
        """Those of the old and the new statistics, in the shape of the counts, each to all digits of that dtype."""
        count = jnp.asarray(count).astype(dtype)
        if self.momentum == 0:
            return jnp.zeros_like(count), jnp.ones_like(count)
        # expm1: 1 - m^n would lose its digits where m is near 1.
        rate = jnp.asarray(math.log(self.momentum), dtype)
        whole = jnp.expm1((count + 1) * rate)
        return jnp.asarray(self.momentum, dtype) * jnp.expm1(count * rate) / whole, jnp.expm1(rate) / whole
