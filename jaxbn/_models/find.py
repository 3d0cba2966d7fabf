"""Where the batch norms of a model are: the places in its tree where `batch_stats` holds a mean and a variance.

A model is given by its variables, `{'params': tree, 'batch_stats': tree}` (those of Flax linen, or plain trees made
with `jaxbn.init`), or it is a `flax.nnx` module or its `nnx.State`. LayerNorm and GroupNorm have scales of the same
name but no statistics, so they are not found.
"""

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from jaxbn._core.types import BatchStats, Params
from jaxbn._models.tree import Path, get_at, is_batch_stats, nodes
from jaxbn._models.tree import plain_path as plain_path


class Found(NamedTuple):
    """One batch norm of a model."""

    params: Params
    """{'scale': [C], 'bias': [C]}, or as many of the two as it has"""
    batch_stats: BatchStats
    """{'mean': [C], 'var': [C]} and perhaps 'count'; [L, C] for stacked layers"""


def find_batch_norms(model: Any) -> dict[Path, Found]:
    """Every batch norm of a model, by path, in the order of the tree.

    Raises:
      TypeError: `model` is neither variables nor an nnx module or state.
      ValueError: it has no batch norm.
    """
    variables = as_variables(model)
    found = {
        path: Found(
            _only(("scale", "bias"), get_at(variables.get("params", {}), path, {})),
            _only(("mean", "var", "count"), stats),
        )
        for path, stats in nodes(variables["batch_stats"], is_batch_stats).items()
    }
    if not found:
        raise ValueError(
            "`model` must have a batch norm, a place of its `batch_stats` with 'mean' and 'var', got none."
        )
    return found


def as_variables(model: Any) -> Mapping[str, Any]:
    """The model as `{'params': tree, 'batch_stats': tree}` of arrays; variables are returned as they are."""
    if is_nnx(model):
        from flax import nnx

        state = model if isinstance(model, nnx.State) else nnx.state(model)
        kinds = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
        return {name: nnx.to_pure_dict(nnx.filter_state(state, kind)) for name, kind in kinds.items()}
    if isinstance(model, Mapping) and "batch_stats" in model:
        return model
    got = f"keys {sorted(map(str, model))}" if isinstance(model, Mapping) else type(model).__name__
    raise TypeError(
        f"`model` must be variables, {{'params': ..., 'batch_stats': ...}}, or a flax.nnx module or state, got {got}."
    )


def is_nnx(model: Any) -> bool:
    """Whether it is an nnx module or state. Flax is not imported to find out."""
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(model, nnx.Module | nnx.State)


def _only(names: tuple[str, ...], node: Any) -> dict[str, jax.Array]:
    """The arrays with those names, taken out of the boxes in which Flax keeps them with their sharding names."""
    arrays = {k: node[k] for k in names if isinstance(node, Mapping) and k in node}
    meta = sys.modules.get("flax.core.meta")
    return arrays if meta is None else meta.unbox(arrays)
