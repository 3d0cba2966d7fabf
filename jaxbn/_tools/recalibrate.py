"""Recalibration ("precise BN"): the exact statistics of a data set for every batch norm of a model."""

import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxbn._core import checks
from jaxbn._core.types import BatchStats, Moments
from jaxbn._models.find import find_batch_norms, is_nnx
from jaxbn._models.tree import Path, path_name, set_at
from jaxbn._tools import processes
from jaxbn._tools.checks import check_iterable
from jaxbn._tools.collect import Collector, Forward
from jaxbn._tools.optional import load
from jaxbn._tools.seen import Seen, look_at_all, with_seen

Model = TypeVar("Model")


def recalibrate(
    forward: Forward,
    model: Model,
    batches: Iterable[Any],
    *,
    sequential: bool = False,
    unbiased: bool = False,
    progress: bool = False,
) -> Model:
    """Sets the running statistics of every batch norm to those of a whole data set; parameters are not changed.

    Use it after averaging weights (SWA, EMA), for data from a different domain (AdaBN), after fine-tuning, or because
    an average with momentum 0.99 lags behind. The moments of each layer's input are merged exactly over all batches,
    whatever their sizes, order, masks or devices.

    What enters a layer depends on how the layers before it normalize, which `forward` decides. In training mode they
    use the statistics of each batch, as they did when the weights were learned. In evaluation mode they use the running
    statistics; with `sequential=True` those are recalibrated first: each pass over the data settles at least one more
    layer, until a pass changes nothing. Each layer then has the exact statistics of what it will see in evaluation.

    Several processes (`jax.distributed`) may each bring their own batches, in any sizes and numbers: the results are
    merged, and every process gets the same. Batches whose arrays span all processes are processed jointly.

    Args:
      forward: `forward(model, batch)`, run under `jax.jit`, as for `jaxbn.collect_moments`: with linen it returns what
        `apply(..., mutable=['batch_moments', 'batch_stats'])` returns, with nnx it calls the model, and a functional
        one returns `(y, moments)`. An axis name that is not bound here, because the model was trained on several
        devices, is taken as an axis of size 1, and the batch as one group of its `axis_index_groups`.
      model: variables {'params': ..., 'batch_stats': ...}, or an nnx module.
      batches: pytrees of arrays, or of objects that convert to arrays (torch tensors, data frames). Batches of equal
        shapes share one compiled program.
      sequential: read the batches again until nothing changes, at most once for each batch norm.
      unbiased: whether variances are divided by `count - 1`, PyTorch's convention.
      progress: show a progress bar (needs rich), with a total where `len(batches)` is known.

    Returns:
      New variables, or the nnx module itself, changed in place once everything has succeeded. Everything but the
      running statistics stays as it was; meanwhile the random numbers and other state of an nnx module advance from
      batch to batch, as they do in training. A layer that `forward` does not reach, or a channel without any example,
      keeps its statistics. A `count`, if there is one, becomes the number of batches that had an example of the
      channel.

    Raises:
      ValueError: there is no batch or no example, or none in one of the processes; a channel is not finite; `batches`
        can be read only once and `sequential` is set; `forward` gives no moments, or fails on a batch whose structure
        differs from that of the first; or a layer ran but could not report its moments, in which case the message names
        it and the entry that is missing. The model is unchanged.
      TypeError: `forward` is not a function of two arguments, `model` is neither variables nor an nnx module, or
        `batches` cannot be iterated or does not consist of arrays.
      RuntimeError: another process failed.

    Warns:
      UserWarning: layers normalized with running statistics that recalibration has since moved, so that those of the
        layers after them do not fit: `forward` runs in evaluation mode, and `sequential` is not set.

    References:
      Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3; Li et al. 2016, "Revisiting batch normalization
      for practical domain adaptation"; Izmailov et al. 2018, "Averaging weights leads to wider optima", section 3.2.

    Example:
      >>> import jax, jax.numpy as jnp, jaxbn, jaxbn.linen, jaxbn.nnx
      >>> from flax import nnx
      >>> batches = [jnp.array([[1.0], [3.0]]), jnp.array([[8.0]])]
      >>> model = jaxbn.linen.BatchNorm()
      >>> def forward(variables, x):
      ...     return model.apply(variables, x, use_running_average=False, mutable=["batch_moments", "batch_stats"])
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
    check_iterable(batches, "batches", "be a list, a data loader or another iterable of batches")
    original = {path: f.batch_stats for path, f in find_batch_norms(model).items()}
    if sequential and isinstance(batches, Iterator):
        raise ValueError(
            "`batches` must give the same batches each time it is iterated where `sequential` is set, such as a list "
            f"or a data loader, got {type(batches).__name__}, which can be read once."
        )
    collector = Collector(forward, model, "batches")
    # Layers stacked by nn.scan or nnx.scan share one array, but still run one after the other.
    num_passes = sum(math.prod(s["mean"].shape[:-1]) for s in original.values()) if sequential else 1
    merged: list[Seen] = []
    for number in range(1, num_passes + 1):
        label = f"Recalibrating, pass {number} of at most {num_passes}" if sequential else "Recalibrating"
        shown = load("rich.progress", "progress=True").track(batches, label) if progress else batches
        merged = look_at_all(collector, shown)
        old = list(collector.stats.values())
        new = jax.tree.map(processes.placed_as, old, with_seen(old, merged, unbiased=unbiased))
        collector.stats = dict(zip(original, new, strict=True))
        if _equal(old, new):
            break
    _check_finite({path: seen.moments.moments for path, seen in zip(original, merged, strict=True)})
    if not sequential:
        _tell_misfits(collector, original)
    return _write(model, original, collector.stats)


NOTICEABLE = 0.1
"""standard deviations by which statistics may move without a warning"""


@jax.jit
def _equal(a: Any, b: Any) -> jax.Array:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    # A mean that becomes complex has changed.
    same = [v.dtype == w.dtype and jnp.array_equal(v, w, equal_nan=True) for v, w in pairs]
    return jnp.array(same).all()


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


def _tell_misfits(collector: Collector, before: dict[Path, BatchStats]) -> None:
    """Warns if layers normalized with running statistics that have moved since: those of later layers do not fit."""
    order = [path for path, _ in collector.calls]
    moved = {}
    for i, (path, evaluated) in enumerate(collector.calls):
        if evaluated and any(later != path for later in order[i:]):
            moved[path] = _distance(before[path], collector.stats[path]) if path in before else 0.0
    far = {path_name(path): f"{d:.2g}" for path, d in moved.items() if d > NOTICEABLE}
    if far:
        warnings.warn(
            "Statistics that do not fit each other: these layers normalized with running statistics "
            f"(use_running_average=True) that recalibration then moved, by so many deviations: {far}. What entered "
            "the layers after them was normalized with the old ones. Let `forward` train (with linen and a model that "
            "decides by is_mutable_collection: mutable=['batch_moments', 'batch_stats']), or set sequential=True.",
            UserWarning,
            stacklevel=3,
        )


def _distance(old: BatchStats, new: BatchStats) -> float:
    """How far the outputs of a layer move, in standard deviations, in the channel that moves most."""
    mean, var, new_mean, new_var = (np.asarray(s[name]) for s in (old, new) for name in ("mean", "var"))
    with np.errstate(all="ignore"):
        deviation = np.sqrt(new_var + 1e-5)
        moved = np.maximum(np.abs(new_mean - mean) / deviation, np.abs(np.sqrt(np.maximum(var, 0)) / deviation - 1))
    return float(np.nan_to_num(moved, nan=np.inf).max(initial=0))


def _write(model: Any, before: dict[Path, BatchStats], stats: dict[Path, BatchStats]) -> Any:
    values = {
        (*path, name): processes.placed_as(before[path][name], value)
        for path, s in stats.items()
        for name, value in s.items()
    }
    if not is_nnx(model):
        for path, value in values.items():
            model = set_at(model, ("batch_stats", *path), value)
        return model
    from flax import nnx

    from jaxbn._models.moments_nnx import with_values

    nnx.update(model, with_values(nnx.state(model, nnx.BatchStat), values))
    return model
