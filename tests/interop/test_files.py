"""Files of arrays: what was saved is what is loaded, and a file that fails, or lies, takes nothing with it."""

import json

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


def test_in_safetensors_each_array_begins_at_a_multiple_of_its_elements(tmp_path):
    arrays = {"a": np.ones(3, np.int8), "b": np.ones(2), "c": np.ones(1, np.float16), "d": np.ones(5, np.float32)}
    interop.save(tmp_path / "a.safetensors", arrays)
    data = (tmp_path / "a.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    assert not any(header[name]["data_offsets"][0] % array.itemsize for name, array in arrays.items())


def test_the_same_arrays_are_the_same_bytes(tmp_path):
    for suffix in SUFFIXES:
        for name in "ab":
            interop.save(tmp_path / f"{name}{suffix}", {"w": np.arange(3)})
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
