"""Files of named arrays: `.npz` and safetensors. Neither can run code, and nothing is ever unpickled."""

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxbn.interop import npz, safetensors
from jaxbn.interop.arrays import as_array

SMALL = 2**28
"""bytes in memory that any file is allowed"""


class FileError(ValueError):
    """A file that `interop.load` does not accept, or names that `interop.save` cannot write."""


def load(path: str | Path, *, max_bytes: int | None = None) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` or `.safetensors` file by name, in the dtypes in which they were saved.

    Only arrays are read, and memory is allocated only after its size has been checked, so the file need not be trusted.

    Args:
      path: of the file.
      max_bytes: the most that its arrays may take in memory. None: 256 MiB or four times the size of the file,
        whichever is larger, so that only a file that is compressed far more than weights are needs a number.

    Raises:
      FileError: the file is of a different kind, damaged, or larger than `max_bytes`, or holds anything but arrays of
        dtypes that JAX has.
      TypeError: `path` is not a path.
      OSError: there is no such file, or it cannot be read.

    Example:
      >>> import os, tempfile, numpy as np
      >>> from jaxbn import interop
      >>> path = os.path.join(tempfile.mkdtemp(), "weights.npz")
      >>> interop.save(path, {"fc.weight": np.ones((2, 3), np.float32)})
      >>> interop.load(path)["fc.weight"].shape
      (2, 3)
    """
    path = _with_suffix(path)
    if max_bytes is not None and (
        isinstance(max_bytes, bool | np.ndarray) or not hasattr(max_bytes, "__index__") or max_bytes < 0
    ):
        raise ValueError(f"`max_bytes` must be a number of bytes or None, got {max_bytes!r}.")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        limit = max(SMALL, 4 * size) if max_bytes is None else max_bytes
        try:
            return npz.read(file, limit) if path.suffix == ".npz" else safetensors.read(file, size, limit)
        except Exception as error:  # a damaged file may raise errors of many kinds
            why = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise FileError(f"{path} cannot be read: {why}.") from error


def save(path: str | Path, arrays: Mapping[str, Any]) -> None:
    """Writes named arrays to a `.npz` or `.safetensors` file, for `jaxbn.interop.load`, NumPy or PyTorch to read.

    The data go to a temporary file, which is then renamed: whatever fails (a full disk, say), an old file stays intact.

    Args:
      path: of the file; its suffix decides the format.
      arrays: name -> array of any dtype of JAX, or tensor of PyTorch. A dtype that NumPy has no name for (bfloat16,
        float8, int4) is stored in a `.npz` as one field of raw bits under the name of the dtype; one that safetensors
        has no name for (complex128, int4) as bytes, with the dtype in the metadata.

    Raises:
      FileError: `path` has a different suffix, or a name cannot be written in that format.
      TypeError: a name is not a string, or a value is not an array.
      OSError: it cannot be written.
    """
    path = _with_suffix(path)
    if not isinstance(arrays, Mapping):
        raise TypeError(f"`arrays` must map names to arrays, got {type(arrays).__name__}.")
    for name in arrays:
        if not isinstance(name, str):
            raise TypeError(f"`arrays` must map names to arrays, got the name {name!r}.")
    contents = {name: as_array(name, value, "`arrays` must map names to arrays") for name, value in arrays.items()}
    write = npz.write if path.suffix == ".npz" else safetensors.write
    try:
        _replace(path, lambda file: write(file, contents))
    except ValueError as error:  # a name that the format cannot hold, or that has no encoding
        raise FileError(f"{path} cannot be written: {error}.") from error


def _with_suffix(path: str | Path) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"`path` must be a string or a path, got {path!r}.")
    path = Path(path)
    if path.suffix not in (".npz", ".safetensors"):
        raise FileError(
            f"`path` must end in .npz or .safetensors, got {path.name!r}; jaxbn never unpickles. From PyTorch: "
            "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')."
        )
    return path


def _replace(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Leaves at `path` either all that `write` writes, safely on disk, or what was there before."""
    path = path.resolve()  # of a link, the file that it points to
    beside = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with beside.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            beside.chmod(path.stat().st_mode)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
