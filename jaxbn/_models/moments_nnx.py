"""The moments of what enters the batch norms of an nnx model, taken from outside as they are called.

The layers of a copy of the model keep them in a variable of their own, which passes through the transformations of nnx
just as the running statistics do.
"""

from collections.abc import Collection
from typing import Any

import jax
from flax import nnx

from jaxbn._core.merge import Accumulated, zeros_of_layer
from jaxbn._core.types import BatchStats, Moments
from jaxbn._models import notes
from jaxbn._models.tree import Path
from jaxbn._models.unbound_axes import run_layer
from jaxbn._models.watch import Call, modules_of, watch_nnx
from jaxbn.nnx import BatchNorm


class Entered(nnx.BatchStat):
    """The count, mean or variance, [C], of what has entered a layer, or what rounding has dropped from one of them."""


def watched_copy(model: nnx.Module, stats: dict[Path, BatchStats]) -> nnx.Module:
    """A copy whose layers with running statistics note the moments of what enters them."""

    def base(path: Path, module: Any) -> type | None:
        if path not in stats:
            return None
        return next((c for c in (BatchNorm, nnx.BatchNorm) if isinstance(module, c)), type(module))

    copy = watch_nnx(model, _watch_layer, base)
    for path, module in modules_of(copy).items():
        if path in stats:
            zeros = zeros_of_layer(stats[path]["mean"])._asdict()
            module._jaxbn_entered = nnx.data({name: Entered(zero) for name, zero in zeros.items()})
    return copy


def _watch_layer(call: Call) -> Any:
    noted = notes.current()
    assert noted is not None
    if call.owner in (BatchNorm, nnx.BatchNorm):
        noted.calls.append((call.path, notes.evaluates(call, takes_arrays=call.owner is BatchNorm)))
        y = run_layer(call)
        hand_in(call.layer, notes.moments_of_input(call))
        return y
    y = call.run(*call.args, **call.kwargs)
    noted.lost.setdefault(
        call.path,
        f"the {call.owner.__name__} that keeps its statistics calls no batch norm of Flax or jaxbn that could be "
        "watched; it can hand its moments in itself: jaxbn.report_moments(self, moments)",
    )
    return y


def hand_in(layer: Any, new: Moments) -> bool:
    """Adds the moments to those of the layer, if it is watched or accumulates those of microbatches."""
    noted = notes.current()
    if noted is not None and hasattr(layer, "_jaxbn_entered"):
        noted.reported.add(layer._jaxbn_watch.path)
        variables = layer._jaxbn_entered
    else:
        variables = getattr(layer, "batch_moments", None)
    if variables is None:
        return False
    for name, value in notes.add(_accumulated(variables), new)._asdict().items():
        variables[name].set_value(jax.lax.stop_gradient(value))
    return True


def moments_in(model: nnx.Module) -> dict[Path, Moments]:
    """The moments of what has entered each layer of a watched copy that was called."""
    noted = notes.current()
    assert noted is not None
    reported = {path: module for path, module in modules_of(model).items() if path in noted.reported}
    return {path: _accumulated(module._jaxbn_entered).moments for path, module in reported.items()}


def with_stats(state: nnx.State, stats: dict[Path, BatchStats]) -> nnx.State:
    """The state with these running statistics in place of its own."""
    return with_values(state, {(*path, name): value for path, s in stats.items() for name, value in s.items()})


def with_values(state: nnx.State, values: dict[Path, Any]) -> nnx.State:
    """The state with these values for the variables at their paths."""
    flat = dict(nnx.to_flat_state(state))
    return nnx.from_flat_state(flat | {path: flat[path].replace(value) for path, value in values.items()})


def changes(before: nnx.State, after: nnx.State, statistics: Collection[Path]) -> nnx.State:
    """What is carried to the next batch: the state that `forward` has changed, except statistics and moments.

    The parameters are not part of it: passed through `jit`, they would be copied for every batch.
    """
    old = dict(nnx.to_flat_state(before))
    return nnx.from_flat_state(
        {
            path: variable
            for path, variable in nnx.to_flat_state(after)
            if path in old
            and not isinstance(variable, Entered)
            and path[:-1] not in statistics
            and variable.get_value() is not old[path].get_value()
        }
    )


def changed(state: nnx.State, new: nnx.State) -> nnx.State:
    """The state with the variables of `new` in place of its own."""
    return nnx.from_flat_state(dict(nnx.to_flat_state(state)) | dict(nnx.to_flat_state(new)))


def _accumulated(variables: dict[str, Any]) -> Accumulated:
    return Accumulated(**{name: variable.get_value() for name, variable in variables.items()})
