"""Files of arrays: what was saved is what is loaded, and a file that fails, or lies, takes nothing with it."""

import contextlib
import errno
import json
import pickle
import resource
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxbn import interop
from jaxbn.interop.arrays import EXTENDED, PLAIN

SUFFIXES = (".npz", ".safetensors")


def bits(array) -> bytes:
    array = np.asarray(array)
    return array.tobytes() + str((array.dtype, array.shape)).encode()


def sample(dtype: np.dtype, shape=(3, 5)) -> np.ndarray:
    """Bit patterns of all kinds, NaN and infinities too, where every pattern is a number."""
    rng = np.random.default_rng(0)
    if dtype.kind in "iufc":
        return np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)
    return rng.integers(0, 2, shape).astype(dtype)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_dtype_of_jax_comes_back_bit_for_bit(tmp_path, suffix):
    dtypes = PLAIN | EXTENDED
    of_jax = {d.name for d in (np.dtype(getattr(jnp, n)) for n in dtypes if hasattr(jnp, n))}
    assert of_jax == set(dtypes)
    arrays = {name: sample(dtype) for name, dtype in dtypes.items()}
    arrays |= {"scalar": np.float32(3), "empty": np.zeros((2, 0, 3), ml_dtypes.bfloat16), "none": np.zeros(0, np.int8)}
    arrays |= {"transposed": sample(np.dtype("float32")).T, "big": sample(np.dtype(">f4")), "0d": jnp.bfloat16(2.5)}
    arrays |= {"jax": jnp.arange(3, dtype=jnp.int4), "strided": np.arange(10, dtype=ml_dtypes.bfloat16)[::-2]}
    interop.save(tmp_path / f"a{suffix}", arrays)
    loaded = interop.load(tmp_path / f"a{suffix}")
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        array = np.asarray(array)
        assert bits(loaded[name]) == bits(array.astype(array.dtype.newbyteorder("="))), name
        assert loaded[name].flags.writeable


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_any_name_may_be_a_key(tmp_path, suffix):
    names = [
        "file",
        "args",
        "kwds",
        "arr_0",
        "self",
        "",
        " ",
        "a/b.c",
        "../up",
        "ä→",
        "x.npy",
        "allow_pickle",
        "0" * 300,
    ]
    interop.save(tmp_path / f"a{suffix}", {name: np.full(2, i) for i, name in enumerate(names)})
    loaded = interop.load(tmp_path / f"a{suffix}")
    assert {name: v.tolist() for name, v in loaded.items()} == {name: [i, i] for i, name in enumerate(names)}


def test_other_readers_read_our_files_and_we_read_theirs(tmp_path):
    theirs = pytest.importorskip("safetensors.numpy")
    arrays = {k: sample(v) for k, v in PLAIN.items() if k != "complex128"} | {"0d": np.array(7)}
    interop.save(tmp_path / "a.safetensors", arrays)
    interop.save(tmp_path / "a.npz", arrays)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as npz:
        of_numpy = dict(npz)
    for loaded in (theirs.load_file(tmp_path / "a.safetensors"), of_numpy):
        assert {k: bits(v) for k, v in loaded.items()} == {k: bits(v) for k, v in arrays.items()}
    theirs.save_file(arrays, tmp_path / "b.safetensors")
    np.savez_compressed(tmp_path / "b.npz", **{k: v.astype(v.dtype.newbyteorder(">")) for k, v in arrays.items()})
    for name in ("b.safetensors", "b.npz"):
        assert {k: bits(v) for k, v in interop.load(tmp_path / name).items()} == {k: bits(v) for k, v in arrays.items()}


def test_numpy_sees_the_bits_of_a_dtype_that_it_does_not_have(tmp_path):
    w = sample(EXTENDED["bfloat16"])
    interop.save(tmp_path / "a.npz", {"w": w})
    with np.load(tmp_path / "a.npz", allow_pickle=False) as npz:
        np.testing.assert_array_equal(npz["w"]["bfloat16"].view(ml_dtypes.bfloat16), w)


def test_half_tensors_of_pytorch_cross_both_ways(tmp_path):
    torch, theirs = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
    values = torch.arange(-8, 8).reshape(4, 4)
    tensors = {str(d): values.to(d) for d in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float16)}
    theirs.save_file(tensors, tmp_path / "a.safetensors")
    loaded = interop.load(tmp_path / "a.safetensors")
    interop.save(tmp_path / "b.safetensors", tensors)  # tensors themselves, transposed too
    interop.save(tmp_path / "b.npz", {k: v.T for k, v in tensors.items()})
    back, turned = theirs.load_file(tmp_path / "b.safetensors"), interop.load(tmp_path / "b.npz")
    for name, tensor in tensors.items():
        assert f"torch.{loaded[name].dtype.name}" == name
        np.testing.assert_array_equal(loaded[name].astype(np.float32), tensor.float().numpy())
        np.testing.assert_array_equal(turned[name].astype(np.float32), tensor.float().numpy().T)
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name].float(), tensor.float())


def test_the_same_arrays_are_the_same_bytes(tmp_path):
    for suffix in SUFFIXES:
        for name in "ab":
            interop.save(tmp_path / f"{name}{suffix}", {"w": np.arange(3)})
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


# What fails leaves the old file.


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


# What a file must not do.


