"""Recalibration ("precise BN"): the exact statistics of a data set for every batch norm of a model."""

import functools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbn._core import checks
from jaxbn._core.merge import merge_moments
from jaxbn._core.state import update_batch_stats
from jaxbn._core.types import BatchStats, Moments
from jaxbn._models.find import Path, find_batch_norms, is_nnx, path_name, set_at
from jaxbn._tools.collect import Forward, collector
from jaxbn._tools.optional import load


def recalibrate(
    forward: Forward,
    model: Any,
    batches: Iterable[Any],
    *,
    sequential: bool = False,
    unbiased: bool = False,
    progress: bool = False,
) -> Any:
    """Sets the running statistics of every batch norm to those of a whole data set; parameters stay as they are.

    After averaging weights (SWA, EMA), for data of another domain (AdaBN), after fine-tuning, or because an average of
    momentum 0.99 lags. The moments of what enters each layer are merged over all batches, exactly, whatever the
    sizes, order, masks and devices of the batches.

    What enters a layer depends on how the layers below normalize, and that `forward` decides. In training mode they
    use the statistics of each batch, as they did when the weights were learned. In evaluation mode they use the running
    ones; with `sequential=True` those are recalibrated before: each pass over the data settles at least one layer more,
    until a pass changes nothing. Then each layer has the exact statistics of what it will see in evaluation.

    Args:
      forward: `forward(model, batch)`, run under `jax.jit`, as for `jaxbn.collect_moments`: with linen it returns what
        `apply(..., mutable=['batch_moments'])` returns, with nnx it calls the model, and a functional one returns
        `(y, moments)`.
      model: variables {'params': ..., 'batch_stats': ...}, or an nnx module.
      batches: pytrees of arrays. Equal shapes share one compiled program.
      sequential: read the batches again until nothing changes, at most once for each batch norm.
      unbiased: whether variances are divided by `count - 1`, PyTorch's convention.
      progress: show a progress bar (needs rich).

    Returns:
      New variables, or the nnx module itself, changed in place once everything has succeeded. A layer that `forward`
      does not reach, or a channel without any example, keeps its statistics. Where statistics have a `count`, it
      becomes the number of batches.

    Raises:
      ValueError: there is no batch or no example; a channel is not finite; `batches` can be read only once and
        `sequential` is set; or `forward` gives no moments. The model is unchanged.
      TypeError: `model` is neither variables nor an nnx module.

    References:
      Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3; Li et al. 2016, "Revisiting batch normalization
      for practical domain adaptation"; Izmailov et al. 2018, "Averaging weights leads to wider optima", section 3.2.

    Example:
      >>> import jax, jax.numpy as jnp, jaxbn, jaxbn.linen, jaxbn.nnx
      >>> from flax import nnx
      >>> batches = [jnp.array([[1.0], [3.0]]), jnp.array([[8.0]])]
      >>> model = jaxbn.linen.BatchNorm()
      >>> def forward(variables, x):
      ...     return model.apply(variables, x, use_running_average=False, mutable=["batch_moments"])
      >>> variables = model.init(jax.random.key(0), batches[0], use_running_average=False)
      >>> variables = jaxbn.recalibrate(forward, variables, batches)
      >>> variables["batch_stats"]["mean"].tolist()
      [4.0]

      With nnx, in place, and as a function:

      >>> model = jaxbn.nnx.BatchNorm(1, rngs=nnx.Rngs(0))
      >>> jaxbn.recalibrate(lambda model, x: model(x), model, batches).mean[...].tolist()
      [4.0]
      >>> def forward(variables, x):
      ...     return jaxbn.normalize_batch(variables["params"], variables["batch_stats"], x)
      >>> params, batch_stats = jaxbn.init(1)
      >>> variables = jaxbn.recalibrate(forward, {"params": params, "batch_stats": batch_stats}, batches)
      >>> variables["batch_stats"]["mean"].tolist()
      [4.0]
    """
    for name, value in (("sequential", sequential), ("unbiased", unbiased), ("progress", progress)):
        checks.check_static_bool(value, name)
    found = find_batch_norms(model)
    if sequential and isinstance(batches, Iterator):
        raise ValueError(
            "`batches` must give the same batches each time it is iterated where `sequential` is set, such as a list "
            f"or a data loader, got {type(batches).__name__}, which can be read once."
        )
    run, state = collector(forward, model)
    stats, moments = [f.batch_stats for f in found.values()], []
    # Layers that nn.scan or nnx.scan stacks stand in one array, and are still one after the other.
    num_passes = sum(math.prod(s["mean"].shape[:-1]) for s in stats) if sequential else 1
    for number in range(1, num_passes + 1):
        label = f"Recalibrating, pass {number} of at most {num_passes}" if sequential else "Recalibrating"
        shown = load("rich.progress", "progress=True").track(batches, label) if progress else batches
        moments, num_batches = _merge_all(run(state, stats, batch) for batch in shown)
        old, stats = stats, _set(stats, moments, num_batches, unbiased=unbiased)
        stats = jax.tree.map(_placed_as, old, stats)
        if jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b, equal_nan=True), old, stats)):
            break
    _check_finite(dict(zip(found, moments, strict=True)))
    return _write(model, dict(zip(found, stats, strict=True)))


