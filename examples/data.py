"""Images for the examples: scikit-learn's handwritten digits, or a folder of your own with one subfolder per class."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from sklearn import datasets


class Dataset(NamedTuple):
    """Images and labels, split into training and test; the training images have mean 0 and variance 1."""

    train_x: np.ndarray
    """[n, height, width, channels] float32."""
    train_y: np.ndarray
    """[n] int32, in [0, len(classes))."""
    test_x: np.ndarray
    """[m, height, width, channels] float32, scaled with the mean and deviation of the training images."""
    test_y: np.ndarray
    """[m] int32."""
    classes: tuple[str, ...]
    """Their names, in the order of the labels."""


def load_digits(seed: int = 0, test_fraction: float = 0.2) -> Dataset:
    """1797 handwritten digits of 8x8 pixels and one channel, which ship inside scikit-learn.

    Args:
      seed: of the split.
      test_fraction: share of each class that is kept for the test, in (0, 1).
    """
    x, y = datasets.load_digits(return_X_y=True)
    return split(x.reshape(-1, 8, 8, 1), np.asarray(y), tuple("0123456789"), seed, test_fraction)


def load_folder(
    folder: str | Path, size: int = 32, grayscale: bool = False, seed: int = 0, test_fraction: float = 0.2
) -> Dataset:
    """The images of a folder with one subfolder per class, each cropped to its middle square and resized.

    Files without the suffix of an image format that Pillow knows are passed over, as are hidden ones.

    Args:
      folder: its subfolders, sorted by name, are the classes.
      size: height and width of the result, in pixels.
      grayscale: one channel instead of three (red, green, blue).
      seed: of the split.
      test_fraction: share of each class that is kept for the test, in (0, 1).

    Raises:
      ValueError: the folder is missing or has fewer than two classes, a class has fewer than two images, or an image
        cannot be read.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{root} is no folder; it must hold one subfolder of images per class")
    classes = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    if len(classes) < 2:
        raise ValueError(f"{root} must have at least two subfolders, one per class, got {[c.name for c in classes]}")
    images, labels = [], []
    for label, path in enumerate(classes):
        read = [_read(file, size, grayscale) for file in _image_files(path)]
        if len(read) < 2:
            raise ValueError(f"{path} must have at least two images, one to train and one to test, got {len(read)}")
        images += read
        labels += [label] * len(read)
    return split(np.stack(images), np.array(labels), tuple(c.name for c in classes), seed, test_fraction)


def split(x: np.ndarray, y: np.ndarray, classes: tuple[str, ...], seed: int, test_fraction: float) -> Dataset:
    """Each class split at random by the same fraction, at least one image on each side, and the images scaled."""
    rng = np.random.default_rng(seed)
    is_test = np.zeros(len(y), bool)
    for label in range(len(classes)):
        members = rng.permutation(np.flatnonzero(y == label))
        is_test[members[: int(np.clip(round(test_fraction * len(members)), 1, len(members) - 1))]] = True
    train = x[~is_test]
    mean, deviation = train.mean(), max(train.std(), 1e-6)
    x, y = ((x - mean) / deviation).astype(np.float32), y.astype(np.int32)
    return Dataset(x[~is_test], y[~is_test], x[is_test], y[is_test], classes)


def _image_files(folder: Path) -> Iterator[Path]:
    suffixes = Image.registered_extensions()
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix.lower() in suffixes and not file.name.startswith("."):
            yield file


def _read(file: Path, size: int, grayscale: bool) -> np.ndarray:
    """[size, size, channels] float32, in [0, 255]."""
    try:
        with Image.open(file) as image:
            if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8
                image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
            upright = ImageOps.exif_transpose(image).convert("L" if grayscale else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read as an image ({error})") from error
    square = ImageOps.fit(upright, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(square, np.float32).reshape(size, size, -1)
