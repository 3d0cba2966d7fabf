"""Running a model that names the mapped axes of its training where they do not exist."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def with_axes_bound(f: Callable[[], Any]) -> Any:
    """`f()`, a pytree of arrays, with each axis name that it needs and that is not bound as an axis of size 1.

    `f` is called again for each such name.
    """
    names: list[str] = []
    while True:
        try:
            return _under(names, f)
        except Exception as error:
            name = _unbound_name(error)
            if name is None or name in names:
                raise
            names.append(name)


def _under(names: list[str], f: Callable[[], Any]) -> Any:
    if not names:
        return f()
    *outer, name = names
    return jax.tree.map(lambda v: v[0], jax.vmap(lambda _: _under(outer, f), axis_name=name)(jnp.zeros(1)))


def _unbound_name(error: BaseException | None) -> str | None:
    """The axis name that the error, or the one it was raised from, says is not bound."""
    while error is not None and not isinstance(error, NameError):
        error = error.__cause__ or error.__context__
    found = re.search(r"unbound axis name: (.+?)(\. |$)", str(error))
    return found and found[1]
