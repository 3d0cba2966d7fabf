"""The words that the other modules share."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Axes = int | Sequence[int]
AxisName = str | Sequence[str]
AxisIndexGroups = Sequence[Sequence[int]]
Activation = str | Callable[[jax.Array], jax.Array]
Momentum = float | jax.Array | None | Callable[[jax.Array], jax.Array]
Params = dict[str, jax.Array]
BatchStats = dict[str, Any]


class Moments(NamedTuple):
    """Count, mean and variance of any set of examples: the one value that batch norm passes around.

    Two `Moments` merge exactly into those of the union of their sets (`jaxbn.merge_moments`); those of an empty set
    (`count` 0) change nothing.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    """[] or [C] float, number of values a channel (the sum of the weights where there are weights), >= 0."""
    mean: jax.Array
    """[C] float or complex, in the unit of the data."""
    var: jax.Array
    """[C] float, biased (divided by `count`), in the squared unit of the data, >= 0."""


def promote(*dtypes) -> jnp.dtype:
    """The dtype that holds all of `dtypes`, under strict dtype promotion too: what is cast to it is cast on purpose."""
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, dtypes)
