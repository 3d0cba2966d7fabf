"""How a module that is not one of the known batch norms reports the moments with which it normalized."""

import sys
from typing import Any

from jaxbn._core import checks, rules
from jaxbn._core.types import Moments
from jaxbn._models import notes


def report_moments(module: Any, moments: Moments) -> bool:
    """Reports the moments of a batch from inside a linen or nnx module that normalizes with functions.

    A module that calls `jaxbn.batch_norm`, or a formula of its own, and keeps 'mean' and 'var' in `batch_stats` works
    with `jaxbn.recalibrate`, `jaxbn.collect_moments` and gradient accumulation once it calls this. The batch norms of
    Flax and jaxbn do not need it.

    Args:
      module: the module itself, which has variables (linen: in the collection 'batch_stats'; nnx: `nnx.BatchStat`)
        'mean' [C] and 'var' [C]. For gradient accumulation in nnx it has a `momentum` too.
      moments: `jaxbn.Moments` of what entered it, over all devices, with count [] or [C], mean [C] and var [C].

    Returns:
      Whether the moments are being collected. If so, the module must not update its running statistics.

    Raises:
      TypeError: `module` is not a linen or nnx module, or `moments` is not a `jaxbn.Moments`.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxbn
      >>> from jaxbn import report_moments
      >>> class Norm(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x, train):
      ...         params, stats = jaxbn.init(x.shape[-1])
      ...         stats = {k: self.variable("batch_stats", k, lambda v=v: v) for k, v in stats.items()}
      ...         old = {k: v.value for k, v in stats.items()}
      ...         moments = jaxbn.batch_moments(x)
      ...         taken = report_moments(self, moments)
      ...         if not train:
      ...             return jaxbn.normalize(params, x, old["mean"], old["var"])
      ...         if not taken and not self.is_initializing():
      ...             for k, v in jaxbn.update_batch_stats(old, moments, momentum=0.99).items():
      ...                 stats[k].value = v
      ...         return jaxbn.normalize(params, x, moments.mean, moments.var)
      >>> x = jnp.array([[1.0], [3.0]])
      >>> variables = Norm().init(jax.random.key(0), x, True)
      >>> def forward(variables, x):
      ...     return Norm().apply(variables, x, True, mutable=["batch_moments", "batch_stats"])
      >>> jaxbn.recalibrate(forward, variables, [x])["batch_stats"]["mean"].tolist()
      [2.0]
    """
    if not isinstance(moments, Moments):
        raise TypeError(f"`moments` must be jaxbn.Moments(count, mean, var), got {type(moments).__name__}.")
    mean = checks.check_array(moments.mean, "moments.mean")
    moments = Moments(*rules.check_moments(moments, {"mean": mean}))
    linen, nnx = sys.modules.get("flax.linen"), sys.modules.get("flax.nnx")
    if linen is not None and isinstance(module, linen.Module):
        return _of_linen(module, moments)
    if nnx is not None and isinstance(module, nnx.Module):
        from jaxbn._models.moments_nnx import hand_in

        return hand_in(module, moments)
    raise TypeError(f"`module` must be a flax.linen.Module or a flax.nnx.Module, got {type(module).__name__}.")


def _of_linen(module: Any, moments: Moments) -> bool:
    from jaxbn._models import moments_linen
    from jaxbn._models.linen_scopes import MOMENTS, check_moments_reach, hidden_from

    noted = notes.current()
    if module.is_initializing():
        return False
    if noted is None:
        check_moments_reach(module)
        given = module.has_variable(MOMENTS, "count")
        if hidden_from(module, MOMENTS) or not (given or hidden_from(module, "batch_stats")):
            return False
        noted = notes.Notes()
    moments_linen.hand_in(module, moments, moments_linen.written(module), noted)
    return True
