"""Where the batch norms of a model are: the places of its tree whose `batch_stats` hold a mean and a variance.

A model is given by its variables, `{'params': tree, 'batch_stats': tree}` (those of Flax linen, or plain trees made
with `jaxbn.init`), or it is a `flax.nnx` module or its `nnx.State`. LayerNorm and GroupNorm have scales of the same
name and no statistics: they are not found.
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
    """{'scale': [C], 'bias': [C]}, without those that it does not have"""
    batch_stats: BatchStats
    """{'mean': [C], 'var': [C]} and perhaps 'count'; of stacked layers [L, C]"""


def find_batch_norms(model: Any) -> dict[Path, Found]:
    """Every batch norm of a model by its path, in the order of the tree.

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
        raise ValueError("The model must have a batch norm: no place of its `batch_stats` holds 'mean' and 'var'.")
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
        "A model must be given as its variables, {'params': ..., 'batch_stats': ...}, or as a flax.nnx module or "
        f"state, got {got}."
    )


def is_nnx(model: Any) -> bool:
    """Whether it is an nnx module or state. Flax is not imported for the question."""
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(model, nnx.Module | nnx.State)


def _only(names: tuple[str, ...], node: Any) -> dict[str, jax.Array]:
    """The arrays of those names, out of the boxes in which Flax keeps them with the names of their sharding."""
    arrays = {k: node[k] for k in names if isinstance(node, Mapping) and k in node}
    meta = sys.modules.get("flax.core.meta")
    return arrays if meta is None else meta.unbox(arrays)
