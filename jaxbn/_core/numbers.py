"""Arithmetic that complex numbers and empty sets need: squares, quotients and dtypes of sums."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxbn._sync.sharding import where


def promote(*dtypes) -> jnp.dtype:
    """The dtype that holds all of `dtypes`, under strict dtype promotion too: what is cast to it is cast on purpose."""
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, dtypes)


def accumulator(dtype) -> jnp.dtype:
    """The dtype in which values of `dtype` are summed: at least float32."""
    return promote(dtype, jnp.float32)


def real_dtype(dtype) -> jnp.dtype:
    """float32 for complex64, float64 for complex128, and a real dtype itself."""
    return jnp.finfo(dtype).dtype


def abs_squared(x: jax.Array) -> jax.Array:
    """|x|^2, real."""
    return lax.square(x.real) + lax.square(x.imag) if jnp.iscomplexobj(x) else lax.square(x)


def conj_times(a: jax.Array, b: jax.Array) -> jax.Array:
    """Real part of conj(a) b."""
    return a.real * b.real + a.imag * b.imag if jnp.iscomplexobj(a) else a * b


def divide(total: jax.Array, count: jax.Array) -> jax.Array:
    """`total / count`, zero where there is no count."""
    count = count.astype(total.dtype)
    empty = count == 0
    return total / (count + empty.astype(count.dtype))


def zero_unless(condition: jax.Array, values: jax.Array) -> jax.Array:
    """`values` where the condition holds; what stands elsewhere, NaN too, is gone."""
    return where(condition, values, jnp.zeros((), values.dtype))


def as_complex_as(x: jax.Array, mean: jax.Array) -> jax.Array:
    """A mean [C] that is complex where x is: Flax makes a real one and lets its first update change that."""
    return mean.astype(promote(mean.dtype, jnp.complex64)) if jnp.iscomplexobj(x) else mean