def test_nothing_is_unpickled(tmp_path):
    (tmp_path / "model.pt").write_bytes(pickle.dumps({"a": 1}))
    np.savez(tmp_path / "objects.npz", a=np.array([object()]))
    np.savez(tmp_path / "strings.npz", a=np.array(["text"]))
    np.savez(tmp_path / "raw.npz", a=np.ones(3, ml_dtypes.bfloat16))  # NumPy forgets which dtype it was
    for call in (lambda path: interop.load(path), lambda path: interop.save(path, {})):
        with pytest.raises(interop.FileError, match=r"must end in .npz or .safetensors, got 'model.pt'; jaxbn never"):
            call(tmp_path / "model.pt")
    for name, got in (("objects", r"\|O|object"), ("strings", "<U4"), ("raw", r"V2")):
        with pytest.raises(ValueError, match=f"{name}.npz cannot be read: .*{got}"):
            interop.load(tmp_path / f"{name}.npz")
    with pytest.raises(FileNotFoundError):
        interop.load(tmp_path / "none.npz")


def test_what_grows_far_beyond_its_size_is_refused_before_it_grows(tmp_path):
    bomb = tmp_path / "bomb.npz"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as entry:
        np.lib.format.write_array_header_1_0(entry, {"descr": "|u1", "fortran_order": False, "shape": (2**28 + 1,)})
        for _ in range(2**8):
            entry.write(b"\0" * 2**20)
        entry.write(b"\0")
    assert bomb.stat().st_size < 2**19
    with pytest.raises(interop.FileError, match="its arrays take 268435585 bytes, more than `max_bytes`, 268435456"):
        interop.load(bomb)
    # The same, and the zip file says that it is small.
    data = bytearray(bomb.read_bytes())
    at = data.rindex(b"PK\1\2") + 24
    data[at : at + 4] = (1000).to_bytes(4, "little")
    lying = tmp_path / "lying.npz"
    lying.write_bytes(data)
    with memory_limit(2**27), pytest.raises(interop.FileError, match=r"CRC|bytes"):
        interop.load(lying)
    interop.save(tmp_path / "a.safetensors", {"w": np.ones(100)})
    with pytest.raises(interop.FileError, match="more than `max_bytes`, 500"):
        interop.load(tmp_path / "a.safetensors", max_bytes=500)
    assert interop.load(tmp_path / "a.safetensors", max_bytes=2000)["w"].sum() == 100
    with pytest.raises(ValueError, match=r"must be a number of bytes or None, got 1\.5"):
        interop.load(tmp_path / "a.safetensors", max_bytes=1.5)


@contextlib.contextmanager
def memory_limit(more: int):
    """At most so many bytes more than now."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_flipped_bit_or_a_cut_is_an_error_or_changes_nothing(tmp_path, suffix):
    arrays = {
        "w": np.arange(6, dtype=np.float32),
        "b": np.arange(3).astype(ml_dtypes.int4),
        "c": np.array([True, False]),
    }
    path, damaged = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    interop.save(path, arrays)
    whole, right = path.read_bytes(), {k: bits(v) for k, v in arrays.items()}
    versions = [whole[:n] for n in range(0, len(whole), 7)]
    versions += [whole[:at] + bytes([whole[at] ^ (1 << at % 7)]) + whole[at + 1 :] for at in range(len(whole))]
    refused = 0
    for version in versions:
        damaged.write_bytes(version)
        try:
            loaded = interop.load(damaged)
        except interop.FileError:
            refused += 1
        else:
            assert {k: bits(v) for k, v in loaded.items()} == right
    assert refused > len(versions) / 2


def safetensors(header, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must fit into the file"),
        (b"x" * 99, "must fit into the file"),
        ((2**63).to_bytes(8, "little"), "must fit into the file"),
        (safetensors(b"{"), "JSONDecodeError|Expecting"),
        (safetensors(b"[" * 50_000), "RecursionError|recursion|Expecting"),
        (safetensors([1]), "AttributeError|TypeError"),
        (safetensors({"a": 3}), "TypeError"),
        (safetensors({"a": ENTRY}), "ends at 8 of 0 bytes"),
        (safetensors({"a": ENTRY}, b"\0" * 9), "must fill the file, got 8 of 9"),
        (safetensors({"a": ENTRY, "b": ENTRY}, b"\0" * 8), "must begin at 8"),
        (safetensors({"a": {**ENTRY, "shape": [3]}}, b"\0" * 8), r"float32\[3\] takes 12 bytes, and 8 are there"),
        (safetensors({"a": {**ENTRY, "shape": [-2, -1]}}, b"\0" * 8), "non-negative integers"),
        (safetensors({"a": {**ENTRY, "dtype": "F4"}}, b"\0" * 8), "got 'F4'"),
        (safetensors({"a": {**ENTRY, "dtype": "BOOL", "shape": [8]}}, b"\2" * 8), "a boolean must be 0 or 1"),
        (safetensors(b'{"a": 1, "a": 2}'), "must stand once, got 'a' twice"),
    ],
)
def test_a_damaged_safetensors_file_says_why(tmp_path, content, message):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(interop.FileError, match=f"a.safetensors cannot be read: .*({message})"):
        interop.load(tmp_path / "a.safetensors")


def test_a_zip_of_anything_but_arrays_is_refused(tmp_path):
    header = b"\x93NUMPY\x01\x00"
    for name, content, message in (
        ("a.txt", b"x", "every entry must be one .npy of its own name, got 'a.txt'"),
        ("a.npy", b"x" * 99, "magic"),
        ("a.npy", b"", "EOF|reading magic"),
        ("a.npy", header + b"\x05\x00{'a':", "SyntaxError|header|EOF"),
    ):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr(name, content)
        with pytest.raises(interop.FileError, match=message):
            interop.load(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"x" * 99)
    with pytest.raises(interop.FileError, match="not a zip file"):
        interop.load(tmp_path / "a.npz")
