"""Virtual batches: consecutive chunks of the examples, each a batch of its own."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxbn._core.axes import reduction_axes
from jaxbn._core.merge import merge_sets
from jaxbn._sync.sharding import is_split


def over_chunks(batch: Callable, axes: tuple[int, ...], chunk: int, layer, inputs):
    """`y` of the shape of x, and a pivot with the moments of all chunks, each by `batch(layer, inputs)`."""
    x = inputs.x
    axis = reduction_axes(axes, x.ndim)[0]

    def split(v):
        return (
            v if v.shape[axis] == 1 else v.reshape(*v.shape[:axis], v.shape[axis] // chunk, chunk, *v.shape[axis + 1 :])
        )

    def run(layer, inputs):
        along = jax.tree.map(lambda v: None if v.shape[axis] == 1 else axis, inputs)
        mapped = jax.vmap(batch, in_axes=(None, along), out_axes=(axis, 0, 0))
        y, pivots, moments = mapped(layer, jax.tree.map(split, inputs))
        return y.reshape(inputs.x.shape), *merge_sets(pivots, moments, lax.stop_gradient(layer.mean))

    split_and_run: Any = run
    if is_split(x):
        # Chunks may span devices, which a type with explicit sharding cannot say: leave it to the partitioner.
        sharding = jax.typeof(x).sharding
        split_and_run = jax.sharding.auto_axes(run, out_sharding=(sharding, *[NamedSharding(sharding.mesh, P())] * 2))
    return split_and_run(layer, inputs)
