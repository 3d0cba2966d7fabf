"""How moments travel between devices: as one vector, with the digits that matter."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def packed(arrays: list[jax.Array], move: Callable[[jax.Array], jax.Array]) -> list[jax.Array]:
    """`move` applied to all arrays as one vector [n], so that it is one collective; it may add axes in front."""
    parts = [p for a in arrays for p in ((a.real, a.imag) if jnp.iscomplexobj(a) else (a,))]
    moved = move(jnp.concatenate([p.reshape(-1) for p in parts]))
    ends = np.cumsum([p.size for p in parts])[:-1]
    parts = [m.reshape(m.shape[:-1] + p.shape) for m, p in zip(jnp.split(moved, ends, -1), parts, strict=True)]
    of_parts = iter(parts)
    return [lax.complex(next(of_parts), next(of_parts)) if jnp.iscomplexobj(a) else next(of_parts) for a in arrays]


def sum_and_error(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """a + b rounded, and what the rounding lost, exactly (Knuth's two-sum)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


# Between devices that start from no common pivot, a mean that is large against the deviation needs more digits than a
# float32 has, and the variance fewer: its four lowest bits then carry the next four bits of the mean. So [2C + 1]
# numbers are enough at offsets of 1e3 standard deviations.
_TAIL = np.uint32(0xF)


def _unit(mean: jax.Array) -> jax.Array:
    """A sixteenth of the last digit of a float32."""
    exponent = lax.bitcast_convert_type(mean, jnp.uint32) & np.uint32(0x7F800000)
    return lax.bitcast_convert_type(exponent, jnp.float32) * np.float32(2.0**-27)


def _without_last_bits(var: jax.Array) -> jax.Array:
    """The bits of `var`, zero where a tail may stand."""
    return lax.bitcast_convert_type(var, jnp.uint32) & ~_TAIL


def _carries(bits: jax.Array, mean: jax.Array) -> jax.Array:
    """Whether a variance of these bits carries a tail of `mean`: more than 16 deviations from zero."""
    return lax.square(mean) > np.float32(256) * lax.bitcast_convert_type(bits, jnp.float32)


def with_tail(var: jax.Array, mean: jax.Array, tail: jax.Array) -> jax.Array:
    """`var`, where it carries one with `tail`, less than a digit of `mean`; other dtypes as they are."""
    if mean.dtype != jnp.float32:
        return var
    bits, unit = _without_last_bits(var), _unit(mean)
    sixteenths = jnp.clip(jnp.round(tail / jnp.where(unit > 0, unit, jnp.ones_like(unit))), -8, 7).astype(jnp.int32)
    last = lax.bitcast_convert_type(sixteenths, jnp.uint32) & _TAIL
    return jnp.where(_carries(bits, mean), lax.bitcast_convert_type(bits | last, jnp.float32), var)


def without_tail(var: jax.Array, mean: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """The variance, and the tail that it carried for `mean`."""
    if mean.dtype != jnp.float32:
        return var, None
    bits = _without_last_bits(var)
    carries = _carries(bits, mean)
    last = lax.bitcast_convert_type(var, jnp.uint32) << np.uint32(28)
    sixteenths = lax.bitcast_convert_type(last, jnp.int32) >> np.int32(28)
    tail = jnp.where(carries, sixteenths.astype(jnp.float32) * _unit(mean), jnp.zeros_like(mean))
    middle = lax.bitcast_convert_type(bits | np.uint32(8), jnp.float32)
    return jnp.where(carries, middle, var), tail
