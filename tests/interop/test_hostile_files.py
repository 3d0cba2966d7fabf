"""Files that are damaged, or lie: one error that says so, nothing run, and no more memory than was agreed."""

import contextlib
import json
import pickle
import resource
import zipfile

import ml_dtypes
import numpy as np
import pytest

from jaxbn import interop

SUFFIXES = (".npz", ".safetensors")


def bits(array) -> bytes:
    array = np.asarray(array)
    return array.tobytes() + str((array.dtype, array.shape)).encode()


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
        (safetensors({"a": {**ENTRY, "data_offsets": [8, 16]}}, b"\0" * 16), "must begin at 0, got 8 to 16"),
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
    np.savez(tmp_path / "a.npz", a=np.ones(2))
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        whole = archive.read("a.npy")
    for name, content, message in (
        ("a.txt", b"x", "every entry must be one .npy of its own name, got 'a.txt'"),
        ("a.npy", b"x" * 99, "magic"),
        ("a.npy", b"", "EOF|reading magic"),
        ("a.npy", header + b"\x05\x00{'a':", "SyntaxError|header|EOF"),
        ("a.npy", whole + b"\0", r"entry 'a' must be one array, got more than float64\[2\]"),
    ):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr(name, content)
        with pytest.raises(interop.FileError, match=message):
            interop.load(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", a=np.ones(2))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("a.npy", whole)
    with pytest.raises(interop.FileError, match=r"must be one .npy of its own name, got 'a.npy'"):
        interop.load(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"x" * 99)
    with pytest.raises(interop.FileError, match="not a zip file"):
        interop.load(tmp_path / "a.npz")
