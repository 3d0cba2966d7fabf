"""Consecutive, equal parts of the examples, each a batch of its own: virtual batches, and those of several domains."""

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
    num_chunks = inputs.x.shape[reduction_axes(axes, inputs.x.ndim)[0]] // chunk

    def merged(layer, pivots, moments):
        return merge_sets(pivots, moments, lax.stop_gradient(layer.mean))

    return _over_equal(batch, axes, num_chunks, layer, inputs, None, merged)


def over_parts(batch: Callable, axes: tuple[int, ...], num_parts: int, layer, inputs):
    """`y` of the shape of x, with the pivots and moments [K, C] of K parts, each by `batch(layer, inputs)`.

    What the layer holds as [K, C] has a row for each part; what it holds as [C] is common to all.
    """
    rows = jax.tree.map(lambda v: 0 if v.ndim > len(axes) else None, layer)
    return _over_equal(batch, axes, num_parts, layer, inputs, rows, lambda _, pivots, moments: (pivots, moments))


def _over_equal(batch: Callable, axes, number: int, layer, inputs, rows, join: Callable):
    x = inputs.x
    axis = reduction_axes(axes, x.ndim)[0]

    def has_parts(v):
        return v.shape[axis] == x.shape[axis]

    def split(v):
        size = v.shape[axis] // max(number, 1)
        return v.reshape(*v.shape[:axis], number, size, *v.shape[axis + 1 :]) if has_parts(v) else v

    def run(layer, inputs):
        along = jax.tree.map(lambda v: axis if has_parts(v) else None, inputs)
        mapped = jax.vmap(batch, in_axes=(rows, along), out_axes=(axis, 0, 0))
        y, pivots, moments = mapped(layer, jax.tree.map(split, inputs))
        return y.reshape(inputs.x.shape), *join(layer, pivots, moments)

    split_and_run: Any = run
    if is_split(x):
        # Parts may span devices, which a type with explicit sharding cannot say: leave it to the partitioner.
        sharding = jax.typeof(x).sharding
        split_and_run = jax.sharding.auto_axes(run, out_sharding=(sharding, *[NamedSharding(sharding.mesh, P())] * 2))
    return split_and_run(layer, inputs)
