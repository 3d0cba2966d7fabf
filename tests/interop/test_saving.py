"""A save that fails, for whatever reason, leaves the old file as it was."""

import contextlib
import errno
import resource

import jax
import numpy as np
import pytest

from jaxbn import interop

SUFFIXES = (".npz", ".safetensors")


@contextlib.contextmanager
def full_disk(at: int):
    """No file grows beyond `at` bytes, as the operating system says it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("at", [0, 1, 100, 150_000, 399_999])
def test_a_disk_that_is_full_at_any_byte_leaves_the_old_file(tmp_path, suffix, at):
    path = tmp_path / f"a{suffix}"
    interop.save(path, {"w": np.arange(5)})
    before = path.read_bytes()
    with full_disk(at), pytest.raises(OSError, match="File too large") as error:
        interop.save(path, {"w": np.ones(50_000), "v": np.ones(10)})
    assert error.value.errno == errno.EFBIG
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]  # and nothing beside it


class Interrupted:
    """An array that cannot be had."""

    def __array__(self, dtype=None, copy=None):
        raise KeyboardInterrupt


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ({"w": np.ones(3), "o": np.array([object()])}, TypeError, "got ndarray at 'o', of dtype object"),
        ({"w": np.array(["a"])}, TypeError, "got ndarray at 'w', of dtype <U1"),
        ({"w": np.ones(3, np.longdouble)}, TypeError, "of dtype float128, which JAX does not have"),
        ({"w": "text"}, TypeError, "must map names to arrays, got str at 'w'"),
        ({"w": None}, TypeError, "got NoneType at 'w'"),
        ({"w": {"v": np.ones(3)}}, TypeError, "got dict at 'w'; the weights may be one level deeper"),
        ({3: np.ones(3)}, TypeError, "got the name 3"),
        ({"w": jax.random.key(0)}, TypeError, r"random keys at 'w': give jax.random.key_data"),
        ({"\ud800": np.ones(3)}, interop.FileError, "cannot be written"),
        ([np.ones(3)], TypeError, "`arrays` must map names to arrays, got list"),
        ({"w": Interrupted()}, KeyboardInterrupt, None),
    ],
)
def test_what_cannot_be_saved_is_told_and_leaves_the_old_file(tmp_path, suffix, arrays, error, message):
    path = tmp_path / f"a{suffix}"
    interop.save(path, {"w": np.arange(5)})
    before = path.read_bytes()
    with pytest.raises(error, match=message):
        interop.save(path, arrays)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_names_that_a_format_cannot_hold_are_refused(tmp_path):
    with pytest.raises(interop.FileError, match="must not be '__metadata__'"):
        interop.save(tmp_path / "a.safetensors", {"__metadata__": np.ones(3)})
    for name in ("a\0b", "a" * 40_000):
        with pytest.raises(interop.FileError, match="no zero byte and at most 32768 bytes"):
            interop.save(tmp_path / "a.npz", {name: np.ones(3)})
    assert not list(tmp_path.iterdir())


def test_a_link_and_the_rights_of_a_file_stay(tmp_path):
    path, link = tmp_path / "a.npz", tmp_path / "link.npz"
    interop.save(path, {"w": np.arange(5)})
    path.chmod(0o640)
    link.symlink_to(path)
    interop.save(link, {"w": np.arange(6)})
    assert link.is_symlink()
    assert interop.load(path)["w"].shape == (6,)
    assert path.stat().st_mode & 0o777 == 0o640
