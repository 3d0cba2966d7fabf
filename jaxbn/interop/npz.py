"""`.npz` files: a zip with one `.npy` for each array. A dtype that NumPy does not have is stored as one field of raw
bits, named after the dtype: `np.load(file)["w"]["bfloat16"].view(ml_dtypes.bfloat16)`."""

import math
import zipfile
import zlib
from collections.abc import Mapping
from typing import IO, BinaryIO

import numpy as np

from jaxbn.interop.arrays import EXTENDED, PLAIN, from_bytes

SIGNED = b"jaxbn names crc32="


def write(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the arrays as a `.npz` file: the same bytes each time.

    Raises:
      ValueError: a zip file cannot hold a name.
    """
    with zipfile.ZipFile(file, "w") as archive:
        archive.comment = _signature(arrays)
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy")
            if member.filename != f"{name}.npy" or len(name.encode()) > 2**15:
                raise ValueError(f"a name in an .npz file must have no zero byte and at most 32768 bytes, got {name!r}")
            with archive.open(member, "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, _as_bits(array), allow_pickle=False)


def read(file: BinaryIO, max_bytes: int) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` file. Every size is checked before anything of that size is allocated.

    Raises:
      ValueError: it holds anything but arrays, or more than `max_bytes` of them.
      Exception: of many kinds, if it is damaged.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        total = sum(m.file_size for m in members)
        if total > max_bytes:
            raise ValueError(f"its arrays take {total} bytes, more than `max_bytes`, {max_bytes}")
        arrays = {}
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name == member.filename or name in arrays:
                raise ValueError(f"every entry must be one .npy of its own name, got {member.filename!r}")
            with archive.open(member) as entry:
                arrays[name] = _read_array(entry, member.file_size, name)
        if archive.comment.startswith(SIGNED) and archive.comment != _signature(arrays):
            raise ValueError(f"its names must be those that were written, got {list(arrays)}")
        return arrays


def _signature(arrays: Mapping[str, np.ndarray]) -> bytes:
    """A checksum of the names: a zip file has one for each array, but may lose a whole entry."""
    return SIGNED + str(zlib.crc32("\0".join(arrays).encode())).encode()


def _read_array(entry: IO[bytes], size: int, name: str) -> np.ndarray:
    version = np.lib.format.read_magic(entry)
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in headers:
        raise ValueError(f"entry {name!r} must be of version 1.0 or 2.0 of the .npy format, got {version}")
    shape, fortran, dtype = headers[version](entry)
    true_dtype = _true_dtype(dtype, name)
    # Never `read()`: it would unpack whatever is there, and only then cut it down to the size that the zip file states.
    data = entry.read(min(math.prod(shape) * dtype.itemsize, size))
    if entry.read(1):  # reaching the end of the entry also compares its checksum
        raise ValueError(f"entry {name!r} must be one array, got more than {dtype}{list(shape)}")
    return from_bytes(data, true_dtype, shape, "F" if fortran else "C")


def _as_bits(array: np.ndarray) -> np.ndarray:
    if array.dtype.name in PLAIN:
        return array
    return np.ascontiguousarray(array).view(_field(array.dtype)).reshape(array.shape)


def _true_dtype(dtype: np.dtype, name: str) -> np.dtype:
    if dtype.names is not None and len(dtype.names) == 1:
        extended = EXTENDED.get(dtype.names[0])
        if extended is not None and dtype == _field(extended):
            return extended
    if dtype.name in PLAIN:
        return dtype
    raise ValueError(f"entry {name!r} must be an array of a dtype that JAX has, got {dtype}")


def _field(dtype: np.dtype) -> np.dtype:
    return np.dtype([(dtype.name, f"<u{dtype.itemsize}")])
