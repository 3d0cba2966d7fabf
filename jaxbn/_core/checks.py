"""Checks of single values that a user passes: arrays, numbers, flags, dtypes, schedules. The rule, then what came."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def describe(x) -> str:
    """dtype and shape, as errors show them."""
    return f"{jnp.result_type(x).name}{list(jnp.shape(x))}"


def check_array(value, name: str) -> jax.Array:
    """An array of numbers, from whatever converts to one, a `Variable` of nnx too."""
    wraps_array = hasattr(type(value), "__jax_array__")
    if value is None or isinstance(value, str | bytes | Mapping) or (callable(value) and not wraps_array):
        raise TypeError(f"`{name}` must be an array, got {type(value).__name__}.")
    try:
        array = value if isinstance(value, jax.Array) else jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must be an array, got {type(value).__name__} ({str(error)[:200]}).") from None
    if jnp.issubdtype(array.dtype, jax.dtypes.extended):
        raise TypeError(f"`{name}` must be an array of numbers, got {describe(array)}.")
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    return array if array.dtype == dtype else array.astype(dtype)  # float64 where it is off by now


def values_of(array: jax.Array, given: Any = None) -> np.ndarray:
    """The values as far as they are known here: none of a traced array, or of one that other processes hold too.

    `given` is what was converted to the array. Numbers of Python and NumPy are known under `jit` too, which traces the
    array.
    """
    numbers = jax.tree.leaves(given)
    if numbers and all(isinstance(v, np.ndarray | np.generic | int | float) for v in numbers):
        return np.asarray(given)
    if isinstance(array, Tracer) or not array.is_fully_addressable:
        return np.zeros(0)
    return np.asarray(jax.device_get(array))


def check_epsilon(epsilon, name: str = "epsilon") -> float:
    """A number, at least 0, static."""
    epsilon = check_number(epsilon, name)
    if not (epsilon >= 0 and math.isfinite(epsilon)):
        raise ValueError(f"`{name}` must be finite and not negative, got {epsilon!r}.")
    return epsilon


def check_number(value, name: str) -> float:
    """A real number known at trace time."""
    is_number = isinstance(value, float | int | np.generic | np.ndarray | jax.Array) and not isinstance(
        value, bool | Tracer
    )
    if not is_number or jnp.iscomplexobj(value) or not jnp.issubdtype(jnp.result_type(value), jnp.number):
        raise TypeError(f"`{name}` must be a number known at trace time, got {value!r}.")
    if np.shape(value) != ():
        raise ValueError(f"`{name}` must be a scalar, got {describe(value)}.")
    return float(value)


def is_integer(value) -> bool:
    """Whether it is an integer known at trace time: not a flag, and not an array."""
    return hasattr(value, "__index__") and not isinstance(value, type | bool | np.ndarray | jax.Array)


def check_integer(value, name: str, least: int) -> int:
    """The value as an int, once it is checked to be an integer of at least `least`."""
    if not is_integer(value):
        raise TypeError(f"`{name}` must be an integer, got {value!r}.")
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}, got {value!r}.")
    return int(value)


def check_limit(limit, name: str, least: float) -> None:
    """A number of at least `least`, or a callable of the count that gives one, as far as its first values tell."""
    rule = f"`{name}` must be at least {least:g}, a number or a callable of the count that gives one"
    if callable(limit):
        check_schedule(limit, name, rule, least, math.inf)
    elif not least <= check_number(limit, name) < math.inf:
        raise ValueError(f"{rule}, got {limit!r}.")


@functools.lru_cache(maxsize=64)
def check_schedule(schedule, name: str, rule: str, least: float, most: float) -> None:
    """A callable of a count [] int32 that gives a number [] in [least, most], as far as its first values tell."""
    try:
        # Not the callable itself: a NumPy ufunc among what JAX has cached ends the process.
        jax.eval_shape(lambda count: schedule(count), jax.ShapeDtypeStruct((), jnp.int32))
    except Exception as error:
        raise TypeError(
            f"`{name}` must be a function of a traced count [] int32, got {schedule!r}, which fails: "
            f"{type(error).__name__}: {str(error)[:200]}"
        ) from error
    for count in (0, 1):
        with jax.ensure_compile_time_eval():
            value = schedule(jnp.asarray(count, jnp.int32))
        if not isinstance(value, float | int | np.generic | np.ndarray | jax.Array):
            raise TypeError(f"{rule}, got {value!r} from {schedule!r} at a count of {count}.")
        if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise ValueError(f"{rule}, got {describe(value)} from {schedule!r} at a count of {count}.")
        if not isinstance(value, Tracer) and not least <= float(value) <= most:
            raise ValueError(f"{rule}, got {float(value)!r} from {schedule!r} at a count of {count}.")


def check_static_bool(value, name: str) -> None:
    """A Python bool: it decides which program is traced."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"`{name}` must be True or False, known at trace time, got {value!r}.")


def check_choice(value, name: str) -> bool | jax.Array:
    """A Python bool, or a boolean array [], which leaves the choice to the program."""
    if isinstance(value, jax.Array):
        if value.shape != () or value.dtype != bool:
            raise TypeError(f"`{name}` must be True, False or a boolean array [], got {describe(value)}.")
        return value
    if not (
        isinstance(value, bool | np.bool_ | np.ndarray) and np.shape(value) == () and np.asarray(value).dtype == bool
    ):
        raise TypeError(f"`{name}` must be True, False or a boolean array [], got {value!r}.")
    return bool(value)


def check_dtype(dtype, name: str) -> None:
    """A floating or complex dtype, or None."""
    try:
        found = jnp.dtype(jnp.float32 if dtype is None else dtype)
    except TypeError:
        raise TypeError(f"`{name}` must be a floating or complex dtype, got {dtype!r}.") from None
    if not jnp.issubdtype(found, jnp.inexact):
        raise TypeError(f"`{name}` must be floating or complex, got {found.name}.")
