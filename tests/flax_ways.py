"""The ways in which users run a batch norm layer: each runs two training steps and an evaluation of a whole batch.

A way is two parts: `member`, which makes a layer (of `tests.flax_layers`) of a whole batch from one that sees a part of
it, and `run`, which runs a program of whole batches.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.flax_cases import Case, Data
from tests.flax_layers import life, linen_layer, nnx_layer
from tests.splits import mesh

NAME = "members"


def _whole(layer, case):
    return layer


def _remat(layer, case):
    return jax.checkpoint(layer, static_argnums=4)


def _lead(v, axis: int, parts: int):
    """The axis in parts, with the parts in front."""
    return jnp.moveaxis(v.reshape(*v.shape[:axis], parts, v.shape[axis] // parts, *v.shape[axis + 1 :]), axis, 0)


def _expanded(mask, case: Case):
    return None if mask is None else mask.reshape((1,) * (len(case.shape) - mask.ndim) + mask.shape)


def _over_lanes(transform, layer, case: Case):
    """Members are lanes of `jax.vmap` or devices of `jax.pmap`."""

    def whole(params, stats, x, mask, train):
        mask = _expanded(mask, case)
        is_split = mask is not None and mask.shape[case.split] > 1
        lanes = transform(
            lambda params, stats, x, mask: layer(params, stats, x, mask, train),
            in_axes=(None, None, 0, 0 if is_split else None),
            axis_name=NAME,
        )
        y, new = lanes(
            params,
            stats,
            _lead(x, case.split, case.parts),
            _lead(mask, case.split, case.parts) if is_split else mask,
        )
        return jnp.moveaxis(y, 0, case.split).reshape(x.shape), jax.tree.map(lambda v: v[0], new)

    return whole


def _pmap(f, **options):
    # Its own devices are the first ones, as many as there are members.
    return lambda *args: jax.pmap(f, devices=jax.devices()[: args[2].shape[0]], **options)(*args)


def _shard_map(check_vma, layer, case: Case):
    def whole(params, stats, x, mask, train):
        mask = _expanded(mask, case)

        def spec(v):
            return (
                P() if v is None else P(*(None if a != case.split or n == 1 else NAME for a, n in enumerate(v.shape)))
            )

        split = jax.shard_map(
            lambda params, stats, x, mask: layer(params, stats, x, mask, train),
            mesh=mesh((case.parts,), (NAME,)),
            in_specs=(P(), P(), spec(x), spec(mask)),
            out_specs=(P(*([None] * case.split + [NAME])), P()),
            check_vma=check_vma,
        )
        return split(params, stats, x, mask)

    return whole


def _jit(program, case: Case, d: Data):
    return jax.jit(program)(*d)


def _eager(program, case: Case, d: Data):
    return program(*jax.tree.map(jnp.asarray, d))


def _disable_jit(program, case: Case, d: Data):
    with jax.disable_jit():
        return program(*jax.tree.map(jnp.asarray, d))


def _donated(program, case: Case, d: Data):
    """The statistics are donated: what comes back has their types."""
    aliased = jax.jit(program, donate_argnums=1)
    return aliased(*jax.tree.map(jnp.array, d))


def _vmap(program, case: Case, d: Data):
    """Two lanes that do not know of each other; the first has the batches of the second the other way round."""
    lanes = jax.jit(jax.vmap(program, in_axes=(None, None, 0, 0, None)))
    found = lanes(d.params, d.batch_stats, np.stack([d.x[::-1], d.x]), np.stack([d.dy[::-1], d.dy]), d.mask)
    return jax.tree.map(lambda v: v[1], found)


def _exported(symbolic, program, case: Case, d: Data):
    def described(v, axis):
        shape = [("b" if a == axis and symbolic and n > 1 else str(n)) for a, n in enumerate(v.shape)]
        return jax.ShapeDtypeStruct(jax.export.symbolic_shape(", ".join(shape), scope=scope), v.dtype)

    scope = jax.export.SymbolicScope()
    of_mask = None if d.mask is None else described(d.mask, case.split - (len(case.shape) - d.mask.ndim))
    fixed = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), (d.params, d.batch_stats))
    program = jax.export.export(jax.jit(program))(*fixed, *(described(v, case.split + 1) for v in (d.x, d.dy)), of_mask)
    return jax.export.deserialize(program.serialize()).call(*d)


def _sharded(axis_type, program, case: Case, d: Data):
    """Plain jit: the arrays lie in parts along `case.split`, the vectors too where it is a feature axis."""
    devices = mesh((case.parts,), (NAME,), axis_type)

    def put(v, axis):
        spec = P(*(NAME if a == axis and n > 1 else None for a, n in enumerate(v.shape)))
        return jax.device_put(v, NamedSharding(devices, spec))

    of_features = case.axes.index(case.split) if case.split in case.axes else None
    mask = None if d.mask is None else put(d.mask, case.split - (len(case.shape) - d.mask.ndim))
    vectors = jax.tree.map(lambda v: put(v, of_features), (d.params, d.batch_stats))
    with jax.set_mesh(devices):
        return jax.jit(program)(*vectors, put(d.x, case.split + 1), put(d.dy, case.split + 1), mask)


class Way(NamedTuple):
    """How a layer is run."""

    run: Callable = _jit
    """(program, case, data) -> what the program found"""
    member: Callable = _whole
    """(layer of a member, case) -> layer of a whole batch"""
    divides: str = ""
    """which axes of x it may divide: '', 'rows' or 'any'"""
    scan: bool = False
    named: bool = False
    """whether the layer has an `axis_name`"""
    slow: bool = False
    """whether each operation is compiled by itself"""


WAYS = {
    "jit": Way(),
    "eager": Way(_eager, slow=True),
    "disable_jit": Way(_disable_jit, slow=True),
    "scan": Way(scan=True),
    "remat": Way(member=_remat),
    "donated": Way(_donated),
    "vmap": Way(_vmap),
    "exported": Way(partial(_exported, False)),
    "exported, symbolic": Way(partial(_exported, True), divides="rows"),
    "sharded, automatic": Way(partial(_sharded, AxisType.Auto), divides="any"),
    "sharded, explicit": Way(partial(_sharded, AxisType.Explicit), divides="any"),
    "vmap, named": Way(member=partial(_over_lanes, jax.vmap), divides="rows", named=True),
    "pmap": Way(_eager, partial(_over_lanes, _pmap), divides="rows", named=True, slow=True),
    "shard_map, checked": Way(member=partial(_shard_map, True), divides="rows", named=True),
    "shard_map, unchecked": Way(member=partial(_shard_map, False), divides="rows", named=True),
}


def run(cls, case: Case, d: Data) -> dict[str, np.ndarray]:
    """What a layer of that class gives."""
    way = WAYS[case.way]
    make = nnx_layer if case.layer == "nnx" else linen_layer
    layer = way.member(make(cls, case, NAME if way.named else None), case)
    found = way.run(partial(life, layer, scan=way.scan), case, d)
    return {name: np.asarray(v) for name, v in found.items()}