@jax.jit
def _merge(a: list[Moments], b: list[Moments]) -> list[Moments]:
    return [merge_moments(m, n) for m, n in zip(a, b, strict=True)]


def _merge_all(parts: Iterable[list[Moments]]) -> tuple[list[Moments], int]:
    """The moments of all batches, and their number.

    Batches are merged in pairs, and pairs in pairs: N of them cost log2(N) roundings and not N.
    """
    pending: list[tuple[int, list[Moments]]] = []
    number = 0
    for moments in parts:
        number, size = number + 1, 1
        while pending and pending[-1][0] == size:
            moments, size = _merge(pending.pop()[1], moments), 2 * size
        pending.append((size, moments))
    if not pending:
        raise ValueError("`batches` must hold at least one batch, got none. The statistics are as they were.")
    _, total = pending.pop()
    while pending:
        total = _merge(pending.pop()[1], total)
    if not any(np.any(m.count) for m in total):
        raise ValueError(
            f"`batches` must bring at least one example to a batch norm, got none in {number} batches: everything is "
            "masked, or `forward` does not call the model. The statistics are as they were."
        )
    return total, number


@functools.partial(jax.jit, static_argnames="unbiased")
def _set(stats: list[BatchStats], moments: list[Moments], num_batches: int, *, unbiased: bool) -> list[BatchStats]:
    return [_set_layer(s, m, num_batches, unbiased) for s, m in zip(stats, moments, strict=True)]


def _set_layer(batch_stats: BatchStats, moments: Moments, num_batches: int, unbiased: bool) -> BatchStats:
    """The statistics replaced by the moments, channel by channel, where these can be used."""
    dtype = jnp.promote_types(batch_stats["mean"].dtype, moments.mean.dtype)
    old = {"mean": jnp.asarray(batch_stats["mean"], dtype), "var": jnp.asarray(batch_stats["var"])}
    # Not from the old ones: a weight of 0 would keep a NaN.
    fresh = jax.tree.map(jnp.zeros_like, old)
    fresh = update_batch_stats(fresh, moments, momentum=0.0, unbiased=unbiased)
    usable = (moments.count > 0) & jnp.isfinite(moments.mean) & jnp.isfinite(moments.var)
    new = {name: jnp.where(usable, fresh[name], old[name]) for name in old}
    if "count" in batch_stats:
        count = jnp.asarray(batch_stats["count"])
        new["count"] = jnp.where(jnp.any(usable), jnp.full_like(count, num_batches), count)
    return new


def _placed_as(old: Any, new: jax.Array) -> jax.Array:
    """`new` on the devices of `old`; on none in particular where that is so."""
    if isinstance(old, jax.Array) and old.committed:
        return jax.device_put(new, old.sharding)
    return jnp.asarray(np.asarray(new))


def _check_finite(moments: dict[Path, Moments]) -> None:
    sick = {}
    for path, m in moments.items():
        bad = int(np.sum(~(np.isfinite(m.mean) & np.isfinite(m.var))))
        if bad:
            sick[path_name(path)] = f"{bad} of {m.mean.size}"
    if sick:
        raise ValueError(
            f"The moments of every channel must be finite over `batches`, got channels that are not: {sick}. The "
            "statistics are as they were."
        )


def _write(model: Any, stats: dict[Path, BatchStats]) -> Any:
    values = {(*path, name): value for path, s in stats.items() for name, value in s.items()}
    if not is_nnx(model):
        for path, value in values.items():
            model = set_at(model, ("batch_stats", *path), value)
        return model
    from flax import nnx

    variables = dict(nnx.to_flat_state(nnx.state(model, nnx.BatchStat)))
    nnx.update(model, nnx.from_flat_state({path: variables[path].replace(v) for path, v in values.items()}))
    return model
