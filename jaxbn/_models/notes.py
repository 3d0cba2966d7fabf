"""What is noted while a model is watched for the moments of what enters its batch norms."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from jaxbn._core.batch_norm import batch_moments
from jaxbn._core.merge import Accumulated, merge_into
from jaxbn._core.numbers import as_complex_as
from jaxbn._core.options import BatchOptions
from jaxbn._core.step import moments_by_domain
from jaxbn._core.types import Moments
from jaxbn._models.tree import Path
from jaxbn._models.unbound_axes import axis_names
from jaxbn._models.watch import Call


class Notes:
    """What is noted while a `forward` is traced; plain Python, because the arrays may belong to an inner trace."""

    def __init__(self) -> None:
        self.reported: set[Path] = set()
        """layers whose moments are in the state of the model"""
        self.lost: dict[Path, str] = {}
        """layers that ran but whose moments are not: the reason"""
        self.calls: list[tuple[Path, bool]] = []
        """the calls of batch norms in order: path, and whether the running statistics normalized"""

    def clear(self) -> None:
        """Begins another trace. What has been reported is kept: part of the model may come from a cache of traces."""
        self.lost.clear()
        self.calls.clear()


_NOTES: ContextVar[Notes | None] = ContextVar("notes", default=None)


@contextlib.contextmanager
def taking(notes: Notes) -> Iterator[None]:
    """Inside this context, `current()` returns these notes."""
    token = _NOTES.set(notes)
    try:
        yield
    finally:
        _NOTES.reset(token)


def current() -> Notes | None:
    """The notes of the trace that is under way in this thread, if any."""
    return _NOTES.get()


def evaluates(call: Call, *, takes_arrays: bool) -> bool:
    """Whether the running statistics normalize in this call of a batch norm, whatever the values of the arrays.

    A layer that `takes_arrays` leaves the choice to the program wherever it is an array, even one that is known.
    """
    choice = call.args[1] if len(call.args) > 1 else call.kwargs.get("use_running_average")
    choice = call.layer.use_running_average if choice is None else choice
    return not isinstance(choice, jax.Array if takes_arrays else Tracer) and bool(choice)


def moments_of_input(call: Call) -> Moments:
    """The moments of what enters a batch norm, over all devices if there are several.

    In evaluation a batch norm does not need its `axis_name` to be bound, and neither does this.
    """
    x = jnp.asarray(call.args[0] if call.args else call.kwargs["x"])
    bound = tuple(name for name in axis_names(call.layer) if _is_bound(name))
    options: BatchOptions = {"axis": call.layer.axis, "mask": call.kwargs.get("mask"), "axis_name": bound or None}
    domain = call.kwargs.get("domain")
    if domain is None:
        return batch_moments(x, **options)
    return moments_by_domain(x, domain, call.layer.num_domains, options)


def _is_bound(name: Any) -> bool:
    try:
        lax.axis_size(name)
    except NameError:
        return False
    return True


def add(old: Accumulated, new: Moments) -> Accumulated:
    """The two merged, [C] each, in the dtypes of `old`; complex if the new ones are."""
    mean, mean_rest = (as_complex_as(new.mean, v) for v in (old.mean, old.mean_rest))
    return merge_into(old._replace(mean=mean, mean_rest=mean_rest), new)
