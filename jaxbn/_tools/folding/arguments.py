"""The arguments of a model: arrays are traced, anything else (flags, names, None) stays as it is."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def split_arrays(args: tuple) -> tuple[list[Any], Callable[[list[Any]], tuple]]:
    """The arrays among the arguments (PyTorch's tensors as NumPy arrays), and a function that replaces them."""
    leaves, structure = jax.tree.flatten(args)
    where = [i for i, leaf in enumerate(leaves) if _is_array(leaf)]
    arrays = [
        leaves[i] if isinstance(leaves[i], jax.Array | jax.ShapeDtypeStruct) else np.asarray(leaves[i]) for i in where
    ]

    def join(arrays: list[Any]) -> tuple:
        new = dict(zip(where, arrays, strict=True))
        return jax.tree.unflatten(structure, [new.get(i, leaf) for i, leaf in enumerate(leaves)])

    return arrays, join


def split_input(args: tuple, kwargs: dict[str, Any]) -> tuple[Any, tuple, dict[str, Any]]:
    """The arguments of a layer: its input, whether positional or under the name that Flax gives it, and the rest."""
    if args:
        return args[0], args[1:], kwargs
    name = next(name for name in ("x", "inputs") if name in kwargs)
    return kwargs[name], (), {k: v for k, v in kwargs.items() if k != name}


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct) or (hasattr(leaf, "__array__") and not isinstance(leaf, np.bool_))
