"""The words that the other modules share."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
from jax.typing import ArrayLike

Axes = int | Sequence[int]
AxisName = str | Sequence[str]
AxisIndexGroups = Sequence[Sequence[int]]
Activation = str | Callable[[jax.Array], jax.Array]
Momentum = ArrayLike | Callable[[jax.Array], ArrayLike] | None
Domain = ArrayLike | Sequence[int]
ArraysByName = Mapping[str, ArrayLike]
"""Params or batch_stats as a user may hand them over, each [C]"""
Params = dict[str, jax.Array]
BatchStats = dict[str, jax.Array]


class Moments(NamedTuple):
    """Count, mean and variance of any set of examples: the one value that batch norm passes around.

    Two `Moments` merge exactly into those of the union of their sets (`jaxbn.merge_moments`). Those of an empty set,
    whose `count` is 0, change nothing.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    """[] or [C] float, the number of values per channel, or the sum of their weights; >= 0."""
    mean: jax.Array
    """[C] float or complex, in the unit of the data."""
    var: jax.Array
    """[C] float, biased (divided by `count`), in the squared unit of the data; >= 0."""


class Reduction(NamedTuple):
    """Over what the moments are taken; static."""

    axes: tuple[int, ...]
    """feature axes, canonical"""
    names: tuple[str, ...] = ()
    """mapped axes"""
    groups: tuple[tuple[int, ...], ...] | None = None
    """groups of indices of the mapped axes"""
    two_pass: bool = False
    """read the batch once more, for its mean as the pivot"""
