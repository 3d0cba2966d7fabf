"""Folders of images from anywhere: nothing is run, nothing unpacked beyond a limit, and all that is wrong is told."""

import contextlib
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from examples import data

RNG = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.fromarray(RNG.integers(0, 255, (9, 7, 3), np.uint8)).save(tmp_path / name / f"{i}.png")
    return tmp_path


def bomb(width, height):
    """A PNG of a few hundred bytes that says it has so many pixels."""

    def chunk(kind, content):
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("shape", [(10_000, 8_900), (16_000, 11_000), (100_000, 100_000)])
def test_a_decompression_bomb_is_not_unpacked(folder, shape):
    (folder / "a" / "bomb.png").write_bytes(bomb(*shape))
    with pytest.raises(ValueError, match=r"bomb.png cannot be read as an image \(.*pixels"):
        data.read_folder(folder, 8)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.gif"])
def test_a_format_that_starts_programs_is_not_read_under_another_name(folder, name, monkeypatch):
    from PIL import EpsImagePlugin

    def start(*_, **__):
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", start)
    (folder / "b" / name).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(ValueError, match=rf"{name} cannot be read as an image"):
        data.read_folder(folder, 8)


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "bmp", "webp", "tiff", "ppm"])
def test_a_truncated_file_is_told_and_never_another_error(folder, kind):
    path = folder / "a" / f"x.{kind}"
    Image.fromarray(RNG.integers(0, 255, (40, 40, 3), np.uint8)).save(path)
    data.read_folder(folder, 8)
    whole = path.read_bytes()
    for cut in (0, 1, 7, len(whole) // 4, len(whole) // 2):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=rf"x.{kind} cannot be read as an image"):
            data.read_folder(folder, 8)
    for at in RNG.integers(len(whole), size=30):  # a flipped byte may go unseen, but raises nothing else
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        with contextlib.suppress(ValueError):
            data.read_folder(folder, 8)


def test_all_bad_files_are_named_at_once(folder):
    for i in range(30):
        (folder / "ab"[i % 2] / f"bad{i}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="and 10 more") as error:
        data.read_folder(folder, 8)
    assert sum("cannot be read as an image" in line for line in str(error.value).splitlines()) == 20


def test_what_is_no_image_is_passed_over_with_a_word(folder, capsys):
    (folder / "a" / "notes.txt").write_text("x")
    (folder / "a" / "run.eps").write_text("%!PS")
    (folder / "a" / ".hidden").write_text("x")
    (folder / "a" / "loop.png").symlink_to(folder / "a" / "loop.png")
    (folder / "a" / "gone.png").symlink_to(folder / "nowhere")
    (folder / "a" / "up.png").symlink_to(folder)
    assert len(data.read_folder(folder, 8).y) == 10
    told = capsys.readouterr().err
    assert "a: passed over 5 that are no images: gone.png, loop.png, notes.txt, ..." in told
    (folder / "c").symlink_to(folder)  # a class that holds its own folder
    with pytest.raises(ValueError, match="c must have at least three images"):
        data.read_folder(folder, 8)


def test_the_parts_are_random_of_all_classes_and_the_same_for_one_seed(folder):
    images = data.read_folder(folder, 8)
    parts = [data.split_rows(images.y, seed) for seed in (0, 0, 1)]
    for a, b in zip(*parts[:2], strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(parts[0], parts[2], strict=True))
    np.testing.assert_array_equal(np.sort(np.concatenate(parts[0])), np.arange(10))
    for rows in parts[0]:
        assert set(images.y[rows]) == {0, 1}
