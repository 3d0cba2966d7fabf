"""Checks of the tools' arguments, made once at the public boundary: messages say the rule, then what they got."""

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxbn._core.checks import describe
from jaxbn._models.tree import Path, path_name


def check_function(value: Any, name: str, arguments: tuple[str, ...]) -> None:
    """Checks that the value is callable with these arguments by position."""
    rule = f"`{name}` must be a function of ({', '.join(arguments)})"
    if not callable(value):
        raise TypeError(f"{rule}, got {type(value).__name__}.")
    try:
        signature = inspect.signature(value)
    except (ValueError, TypeError):  # a function written in C has none
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        raise TypeError(f"{rule}, got {value!r}, a function of {signature}.") from None


def check_text(value: Any, name: str) -> None:
    """Checks that the value is a string."""
    if not isinstance(value, str):
        raise TypeError(f"`{name}` must be a string, got {value!r}.")


def check_mapping(value: Any, name: str, rule: str) -> None:
    """Checks that the value is a dict or another mapping."""
    if not isinstance(value, Mapping):
        raise TypeError(f"`{name}` must {rule}, got {type(value).__name__}.")


def check_iterable(value: Any, name: str, rule: str) -> None:
    """Checks that the value can be iterated and is neither text, a mapping nor a scalar, without reading from it."""
    is_plain = isinstance(value, str | bytes | Mapping | type) or getattr(value, "shape", None) == ()
    if is_plain or not (hasattr(value, "__iter__") or hasattr(value, "__getitem__")):
        raise TypeError(f"`{name}` must {rule}, got {type(value).__name__}.")


def check_numbers(value: Any, name: str, path: Path) -> None:
    """Checks that the value at `path` of the argument is an array of numbers or converts to one.

    Random keys of JAX (`jax.random.key`) are arrays, but not of numbers.
    """
    dtype = _dtype(value)
    if dtype is None or dtype.kind in "OSUMm":
        what = describe(value) if isinstance(value, jax.Array) else type(value).__name__
        what += f" of {dtype}" if isinstance(value, np.ndarray) else ""
        raise TypeError(f"`{name}` must hold arrays of numbers, got {what} at {path_name(path)}.")


def check_layer(stats: Mapping[str, Any], name: str, path: Path) -> None:
    """Checks that the statistics of a layer at `path` of the argument are arrays of numbers."""
    for field in ("mean", "var", "count"):
        if field in stats:
            check_numbers(stats[field], name, (*path, field))


def _dtype(value: Any) -> np.dtype | None:
    """The dtype that NumPy has for the value, if it has one."""
    dtype = getattr(value, "dtype", None)
    if isinstance(dtype, np.dtype):  # a traced array too, which does not convert
        return dtype
    try:
        return np.asarray(value).dtype
    except (TypeError, ValueError, RuntimeError):  # a random key, lists of unequal lengths, a tensor with a gradient
        return None
