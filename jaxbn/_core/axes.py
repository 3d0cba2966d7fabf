"""Feature axes: which axes of an array hold the channels, and how [C] vectors meet it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxbn._core.types import Axes


def feature_axes(axis: Axes, ndim: int) -> tuple[int, ...]:
    """Canonical form of `axis` for an array of rank `ndim`: sorted, non-negative, each once.

    Raises:
      ValueError: an axis is out of range or named twice, or none is named.
      TypeError: an axis is not an integer.
    """
    axes = tuple(axis) if isinstance(axis, Sequence) and not isinstance(axis, str) else (axis,)
    if not axes:
        raise ValueError("`axis` must name at least one feature axis, got ().")
    for a in axes:
        if isinstance(a, bool) or not isinstance(a, int | np.integer):
            raise TypeError(f"`axis` must be an integer or a sequence of integers, got {axis!r}.")
        if not -ndim <= a < ndim:
            raise ValueError(f"`axis` must be in [{-ndim}, {ndim}) for an input of rank {ndim}, got {a}.")
    canonical = tuple(sorted(int(a) % ndim for a in axes))
    if len(set(canonical)) != len(canonical):
        raise ValueError(f"`axis` must name each axis once, got {axis!r} for an input of rank {ndim}.")
    return canonical


def reduction_axes(axes: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """All axes that are not feature axes."""
    return tuple(a for a in range(ndim) if a not in axes)


def feature_shape(x, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that scale, bias and statistics have for `x`: [C], or one size for each feature axis."""
    return tuple(x.shape[a] for a in axes)


def expand(vector: jax.Array, axes: tuple[int, ...], ndim: int) -> jax.Array:
    """[C] -> rank `ndim`, with size 1 on every reduction axis. A scalar stays one."""
    return jnp.expand_dims(vector, reduction_axes(axes, ndim)) if vector.ndim else vector


def expand_mask(mask: jax.Array, ndim: int) -> jax.Array:
    """The mask with leading axes of size 1 up to rank `ndim`."""
    return mask.reshape((1,) * (ndim - mask.ndim) + mask.shape)
