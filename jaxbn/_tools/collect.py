"""The moments of what enters each batch norm of a model in one forward pass, whichever statistics it normalizes with.

A functional forward returns them. For Flax's modules, and ours, they are taken from outside when a module is called: it
need not be in training mode, and if it normalizes groups of devices separately, the moments are still those of all.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxbn._core.merge import zeros_of_layer
from jaxbn._core.types import BatchStats, Moments
from jaxbn._models import notes
from jaxbn._models.find import find_batch_norms, is_nnx
from jaxbn._models.tree import Path, moments_by_path, path_name, set_at
from jaxbn._models.unbound_axes import with_axes_bound
from jaxbn._models.watch import watch_linen
from jaxbn._tools.batches import as_arrays
from jaxbn._tools.checks import check_function

Forward = Callable[[Any, Any], Any]


def collect_moments(forward: Forward, model: Any, batch: Any) -> dict[Path, Moments]:
    """Moments of what enters each batch norm while `forward` runs on one batch.

    Args:
      forward: `forward(model, batch)`, the call of the model, run under `jax.jit`. It decides which statistics
        normalize (`use_running_average`), what is masked, and over which devices the batch is split.
          - linen: `(y, updates)`, as `apply` with `mutable=['batch_moments', 'batch_stats']` returns it. In evaluation
            ['batch_moments'] is enough, unless a stack (nn.scan, nn.vmap) has no entry for it in `variable_axes`.
          - nnx: calls the model; what it returns is not used.
          - functional: `(y, moments)`, where `moments` is the tree of `batch_stats` with a `jaxbn.Moments` in place of
            each layer's statistics.
      model: variables {'params': ..., 'batch_stats': ...}, or an nnx module. It is not changed.
      batch: a pytree of arrays, or of objects that convert to arrays (torch tensors, data frames). If each of several
        processes has its own batch, only the one given here is used; `jaxbn.merge_moments` merges the results.

    Returns:
      A dict from the path of each batch norm to its `Moments`, with counts, means and variances [C] ([L, C] for stacked
      layers). They cover all calls of the layer, and are empty where `forward` does not reach it.

    Raises:
      ValueError: `forward` returns no moments, or returns some where the model has no batch norm; or a layer ran but
        could not report its moments, in which case the message names the layer and what is missing. A module that
        calls `jaxbn.batch_norm` itself reports its moments with `jaxbn.report_moments`.
      TypeError: `forward` is not a function of two arguments, `model` is neither variables nor an nnx module, or
        `batch` does not consist of arrays.

    Example:
      >>> import jax.numpy as jnp, jaxbn
      >>> params, batch_stats = jaxbn.init(1)
      >>> variables = {"params": {"bn": params}, "batch_stats": {"bn": batch_stats}}
      >>> def forward(variables, x):
      ...     y, moments = jaxbn.normalize_batch(variables["params"]["bn"], variables["batch_stats"]["bn"], x)
      ...     return y, {"bn": moments}
      >>> jaxbn.collect_moments(forward, variables, jnp.array([[1.0], [3.0]]))[("bn",)].mean.tolist()
      [2.0]

      The same with linen and with nnx:

      >>> import jax, jaxbn.linen, jaxbn.nnx
      >>> from flax import nnx
      >>> model = jaxbn.linen.BatchNorm(use_running_average=False)
      >>> variables = model.init(jax.random.key(0), jnp.ones((2, 1)))
      >>> def forward(variables, x):
      ...     return model.apply(variables, x, mutable=["batch_moments", "batch_stats"])
      >>> jaxbn.collect_moments(forward, variables, jnp.array([[1.0], [3.0]]))[()].mean.tolist()
      [2.0]
      >>> model = jaxbn.nnx.BatchNorm(1, rngs=nnx.Rngs(0))
      >>> jaxbn.collect_moments(lambda model, x: model(x), model, jnp.array([[1.0], [3.0]]))[()].mean.tolist()
      [2.0]
    """
    collector = Collector(forward, model, "batch")
    return dict(zip(collector.stats, collector(collector.start, batch)[0], strict=True))


class Collector:
    """Runs batch after batch, and keeps what enters each layer and the state with which the model continues."""

    def __init__(self, forward: Forward, model: Any, batch_name: str) -> None:
        check_function(forward, "forward", ("model", "batch"))
        self._batch_name = batch_name
        self.stats: dict[Path, BatchStats] = {path: f.batch_stats for path, f in find_batch_norms(model).items()}
        """running statistics of each layer by path; the ones that normalize in evaluation"""
        self.notes = notes.Notes()
        """those of the latest trace"""
        self.calls: list[tuple[Path, bool]] = []
        """the calls of batch norms in the first trace: path, and whether the running statistics normalized"""
        self._of_nnx = is_nnx(model)
        if self._of_nnx:
            self._collect, self.start, self._go_on = _from_nnx(forward, model, self.stats)
        else:
            self._collect, self.start, self._go_on = _from_variables(forward), model, lambda state, _: state
        self._run = jax.jit(self._traced)

    def __call__(self, state: Any, batch: Any) -> tuple[list[Moments], Any]:
        """The moments of each layer, [C], and the next state, given the state before it (at first `start`)."""
        moments, new = self._run(state, list(self.stats.values()), as_arrays(batch, self._batch_name))
        return moments, self._go_on(state, new)

    def _traced(self, state: Any, stats: list[BatchStats], batch: Any) -> tuple[list[Moments], Any]:
        given = dict(zip(self.stats, stats, strict=True))
        paths: list[Path] = []

        def collect():
            self.notes.clear()
            moments, new = self._collect(state, given, batch)
            paths[:] = moments
            return list(moments.values()), new

        with notes.taking(self.notes):
            values, state = with_axes_bound(collect)
        moments = dict(zip(paths, values, strict=True))
        self._check(moments)
        self.calls = self.calls or list(self.notes.calls)
        zeros = {path: zeros_of_layer(s["mean"]) for path, s in given.items()}
        return [(notes.add(z, moments[path]) if path in moments else z).moments for path, z in zeros.items()], state

    def _check(self, moments: dict[Path, Moments]) -> None:
        lost = {path: why for path, why in self.notes.lost.items() if path in self.stats and path not in moments}
        for path, why in lost.items():
            raise ValueError(
                f"Each batch norm that runs must report the moments of its batch, got none of {path_name(path)}: {why}."
            )
        places = f"the batch norms of the model, {', '.join(map(path_name, self.stats))}"
        if not moments and self._of_nnx:
            first = path_name(next(iter(self.stats)))
            raise ValueError(f"`forward` must call a batch norm of the model, such as {first}, got no call of one.")
        if not moments:
            raise ValueError(
                f"`forward` must return (y, moments) with the moments of {places}, got none. With linen it returns "
                "what model.apply(variables, ..., mutable=['batch_moments', 'batch_stats']) returns."
            )
        unknown = sorted(path_name(path) for path in set(moments) - set(self.stats))
        if unknown:
            raise ValueError(f"`forward` must return moments in the places of {places}, got some at {unknown}.")
        for path, m in moments.items():
            shape = jnp.shape(self.stats[path]["mean"])
            if jnp.shape(m.mean) != shape:
                raise ValueError(
                    f"`forward` must return moments of a layer in the shape of its statistics, {list(shape)} of "
                    f"{path_name(path)}, got {list(jnp.shape(m.mean))}. Do 'batch_moments' and 'batch_stats' have the "
                    "same entry in `variable_axes` of the stack that it is in?"
                )


def _from_variables(forward: Forward):
    def collect(variables, stats, batch):
        given = {name: tree for name, tree in variables.items() if name != "batch_moments"}
        for path, s in stats.items():
            for name, value in s.items():
                given = set_at(given, ("batch_stats", *path, name), value)
        if sys.modules.get("flax.linen") is None:
            return _moments_in(forward(given, batch)), None
        from jaxbn._models.moments_linen import watch_layer, with_zeros

        with watch_linen(watch_layer):
            try:
                out = forward(given, batch)
            except TypeError:
                noted = notes.current()
                if noted is None or not noted.calls:
                    raise
                noted.clear()
                out = forward(with_zeros(given, stats), batch)
        return _moments_in(out), None

    return collect


def _moments_in(out: Any) -> dict[Path, Moments]:
    if not (isinstance(out, tuple) and len(out) == 2):
        return {}
    tree = out[1]
    if isinstance(tree, Mapping) and {"batch_moments", "batch_stats"} & set(tree):
        from jaxbn._models.moments_linen import found_in

        return found_in(tree)
    return moments_by_path(tree)


def _from_nnx(forward: Forward, model: Any, stats: dict[Path, BatchStats]):
    from flax import nnx

    from jaxbn._models import moments_nnx

    if isinstance(model, nnx.State):
        raise TypeError("`model` must be variables or an nnx module, which `forward` can call, got an nnx.State.")
    graphdef, start = nnx.split(moments_nnx.watched_copy(model, stats))

    def collect(state, stats, batch):
        # A copy, because `forward` would otherwise write to the variables of `state`.
        model = nnx.merge(graphdef, moments_nnx.with_stats(state, stats), copy=True)
        forward(model, batch)
        return moments_nnx.moments_in(model), moments_nnx.changes(state, nnx.state(model), stats)

    return collect, start, moments_nnx.changed
