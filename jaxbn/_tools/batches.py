"""Batches as other libraries make them, as arrays that JAX takes: torch tensors, data frames, whatever converts."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def as_arrays(batch: Any) -> Any:
    """The batch with arrays for leaves, in the same containers; other mappings become dicts.

    Raises:
      TypeError: a leaf does not convert to an array of numbers; the message says where it is.
    """
    return jax.tree_util.tree_map_with_path(_as_array, batch)


def _as_array(keys, leaf: Any) -> Any:
    if isinstance(leaf, jax.Array | int | float | complex) or hasattr(leaf, "__jax_array__"):
        return leaf
    if isinstance(leaf, Mapping):  # one that JAX does not know, as a tokenizer returns it
        return jax.tree_util.tree_map_with_path(lambda inner, v: _as_array((*keys, *inner), v), dict(leaf))
    for method in ("detach", "cpu"):  # of torch: out of the graph of its gradients, and off its device
        leaf = getattr(leaf, method, lambda leaf=leaf: leaf)()
    array = leaf if isinstance(leaf, np.ndarray | np.generic) else _converted(leaf)
    if array is None or array.dtype.kind in "OSUMm":
        got = type(leaf).__name__ if array is None or array is leaf else f"{type(leaf).__name__} of {array.dtype}"
        raise TypeError(
            "A batch must be a pytree of arrays, or of what converts to arrays of numbers, got "
            f"{got} at {jax.tree_util.keystr(keys) or 'the top'}."
        )
    return array


def _converted(leaf: Any) -> np.ndarray | None:
    if hasattr(leaf, "__array__") or hasattr(leaf, "__array_interface__"):
        try:
            return np.asarray(leaf)
        except TypeError:  # a dtype that NumPy does not have
            pass
    return np.asarray(jax.dlpack.from_dlpack(leaf)) if hasattr(leaf, "__dlpack__") else None
