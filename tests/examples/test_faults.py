"""Checkpoints of `examples/multi_process.py` under faults: a flipped bit, a full disk, other devices, two runs."""

import contextlib
import errno
import gc
import logging
import resource
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from examples import multi_process, whole_files

# Of the writes that a full disk stops orbax raises the first; the others it leaves to asyncio, which logs them whenever
# they are freed, after the test too.
logging.getLogger("asyncio").addFilter(lambda record: "File too large" not in record.getMessage())


def train(folder, steps):
    with jax.numpy_dtype_promotion("standard"):  # for optax
        state, losses = multi_process.train(
            epath.Path(folder) / "checkpoints", steps=steps, batch_size=16, seed=0, save_every=2
        )
    return jax.device_get(state), list(losses)


def assert_same(a, b, **tolerance):
    for v, w in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(v, w, **{"rtol": 0, "atol": 0, **tolerance})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the checkpoints of steps 2 and 4, and the state after 6."""
    folder = tmp_path_factory.mktemp("saved")
    train(folder, 4)
    whole = shutil.copytree(folder, tmp_path_factory.mktemp("whole") / "run")
    return folder, train(whole, 6)[0]


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at // 8] ^= 1 << at % 8
    path.write_bytes(content)


def test_a_flipped_bit_is_told_and_the_run_goes_on_from_the_checkpoint_before(saved, tmp_path, capfd):
    folder = shutil.copytree(saved[0], tmp_path / "run")
    largest = max((p for p in (folder / "checkpoints" / "4").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    flip(largest, 8 * largest.stat().st_size // 2)
    state, steps = train(folder, 6)
    assert steps == [2, 3, 4, 5]
    assert_same(state, saved[1])
    told = [line for line in capfd.readouterr().err.splitlines() if "damaged" in line]
    assert len(told) == 1
    assert told[0].startswith("Checkpoint 4 is damaged: ")
    assert largest.name in told[0]


def test_a_bit_is_noticed_in_every_file_of_a_checkpoint(saved, tmp_path):
    folder = shutil.copytree(saved[0], tmp_path / "run")
    files = [path for path in (folder / "checkpoints" / "4").rglob("*") if path.is_file()]
    rng = np.random.default_rng(0)
    before = whole_files.checksums(epath.Path(folder / "checkpoints" / "4"))
    assert len(before) == len(files) > 3
    for path in files:
        bits = 8 * path.stat().st_size
        for at in rng.integers(bits, size=min(bits, 10)):
            flip(path, int(at))
            assert whole_files.checksums(epath.Path(folder / "checkpoints" / "4")) != before
            flip(path, int(at))


@pytest.mark.parametrize("fault", ["file gone", "no checksums", "checksums damaged", "both damaged"])
def test_what_is_not_whole_is_set_aside_and_not_lost(saved, tmp_path, capfd, fault):
    folder = shutil.copytree(saved[0], tmp_path / "run")
    newest = folder / "checkpoints" / "4"
    if fault == "file gone":
        next(path for path in newest.rglob("*") if path.is_file()).unlink()
    elif fault == "no checksums":
        (folder / "checksums" / "4.json").unlink()
    elif fault == "checksums damaged":
        (folder / "checksums" / "4.json").write_text("[3")
    else:
        for step in (2, 4):
            (folder / "checksums" / f"{step}.json").unlink()
    whole_files.set_damaged_aside(epath.Path(folder / "checkpoints"))
    left = sorted(path.name for path in (folder / "checkpoints").iterdir() if path.name.isdigit())
    assert left == ([] if fault == "both damaged" else ["2"])
    assert capfd.readouterr().err.count("is damaged") == 2 - len(left)
    assert len(list((folder / "damaged").iterdir())) == 2 - len(left)


@contextlib.contextmanager
def full_disk(at):
    """No file grows beyond `at` bytes, as the operating system says it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("at", [0, 100, 1000, 10_000])
def test_a_full_disk_loses_no_checkpoint(saved, tmp_path, at):
    folder = shutil.copytree(saved[0], tmp_path / "run")
    with full_disk(at), pytest.raises(Exception, match=r"(?i)too large|FILE|write"):
        train(folder, 6)
    gc.collect()  # what orbax left unfinished warns here, and not in another test
    state, steps = train(folder, 6)
    assert steps == [4, 5]
    assert_same(state, saved[1])


@pytest.mark.parametrize("failing", [0, 1])
def test_a_disk_that_is_full_at_any_write_leaves_the_old_file(tmp_path, monkeypatch, failing):
    path = epath.Path(tmp_path) / "a"
    whole_files.write_whole(path, b"old")
    method = ("write_bytes", "replace")[failing]

    def full(self, *_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(path), method, full)
    with pytest.raises(OSError, match="No space left"):
        whole_files.write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_run_goes_on_with_another_number_of_devices(saved, tmp_path, monkeypatch, devices):
    folder = shutil.copytree(saved[0], tmp_path / "run")
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    state, steps = train(folder, 6)
    assert steps == [4, 5]
    assert_same(state, saved[1], rtol=1e-5, atol=1e-6)


def test_a_second_run_in_a_folder_is_refused_until_the_first_ends(tmp_path):
    first = whole_files.lock(str(tmp_path))
    with pytest.raises(SystemExit, match=r"Another run writes to .*: wait for it, or choose another folder"):
        whole_files.lock(str(tmp_path))
    with pytest.raises(SystemExit, match="Another run writes to"):
        multi_process.main(["--output", str(tmp_path), "--fresh"])
    first.close()
    whole_files.lock(str(tmp_path)).close()
