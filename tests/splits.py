"""Every way to split a batch of 8 over four members: each turns a layer of one member into one of the whole batch.

A layer takes `(params, batch_stats, x, mask)` and returns `y, new_stats`; split, it takes them whole and returns y
whole and `new_stats` stacked, [members, ...]. What is split is the first axis of `x`, and of the mask where it has one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

MEMBERS = 4


class Split(NamedTuple):
    """One way to split a batch."""

    axis_name: Any
    apply: Callable
    """(layer, params, batch_stats, x, mask) -> y, stats [members, ...]"""


def _parts(x, sizes):
    return None if x is None else x.reshape(*sizes, x.shape[0] // np.prod(sizes), *x.shape[1:])


def _by_vmap(sizes, names, layer, params, stats, x, mask):
    for name in reversed(names):
        layer = jax.vmap(layer, in_axes=(None, None, 0, 0), axis_name=name)
    y, new = layer(params, stats, _parts(x, sizes), _parts(mask, sizes))
    return y.reshape(x.shape), jax.tree.map(lambda s: s.reshape(MEMBERS, *s.shape[len(sizes) :]), new)


def _by_pmap(layer, params, stats, x, mask):
    layer = jax.pmap(layer, axis_name="d", in_axes=(None, None, 0, 0), devices=jax.devices()[:MEMBERS])
    y, new = layer(params, stats, _parts(x, (MEMBERS,)), _parts(mask, (MEMBERS,)))
    return y.reshape(x.shape), new


def _by_shard_map(sizes, names, lanes, check_vma, layer, params, stats, x, mask):
    """Over a mesh of `sizes`, and within each of its devices over the axis 'v' of vmap where there are `lanes`."""

    def of_device(params, stats, x, mask):
        if lanes:
            split = jax.vmap(layer, in_axes=(None, None, 0, 0), axis_name="v")
            y, new = split(params, stats, _parts(x, (lanes,)), _parts(mask, (lanes,)))
            return y.reshape(x.shape), new
        y, new = layer(params, stats, x, mask)
        return y, jax.tree.map(lambda s: s[None], new)

    split = jax.shard_map(
        of_device,
        mesh=mesh(sizes, names),
        in_specs=(P(), P(), P(names), P(names)),
        out_specs=(P(names), P(names)),
        check_vma=check_vma,
    )
    return split(params, stats, x, mask)


def mesh(sizes, names, axis_type=AxisType.Auto):
    """A mesh of the first devices."""
    return jax.make_mesh(
        sizes, names, devices=jax.devices()[: int(np.prod(sizes))], axis_types=(axis_type,) * len(names)
    )


SPLITS = {
    "vmap": Split("d", partial(_by_vmap, (4,), ("d",))),
    "vmap, two names": Split(("d", "e"), partial(_by_vmap, (2, 2), ("d", "e"))),
    "pmap": Split("d", _by_pmap),
}
for _check in (True, False):
    _kind = "checked" if _check else "unchecked"
    SPLITS |= {
        f"shard_map, {_kind}": Split("d", partial(_by_shard_map, (4,), ("d",), 0, _check)),
        f"shard_map, two names, {_kind}": Split(("d", "e"), partial(_by_shard_map, (2, 2), ("d", "e"), 0, _check)),
        f"vmap in shard_map, {_kind}": Split(("d", "v"), partial(_by_shard_map, (2,), ("d",), 2, _check)),
    }


class Sharding(NamedTuple):
    """One way to shard the whole batch under plain jit."""

    sizes: tuple
    names: tuple
    x: P
    """of [batch, positions, features]"""
    features: P
    axis_type: AxisType = AxisType.Auto

    def mesh(self):
        return mesh(self.sizes, self.names, self.axis_type)

    def put(self, params, stats, x, mask):
        """The arguments of a layer on the devices."""

        def put(spec, v):
            return jax.device_put(v, NamedSharding(self.mesh(), spec))

        def masked(v):
            return put(P(*(s if n > 1 else None for s, n in zip(self.x, v.shape, strict=False))), v)

        vectors = partial(jax.tree.map, partial(put, self.features))
        return vectors(params), vectors(stats), put(self.x, x), None if mask is None else masked(mask)


SHARDINGS = {
    "batch": Sharding((4,), ("d",), P("d"), P()),
    "batch and features": Sharding((2, 2), ("d", "f"), P("d", None, "f"), P("f")),
    "positions": Sharding((4,), ("d",), P(None, "d"), P()),
    "explicit": Sharding((4,), ("d",), P("d"), P(), AxisType.Explicit),
    "explicit, positions": Sharding((4,), ("d",), P(None, "d"), P(), AxisType.Explicit),
    "explicit, batch and features": Sharding((2, 2), ("d", "f"), P("d", None, "f"), P("f"), AxisType.Explicit),
}
