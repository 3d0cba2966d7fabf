"""`.safetensors` files: the length of a header, the header in JSON, the bytes of the arrays.

A dtype that the format does not have is stored as bytes, U8 with one more axis, and its name in the metadata, together
with a checksum that `load` compares; other readers ignore both.
"""

import json
import zlib
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from jaxbn.interop.arrays import DTYPES, from_bytes

CODES = {
    "bool": "BOOL",
    **{f"{kind}{bits}": f"{kind[0].upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    "complex64": "C64",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
}
"""dtype -> its name in the format"""
NAMES = {code: name for name, code in CODES.items()}
MAX_HEADER = 100_000_000
"""bytes, the limit of the format"""


def write(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the arrays as a safetensors file.

    Raises:
      ValueError: an array is called '__metadata__', which the format reserves.
    """
    if "__metadata__" in arrays:
        raise ValueError("a name in a .safetensors file must not be '__metadata__', which the format keeps for itself")
    header: dict[str, Any] = {}
    dtypes, at, checksum = {}, 0, 0
    # As the format requires: the largest elements first, so that each array is aligned.
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    for name in names:
        array = arrays[name]
        code, shape = CODES.get(array.dtype.name), list(array.shape)
        if code is None:
            code, shape, dtypes[name] = "U8", [*shape, array.dtype.itemsize], array.dtype.name
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
        checksum = zlib.crc32(_bytes(array), checksum)
    written = {"jaxbn.dtypes": json.dumps(dtypes)} if dtypes else {}
    written["jaxbn.crc32"] = str(zlib.crc32(_canonical(header, dtypes), checksum))
    text = json.dumps({"__metadata__": written, **header}, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        file.write(_bytes(arrays[name]))


def read(file: BinaryIO, size: int, max_bytes: int) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file of `size` bytes.

    Raises:
      ValueError: it holds anything but arrays, or more than `max_bytes` of them, or is damaged.
      Exception: of other kinds, if it is damaged.
    """
    length = int.from_bytes(file.read(8), "little")
    if length > min(MAX_HEADER, size - 8):
        raise ValueError(f"its header must fit into the file, {size} bytes, got {length}")
    if size > max_bytes:
        raise ValueError(f"it has {size} bytes, more than `max_bytes`, {max_bytes}")
    header = json.loads(file.read(length), object_pairs_hook=_once)
    metadata = header.pop("__metadata__", {})
    dtypes = json.loads(metadata.get("jaxbn.dtypes", "{}"))
    arrays, at, checksum = {}, 0, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = entry["data_offsets"]
        if start != at or end < start:
            raise ValueError(f"the bytes of {name!r} must begin at {at}, got {start} to {end}")
        at = end
        if end > size - 8 - length:
            raise ValueError(f"{name!r} ends at {end} of {size - 8 - length} bytes")
        data = file.read(end - start)
        checksum = zlib.crc32(data, checksum)
        arrays[name] = _array(name, data, entry, dtypes.get(name))
    if at != size - 8 - length:
        raise ValueError(f"its arrays must fill the file, got {at} of {size - 8 - length} bytes")
    right = metadata.get("jaxbn.crc32")
    if right is not None and right != str(zlib.crc32(_canonical(header, dtypes), checksum)):
        raise ValueError("its checksum is another: it was damaged after it was written")
    return arrays


def _array(name: str, data: bytes, entry: Mapping[str, Any], true_dtype: str | None) -> np.ndarray:
    code, shape = entry["dtype"], tuple(entry["shape"])
    if not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"a shape must be of non-negative integers, got {list(shape)} at {name!r}")
    if code not in NAMES:
        raise ValueError(f"a dtype must be one of {list(NAMES)}, got {code!r} at {name!r}")
    dtype = DTYPES[NAMES[code] if true_dtype is None else true_dtype].newbyteorder("<")
    if true_dtype is None:
        return from_bytes(data, dtype, shape)
    if code != "U8" or shape[-1:] != (dtype.itemsize,):
        raise ValueError(f"{name!r} must be bytes, one more axis of {dtype.itemsize}, got {code} {list(shape)}")
    return from_bytes(data, dtype, shape[:-1])


def _bytes(array: np.ndarray) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _canonical(header: Mapping[str, Any], dtypes: Mapping[str, str]) -> bytes:
    return json.dumps([header, dtypes], sort_keys=True).encode()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without duplicate names: of two with the same name, Python would keep the second."""
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise ValueError(f"a name must stand once, got {next(n for n in names if names.count(n) > 1)!r} twice")
    return dict(pairs)
