"""Mapped axes: what the devices (or vmap lanes) of an `axis_name` tell each other, in one collective."""

import contextlib
import math
import operator
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxbn._compat import as_varying, varying_axes
from jaxbn._core.numbers import zero_unless
from jaxbn._core.types import AxisIndexGroups, AxisName

_STAND_INS: ContextVar[frozenset[str]] = ContextVar("stand_ins", default=frozenset())


@contextlib.contextmanager
def standing_in(name: str) -> Iterator[None]:
    """Inside this context, which is inside the axis, that axis of size 1 stands in for a mapping that is not there."""
    token = _STAND_INS.set(_STAND_INS.get() | {name})
    try:
        yield
    finally:
        _STAND_INS.reset(token)


def stand_in(names: Iterable[str]) -> bool:
    """Whether one of these axes stands in for another. Groups of its indices then have no meaning.

    An axis of more than one member that a mapping inside binds under the same name is none.
    """
    return any(name in _STAND_INS.get() and lax.axis_size(name) == 1 for name in names)


def check_axis_name(axis_name: AxisName | None, *, bound: bool = True) -> tuple[str, ...]:
    """The names as a tuple; where `bound`, each of them is bound here.

    Raises:
      ValueError: a name is not bound by an enclosing vmap, pmap or shard_map, or is given twice, or it is one of vmap
        inside a shard_map with `check_vma=True`, where JAX has no collectives over it.
    """
    if axis_name is None:
        return ()
    names = (axis_name,) if isinstance(axis_name, str) or not isinstance(axis_name, Iterable) else tuple(axis_name)
    if isinstance(axis_name, Mapping) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"`axis_name` must be a string or a sequence of strings, got {axis_name!r}.")
    if len(set(names)) != len(names):
        raise ValueError(f"`axis_name` must name each axis once, got {axis_name!r}.")
    if not bound:
        return names
    for name in names:
        try:
            lax.axis_size(name)
        except NameError:
            raise ValueError(
                f"`axis_name` must be bound by an enclosing jax.vmap, jax.pmap or jax.shard_map, got {axis_name!r}, of "
                f"which {name!r} is not bound here. Under plain jax.jit over sharded arrays batch norm is synchronized "
                "already: leave `axis_name` out."
            ) from None
    lanes, _ = _split(names)
    if lanes and _checks_varying():
        raise ValueError(
            f"`axis_name` must not name an axis of jax.vmap inside a jax.shard_map with check_vma=True, where JAX has "
            f"no collectives over it, got {axis_name!r}, of which {lanes} are axes of vmap. Set check_vma=False."
        )
    return names


def check_groups(
    groups: AxisIndexGroups | None, names: tuple[str, ...], *, bound: bool = True
) -> tuple[tuple[int, ...], ...] | None:
    """The groups as tuples: a partition of the indices of the axis. Groups may be of unequal size.

    There are none where an axis stands in for one that is not there: the whole batch is one group.

    Raises:
      ValueError: there is no axis to group, or the groups are not a partition of it.
      TypeError: the groups are no sequence of sequences of integers.
    """
    if groups is None:
        return None
    if not names:
        raise ValueError(
            f"`axis_index_groups` needs an `axis_name` to group, got groups {groups!r} and no `axis_name`."
        )
    try:
        canonical = tuple(tuple(operator.index(i) for i in group) for group in groups)
    except TypeError:
        raise TypeError(f"`axis_index_groups` must be a sequence of sequences of integers, got {groups!r}.") from None
    if not bound:
        return canonical
    if stand_in(names):
        return None
    size = axis_size(names)
    if sorted(i for group in canonical for i in group) != list(range(size)) or not all(canonical):
        raise ValueError(
            f"`axis_index_groups` must be a partition of the {size} indices of {names!r}: each of 0..{size - 1} in "
            f"exactly one group, got {groups!r}."
        )
    return canonical


def axis_size(names: tuple[str, ...]) -> int:
    """Number of members of all the named axes together."""
    return math.prod(lax.axis_size(name) for name in names)


def _split(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names that vmap binds, and those that are axes of devices: the latter go into one collective."""
    devices = set(jax.sharding.get_abstract_mesh().manual_axes)
    return tuple(n for n in names if n not in devices), tuple(n for n in names if n in devices)


def _varying(x: jax.Array, names: tuple[str, ...]) -> jax.Array:
    """Marks `x` as different on each device along `names`, for shard_map's varying-axes check."""
    if not _checks_varying():
        return x
    missing = tuple(n for n in names if n not in varying_axes(x))
    return as_varying(x, missing) if missing else x


def _checks_varying() -> bool:
    """Whether the shard_map around us runs with `check_vma=True`."""
    names = jax.sharding.get_abstract_mesh().manual_axes
    if not names:
        return False
    return bool(varying_axes(lax.axis_index(names[0])))


def as_varying_as(x: jax.Array, like: jax.Array) -> jax.Array:
    """Marks `x` as different on each device where `like` is; the transpose is a sum over them, one collective."""
    return _varying(x, tuple(varying_axes(like)))


def all_sum(x: jax.Array, names: tuple[str, ...], groups: tuple[tuple[int, ...], ...] | None) -> jax.Array:
    """Sum of `x` over all members of my group, with one collective forward and one backward."""
    if not names:
        return x
    lanes, devices = _split(names)
    if groups is not None and (lanes or _checks_varying()):
        # JAX has no sums within groups there. A product with 0 would let a NaN of another group through.
        everyone = _gather(x, names)
        mine = _members(names, groups).reshape((-1,) + (1,) * x.ndim)
        return zero_unless(mine, everyone).sum(0)
    for name in lanes:
        x = lax.psum(x, name)
    return lax.psum(_varying(x, devices), devices, axis_index_groups=groups) if devices else x


def _gather(x: jax.Array, names: tuple[str, ...]) -> jax.Array:
    """[...] -> [members, ...], members in row-major order of `names`."""
    lanes, devices = _split(names)
    rank = x.ndim
    for name in lanes:
        x = lax.all_gather(x, name)
    if devices:
        x = lax.all_gather(_varying(x, devices), devices)
        x = x.reshape(tuple(lax.axis_size(n) for n in devices) + x.shape[1:])
    order = devices + lanes[::-1]
    x = jnp.transpose(x, [order.index(n) for n in names] + list(range(len(names), len(names) + rank)))
    return x.reshape(-1, *x.shape[len(names) :])


def _members(names: tuple[str, ...], groups: tuple[tuple[int, ...], ...]) -> jax.Array:
    """[members] bool, who is in my group."""
    group_of = np.zeros(axis_size(names), np.int32)
    for number, group in enumerate(groups):
        group_of[list(group)] = number
    me = jnp.int32(0)
    for name in names:
        me = me * lax.axis_size(name) + lax.axis_index(name)
    group_of = jnp.asarray(group_of)
    return group_of == group_of[me]
