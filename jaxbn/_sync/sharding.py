"""Arrays whose type says how they are split over devices (a mesh with explicit axes)."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


def is_split(x: jax.Array) -> bool:
    """Whether the type of `x` says that it is split over devices."""
    return any(part is not None for part in jax.typeof(x).sharding.spec)


def split_alike(*arrays: jax.Array) -> list[jax.Array]:
    """The arrays in their common shape, split over devices alike: each axis as the first of them that splits it.

    JAX adds and multiplies arrays of which one is split, but does not choose between them.
    """
    shape = jnp.broadcast_shapes(*(jnp.shape(a) for a in arrays))
    spec: list = [None] * len(shape)
    mesh = None
    for a in arrays:
        parts = jax.typeof(a).sharding.spec
        mesh = jax.typeof(a).sharding.mesh if is_split(a) else mesh
        for i, part in enumerate(parts, len(shape) - len(parts)):
            if spec[i] is None and a.shape[i - len(shape)] == shape[i]:
                spec[i] = part
    arrays = tuple(jnp.expand_dims(a, tuple(range(len(shape) - jnp.ndim(a)))) for a in arrays)
    arrays = tuple(jnp.broadcast_to(a, shape) for a in arrays)
    if mesh is None:
        return list(arrays)
    return [jax.sharding.reshard(a, NamedSharding(mesh, P(*spec))) for a in arrays]


def split_as(x: jax.Array, like: Any) -> jax.Array:
    """`x`, split over devices as `like`, an array of its shape or the type of one."""
    wanted = (like if isinstance(like, ShapedArray) else jax.typeof(like)).sharding
    if wanted.spec == jax.typeof(x).sharding.spec:
        return x
    # The type of an array that was placed nowhere knows no mesh.
    mesh = jax.typeof(x).sharding.mesh if wanted.mesh.empty else wanted.mesh
    return jax.sharding.reshard(x, NamedSharding(mesh, wanted.spec))


def where(condition: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """`jnp.where`, of arrays that are split over devices each in its own way too."""
    return jax.lax.select(*split_alike(condition, a, b))


def stack(*arrays: jax.Array) -> jax.Array:
    """`jnp.stack`, of arrays that are split over devices each in its own way too; they are broadcast to one shape."""
    return jnp.stack(split_alike(*arrays))
