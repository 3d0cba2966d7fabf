"""The moments of what enters the batch norms of a linen model, taken from outside as they are called.

They leave the model in its collections, because nothing else passes through nn.scan, nn.vmap and nn.remat: in
'batch_moments' if a layer can write it, otherwise in 'batch_stats', which every stack of layers passes on.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxbn._core.merge import Accumulated, zeros_of_layer
from jaxbn._core.types import BatchStats, Moments
from jaxbn._models import notes
from jaxbn._models.linen_scopes import MOMENTS, hidden_from, why_hidden
from jaxbn._models.tree import Path, get_at, moments_by_path, nodes, path_name, set_at
from jaxbn._models.unbound_axes import run_layer
from jaxbn._models.watch import Call
from jaxbn._tools.accumulate import zero_moments

ENTERED = "moments_of_input"
"""The name of the variable in 'batch_stats' when 'batch_moments' is out of reach."""


def watch_layer(call: Call) -> Any:
    """A watcher: notes the moments of what enters each batch norm, Flax's or ours, and which other layers ran."""
    from flax import linen as nn

    from jaxbn.linen import BatchNorm

    module, noted = call.layer, notes.current()
    assert noted is not None
    if call.method == "__call__" and call.owner in (BatchNorm, nn.BatchNorm) and not module.is_initializing():
        evaluated = notes.evaluates(call, takes_arrays=call.owner is BatchNorm)
        noted.calls.append((call.path, evaluated))
        if not evaluated and not can_report(module):  # what follows would fail too, with a less helpful message
            raise ValueError(f"The batch norm {path_name(call.path)} cannot train here, got {why_hidden(module)}.")
        # This replaces what jaxbn's module may have written there itself, which would be counted twice.
        old = written(module)
        y = run_layer(call)
        hand_in(module, notes.moments_of_input(call), old, noted)
        return y
    y = call.run(*call.args, **call.kwargs)
    if call.outermost and module.scope is not None:
        for path in _places_of_statistics(module):
            noted.lost.setdefault(
                path,
                f"the {call.owner.__name__} that keeps its statistics calls no batch norm of Flax or jaxbn that could "
                "be watched; it can hand its moments in itself: jaxbn.report_moments(self, moments)",
            )
    return y


def can_report(module: Any) -> bool:
    """Whether the module can write to one of the collections in which moments leave the model."""
    return not (hidden_from(module, MOMENTS) and hidden_from(module, "batch_stats"))


def hand_in(module: Any, new: Moments, old: Accumulated | None, noted: notes.Notes) -> None:
    """Writes the moments of `old` and `new` where they leave the model, or notes why they cannot."""
    if not can_report(module):
        noted.lost[module.path] = why_hidden(module)
        return
    noted.reported.add(module.path)
    if old is None:
        old = zeros_of_layer(jnp.asarray(new.mean))
    moments = notes.add(old, new)
    if hidden_from(module, MOMENTS):
        module.put_variable("batch_stats", ENTERED, moments)
    else:
        for name, value in moments._asdict().items():
            module.put_variable(MOMENTS, name, value)


def written(module: Any) -> Accumulated | None:
    """The moments from the calls of this layer so far."""
    if hidden_from(module, MOMENTS):
        return module.get_variable("batch_stats", ENTERED)
    fields = {name: module.get_variable(MOMENTS, name) for name in Accumulated._fields}
    return None if fields["count"] is None else Accumulated(**fields)


def found_in(updates: Mapping[str, Any]) -> dict[Path, Moments]:
    """The moments in the collections that `apply` returned."""
    beside = nodes(updates.get("batch_stats", {}), lambda node: isinstance(node, Accumulated))
    entered = {path[:-1]: accumulated for path, accumulated in beside.items() if path[-1:] == (ENTERED,)}
    collected = moments_by_path(updates.get(MOMENTS, {}))
    both = {path: notes.add(a, collected[path]) for path, a in entered.items() if path in collected}
    return {path: a.moments for path, a in entered.items()} | collected | {path: a.moments for path, a in both.items()}


def with_zeros(variables: Mapping[str, Any], stats: Mapping[Path, BatchStats]) -> dict[str, Any]:
    """The variables with empty moments in both collections, because the carry of a scan has the same structure from the
    start."""
    given = {**variables, MOMENTS: zero_moments(variables["batch_stats"])}
    for path, s in stats.items():
        layer = {**get_at(variables["batch_stats"], path), ENTERED: zeros_of_layer(s["mean"])}
        given = set_at(given, ("batch_stats", *path), layer)
    return given


def _places_of_statistics(module: Any) -> list[Path]:
    """The places where the module itself, rather than a layer inside it, has used a running mean in this trace."""
    used = {name for name, kinds in module.scope.reservations.items() if "batch_stats" in kinds}
    places = [(*module.path, name) for name in used - {"mean", "var"}]
    return [module.path, *places] if {"mean", "var"} <= used else places
