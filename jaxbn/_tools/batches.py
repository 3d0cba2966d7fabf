"""Batches from other libraries (torch tensors, data frames, whatever converts) as arrays that JAX accepts."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def as_arrays(batch: Any, name: str = "batch") -> Any:
    """The batch with arrays as leaves, in the same containers; mappings that JAX does not know become dicts.

    Raises:
      TypeError: a leaf does not convert to an array of numbers; the message says where it is.
    """
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: _as_array(keys, leaf, name), batch)


def _as_array(keys, leaf: Any, name: str) -> Any:
    if isinstance(leaf, jax.Array | int | float | complex) or hasattr(leaf, "__jax_array__"):
        return leaf
    if isinstance(leaf, Mapping):  # one that JAX does not know, such as what a tokenizer returns
        return jax.tree_util.tree_map_with_path(lambda inner, v: _as_array((*keys, *inner), v, name), dict(leaf))
    for method in ("detach", "cpu"):  # a torch tensor: detached from its gradients, and moved off its device
        leaf = getattr(leaf, method, lambda leaf=leaf: leaf)()
    array = leaf if isinstance(leaf, np.ndarray | np.generic) else _converted(leaf)
    if array is None or array.dtype.kind in "OSUMm":
        got = type(leaf).__name__ if array is None or array is leaf else f"{type(leaf).__name__} of {array.dtype}"
        raise TypeError(
            f"`{name}` must hold pytrees of arrays, or of what converts to arrays of numbers, got "
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
