"""Checks of the tools' arguments, made once at the public boundary: messages say the rule, then what they got."""

import inspect
from collections.abc import Mapping
from typing import Any


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
