"""Several arrays as one vector, so that moving them is one collective."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxbn._sync.sharding import is_split


def packed(arrays: list[jax.Array], move: Callable[[jax.Array], jax.Array]) -> list[jax.Array]:
    """`move` applied to all arrays as one vector [n], so that it is one collective; it may add axes in front.

    Arrays whose type says that they are split over devices go one by one: JAX does not join them.
    """
    if any(is_split(a) for a in arrays):
        return [move(a) for a in arrays]
    parts = [p for a in arrays for p in ((a.real, a.imag) if jnp.iscomplexobj(a) else (a,))]
    moved = move(jnp.concatenate([p.reshape(-1) for p in parts]))
    ends = np.cumsum([p.size for p in parts])[:-1]
    parts = [m.reshape(m.shape[:-1] + p.shape) for m, p in zip(jnp.split(moved, ends, -1), parts, strict=True)]
    of_parts = iter(parts)
    return [lax.complex(next(of_parts), next(of_parts)) if jnp.iscomplexobj(a) else next(of_parts) for a in arrays]
