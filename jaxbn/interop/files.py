"""Files of named arrays: `.npz` and safetensors. Neither can run code, and nothing is ever unpickled."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxbn._tools import optional


def load(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` or `.safetensors` file by their names.

    Raises:
      ValueError: the file is of another kind, damaged, or holds Python objects.
      ImportError: safetensors is not installed.

    Example:
      >>> import os, tempfile, numpy as np
      >>> from jaxbn import interop
      >>> path = os.path.join(tempfile.mkdtemp(), "weights.npz")
      >>> interop.save(path, {"fc.weight": np.ones((2, 3), np.float32)})
      >>> interop.load(path)["fc.weight"].shape
      (2, 3)
    """
    path = Path(path)
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        if path.suffix == ".safetensors":
            return optional.load("safetensors.numpy", "Reading a .safetensors file").load(path.read_bytes())
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except Exception as error:
        if type(error).__name__ == "SafetensorError":
            raise ValueError(f"{path} cannot be read: {error}") from error
        raise
    raise ValueError(
        f"`path` must end in .npz or .safetensors, got {path.name!r}; jaxbn never unpickles. From PyTorch: "
        "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')."
    )


def save(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays to a `.npz` or `.safetensors` file, for `jaxbn.interop.load`, NumPy or PyTorch to read.

    Raises:
      ValueError: the file is to be of another kind.
      ImportError: safetensors is not installed.
    """
    path = Path(path)
    contiguous = {name: np.ascontiguousarray(v).reshape(np.shape(v)) for name, v in arrays.items()}
    if path.suffix == ".npz":
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **contiguous)
    elif path.suffix == ".safetensors":
        path.write_bytes(optional.load("safetensors.numpy", "Writing a .safetensors file").save(contiguous))
    else:
        raise ValueError(f"`path` must end in .npz or .safetensors, got {path.name!r}.")
