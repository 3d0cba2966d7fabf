"""Checks of what the tools are given, made once at the public boundary: the rule, then what came."""

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def check_function(value: Any, name: str, arguments: tuple[str, ...]) -> None:
    """A callable that takes these arguments by position."""
    rule = f"`{name}` must be a function of ({', '.join(arguments)})"
    if not callable(value):
        raise TypeError(f"{rule}, got {type(value).__name__}.")
    try:
        signature = inspect.signature(value)
    except (ValueError, TypeError):  # one of C has none
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        raise TypeError(f"{rule}, got {value!r}, a function of {signature}.") from None


def check_integer(value: Any, name: str, least: int) -> int:
    """An integer of at least `least`."""
    if isinstance(value, bool | np.ndarray | jax.Array) or not hasattr(value, "__index__"):
        raise TypeError(f"`{name}` must be an integer, got {value!r}.")
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}, got {value!r}.")
    return int(value)


def check_text(value: Any, name: str) -> None:
    """A string."""
    if not isinstance(value, str):
        raise TypeError(f"`{name}` must be a string, got {value!r}.")


def check_mapping(value: Any, name: str, rule: str) -> None:
    """A dict, or another mapping."""
    if not isinstance(value, Mapping):
        raise TypeError(f"`{name}` must {rule}, got {type(value).__name__}.")


def check_iterable(value: Any, name: str, rule: str) -> None:
    """What can be iterated, and is neither text, a mapping nor a scalar. Nothing is read of it."""
    is_plain = isinstance(value, str | bytes | Mapping | type) or getattr(value, "shape", None) == ()
    if is_plain or not (hasattr(value, "__iter__") or hasattr(value, "__getitem__")):
        raise TypeError(f"`{name}` must {rule}, got {type(value).__name__}.")
