"""Statistics per domain: of the rows [D, C] of a state, each batch, or each part of one, uses and moves its own."""

import jax
import jax.numpy as jnp

from jaxbn._core.numbers import zero_unless
from jaxbn._core.types import Moments
from jaxbn._sync.sharding import where


def is_row(domain: jax.Array, num_domains: int) -> jax.Array:
    """[D] bool, or [K, D] for a batch of K parts: which row each uses; none, where the index is out of range."""
    return jax.nn.one_hot(domain, num_domains, dtype=bool)


def row_of(chosen: jax.Array, rows: jax.Array) -> jax.Array:
    """The chosen one of the rows [D, C], as [C]; for each of K parts its own, as [K, C]."""
    return zero_unless(chosen[(..., *(None,) * (rows.ndim - 1))], rows).sum(chosen.ndim - 1, dtype=rows.dtype)


def nan_unless_known(chosen: jax.Array, vector: jax.Array, num_features: int) -> jax.Array:
    """A vector [C], or [K, C] for parts; NaN where there is no such row."""
    known = chosen.any(-1)
    return where(known[(..., *(None,) * num_features)], vector, jnp.full((), jnp.nan, vector.dtype))


def in_rows(chosen: jax.Array, moments: Moments) -> Moments:
    """The moments [D, C] of every domain, out of those of the batch [C], or of its parts [K, C]; others are empty."""
    parts = chosen if chosen.ndim == 2 else chosen[None]

    def spread(values):
        values = values if chosen.ndim == 2 else values[None]
        here = parts[(..., *(None,) * (values.ndim - 1))]
        return zero_unless(here, values[:, None]).sum(0, dtype=values.dtype)

    count, mean, var = moments
    count = jnp.broadcast_to(count.reshape(count.shape + (1,) * (mean.ndim - count.ndim)), mean.shape)
    return Moments(*map(spread, (count, mean, var)))
