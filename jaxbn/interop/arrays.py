"""Arrays outside of JAX: every JAX dtype in NumPy, tensors of PyTorch, and raw bytes."""

import math
import sys
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

PLAIN = {
    name: np.dtype(name)
    for name in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    )
}
"""The JAX dtypes that are NumPy's own."""
EXTENDED = {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in (
        *("bfloat16", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz"),
        *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float6_e2m3fn", "float6_e3m2fn", "float4_e2m1fn"),
        *("int1", "int2", "int4", "uint1", "uint2", "uint4"),
    )
    if hasattr(ml_dtypes, name)
}
"""The other JAX dtypes, one or two bytes per element; NumPy's files store them as raw bytes only."""
DTYPES = PLAIN | EXTENDED


def as_array(name: str, value: Any, rule: str) -> np.ndarray:
    """A JAX or NumPy array, a PyTorch tensor, a Keras variable or a number as a NumPy array.

    Raises:
      TypeError: it is none of these, or has a dtype that JAX does not have; `rule` begins the message.
    """
    kind = type(value).__name__
    if isinstance(value, Mapping):
        raise TypeError(f"{rule}, got {kind} at {name!r}; the weights may be one level deeper, as in x['state_dict'].")
    if value is None or isinstance(value, list | tuple | set | str | bytes):
        raise TypeError(f"{rule}, got {kind} at {name!r}.")
    if str(getattr(value, "dtype", "")).startswith("key<"):
        raise TypeError(f"{rule}, got random keys at {name!r}: give jax.random.key_data of them.")
    try:
        array = _of_tensor(value.detach().cpu()) if hasattr(value, "detach") else np.asarray(value)
    except Exception as error:  # spread over processes, traced, quantized: each library raises its own
        raise TypeError(f"{rule}, got {kind} at {name!r}, which is no array here: {error}") from error
    if array.dtype.name not in DTYPES:
        raise TypeError(f"{rule}, got {kind} at {name!r}, of dtype {array.dtype}, which JAX does not have.")
    return _native(array)


def _of_tensor(tensor) -> np.ndarray:
    """A PyTorch tensor, bit for bit, without importing PyTorch."""
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in EXTENDED:
        return np.asarray(tensor.resolve_conj().resolve_neg())
    dtype = EXTENDED[name]
    bits = tensor.contiguous().view(getattr(sys.modules["torch"], "uint8" if dtype.itemsize == 1 else "int16"))
    return bits.numpy().view(dtype)


def from_bytes(data: bytes | bytearray, dtype: np.dtype, shape: tuple[int, ...], order: str = "C") -> np.ndarray:
    """The array with these bytes, in the byte order of `dtype`.

    Raises:
      ValueError: the number of bytes is wrong, or a boolean is neither 0 nor 1.
    """
    size = math.prod(shape) * dtype.itemsize
    if any(n < 0 for n in shape) or len(data) != size:
        raise ValueError(f"{dtype.name}{list(shape)} takes {size} bytes, and {len(data)} are there")
    if dtype.kind == "b" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise ValueError("a boolean must be 0 or 1")
    array = _native(np.frombuffer(bytearray(data), dtype))
    return array.reshape(shape, order="F" if order == "F" else "C")


def _native(array: np.ndarray) -> np.ndarray:
    """The array in the byte order of this machine."""
    dtype = DTYPES[array.dtype.name]
    return array.view(dtype) if array.dtype.isnative else array.astype(dtype)
