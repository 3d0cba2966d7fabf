"""The example that trains on images: each front end and norm for a few steps, and the script from its command line."""

import argparse
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from sklearn import datasets

import data
import digits
import figures
import resnet_functional
import resnet_linen
import resnet_nnx

RESNETS = (resnet_linen, resnet_nnx, resnet_functional)


@pytest.fixture(autouse=True)
def _small_networks_on_two_devices(monkeypatch):
    set_widths(monkeypatch, 8, 16)
    two = jax.devices()[:2]
    monkeypatch.setattr(jax, "devices", lambda: two)
    # optax needs the usual promotion: it raises a number to the power of an integer.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def set_widths(monkeypatch, *widths: int) -> None:
    for module in RESNETS:
        monkeypatch.setattr(module, "WIDTHS", widths)


@pytest.fixture
def images() -> data.Dataset:
    """The first digits, enough for two batches of 32."""
    parts = data.load_digits(validation_fraction=0.1)
    few = (64, 64, 12, 12, 20, 20)
    return data.Dataset(*(part[:n] for part, n in zip(parts[:6], few, strict=True)), parts.classes)


def write_images(folder: Path, count: int = 4, size: tuple[int, int] = (12, 10)) -> Path:
    """Red and blue images with noise."""
    rng = np.random.default_rng(0)
    for channel, name in ((0, "red"), (2, "blue")):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 100, (*size, 3), np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def arguments(**changed) -> argparse.Namespace:
    defaults = {"epochs": 1, "batch_size": 32, "learning_rate": 1e-2}
    return argparse.Namespace(**(vars(digits.parse([])) | defaults | changed))


@pytest.mark.parametrize(
    ("api", "norm"),
    [(api, "batch") for api in digits.CREATE]
    + [("linen", "layer"), ("nnx", "instance"), ("functional", "group"), ("functional", "none")],
)  # fmt: skip
def test_each_front_end_and_norm_trains(api, norm, images, monkeypatch):
    if norm != "batch":
        set_widths(monkeypatch, 8)
    probabilities, curves = digits.train(images, arguments(api=api, norm=norm, epochs=2))
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    assert probabilities.shape == (20, 10)
    assert curves["training loss"][-1] < curves["training loss"][0]
    assert len(curves["validation accuracy"]) == 2


@pytest.mark.parametrize("api", digits.CREATE)
@pytest.mark.parametrize("norm", digits.NORMS)
def test_each_norm_keeps_the_tree_of_the_statistics(api, norm):
    def step(x):
        params, batch_stats, apply = digits.CREATE[api](0, 3, 5, norm)
        logits, new = apply(params, batch_stats, x, True)
        return logits, batch_stats, new

    logits, old, new = jax.eval_shape(step, jax.ShapeDtypeStruct((2, 9, 7, 3), "float32"))
    assert logits.shape == (2, 5)
    assert jax.tree.structure(old) == jax.tree.structure(new)
    assert bool(jax.tree.leaves(old)) == (norm == "batch")


def test_the_three_front_ends_are_one_network(images):
    """The functional version evaluates what linen and nnx have trained for a step, to the same numbers."""
    _, _, functional = resnet_functional.create(0, 1, 10, "batch")
    for create in (resnet_linen.create, resnet_nnx.create):
        params, batch_stats, apply = create(0, 1, 10, "batch")
        _, batch_stats = jax.jit(apply, static_argnums=3)(params, batch_stats, images.train_x[:16], True)
        expected = digits.evaluate(apply, params, batch_stats, images.test_x)
        trees = [by_name(tree) for tree in (params, batch_stats)]
        np.testing.assert_allclose(digits.evaluate(functional, *trees, images.test_x), expected, atol=1e-5)


def by_name(tree) -> dict:
    """Nested dicts with linen's names."""
    if isinstance(tree, dict):
        return tree
    names = nnx.to_pure_dict(tree)
    return {k: v for k, v in names.items() if k != "blocks"} | {f"block{i}": v for i, v in names["blocks"].items()}


def test_the_script_trains_on_a_folder_of_images(tmp_path, capsys, monkeypatch):
    """In colour, of another size, with a batch size that follows from their number and that of the devices."""
    folder, output = write_images(tmp_path / "images"), tmp_path / "output"
    flags = ["--data", str(folder), "--image-size", "8", "--epochs", "1", "--output", str(output)]
    monkeypatch.setattr("sys.argv", [digits.__file__, *flags])
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    runpy.run_path(digits.__file__, run_name="__main__")
    printed = capsys.readouterr().out
    assert "4 training, 2 validation and 2 test images, 8x8x3, 2 classes" in printed
    assert "warning: only 1 training steps, fewer than 200" in printed
    assert "with the running statistics" in printed
    assert "test accuracy" in printed
    file = Path(printed.split("figure: ")[1].strip())
    with Image.open(file) as figure:
        assert min(figure.size) > 500


def test_a_split_is_stratified_and_depends_on_the_seed_only():
    first, again, other = data.load_digits(), data.load_digits(), data.load_digits(seed=1)
    np.testing.assert_array_equal(first.test_x, again.test_x)
    assert not np.array_equal(first.test_x, other.test_x)
    counts = np.bincount(first.test_y)
    np.testing.assert_allclose(counts / (counts + np.bincount(first.train_y)), 0.2, atol=0.005)
    assert (first.train_x.dtype, first.train_y.dtype) == (np.float32, np.int32)
    np.testing.assert_allclose((first.train_x.mean(), first.train_x.std()), (0, 1), atol=1e-5)


def test_images_keep_their_colours_and_proportions(tmp_path):
    images = data.load_folder(write_images(tmp_path, size=(20, 30)), size=16)
    assert images.classes == ("blue", "red")
    brightest = images.train_x.mean((1, 2)).argmax(-1)
    np.testing.assert_array_equal(brightest, np.where(images.train_y == 0, 2, 0))
    Image.fromarray(np.full((9, 9), 30000, np.uint16)).save(tmp_path / "red" / "sixteen_bits.png")
    (tmp_path / "red" / "notes.txt").write_text("no image")
    grey = data.load_folder(tmp_path, size=16, grayscale=True)
    assert grey.train_x.shape[1:] == (16, 16, 1)
    assert len(grey.train_x) + len(grey.test_x) == 9


def test_a_network_without_batch_norm_is_not_said_to_have_running_statistics(tmp_path, images, capsys, monkeypatch):
    monkeypatch.setattr(digits, "load", lambda args: images)
    set_widths(monkeypatch, 8)
    digits.main(["--norm", "none", "--epochs", "1", "--batch-size", "32", "--output", str(tmp_path)])
    assert "running statistics" not in capsys.readouterr().out


def test_names_of_classes_are_drawn_as_they_are_and_fit():
    assert figures.fitting("$5") == r"\$5"
    assert figures.fitting("a name that is long") == "a name that i…"
    named = data.load_digits()._replace(classes=tuple("$a$ $b" for _ in range(10)))
    curves = {name: [0.5] for name in ("training loss", "training accuracy", "validation accuracy")}
    figure = figures.training_figure(named, np.eye(10)[named.test_y], curves, "a title", "none")
    figure.canvas.draw()


def test_a_folder_is_mixed_so_that_its_first_images_are_of_all_classes(tmp_path):
    images = data.load_folder(write_images(tmp_path, count=20), size=4, validation_fraction=0.1)
    assert set(images.train_y[:8]) == set(images.validation_y) == set(images.test_y) == {0, 1}
    assert [len(y) for y in (images.train_y, images.validation_y, images.test_y)] == [28, 4, 8]


def test_a_validation_part_is_taken_from_the_training_images_and_the_test_part_stays():
    two, three = data.load_digits(), data.load_digits(validation_fraction=0.1)
    assert len(two.validation_y) == 0
    np.testing.assert_array_equal(two.test_y, three.test_y)
    assert len(three.train_y) + len(three.validation_y) == len(two.train_y)
    every = np.concatenate([three.train_x, three.validation_x, three.test_x])
    assert len(np.unique(every, axis=0)) == len(np.unique(datasets.load_digits().data, axis=0))
    np.testing.assert_allclose(np.bincount(three.validation_y) / np.bincount(two.train_y), 0.125, atol=0.01)


def test_the_test_images_are_looked_at_once_at_the_end(images, monkeypatch):
    set_widths(monkeypatch, 8)
    predict, seen = digits.predict, []

    def watched(apply, state, x, *rest):
        seen.append(len(x))
        return predict(apply, state, x, *rest)

    monkeypatch.setattr(digits, "predict", watched)
    digits.train(images, arguments(epochs=3))
    assert seen == [12, 12, 12, 20]


def test_bad_input_is_one_line_that_says_what_to_change(tmp_path, capsys):
    def error_of(*flags: str) -> str:
        with pytest.raises(SystemExit) as error:
            digits.main([*flags, "--output", str(tmp_path / "output")])
        code = error.value.code
        line = code if isinstance(code, str) else capsys.readouterr().err.strip().splitlines()[-1]
        assert "\n" not in line
        return line

    folder = write_images(tmp_path / "images")
    (tmp_path / "one" / "class").mkdir(parents=True)
    assert "nowhere is no folder" in error_of("--data", str(tmp_path / "nowhere"))
    assert "at least two subfolders" in error_of("--data", str(tmp_path / "one"))
    assert "--batch-size must be at most 1259" in error_of("--batch-size", "1440")
    assert "--batch-size must be a multiple of 8" in error_of("--batch-size", "12")
    assert "must be at least 1 and finite, got 0" in error_of("--epochs", "0")
    assert "must be at least 0 and finite, got nan" in error_of("--learning-rate", "nan")
    (folder / "red" / "0.png").write_bytes(b"no image")
    assert "0.png cannot be read as an image" in error_of("--data", str(folder))
    (folder / "empty").mkdir()
    assert "empty must have at least three images" in error_of("--data", str(folder))


def test_a_diverging_loss_stops_with_advice(tmp_path, images, monkeypatch):
    monkeypatch.setattr(digits, "load", lambda args: images)
    monkeypatch.setattr(digits, "train_step", lambda apply, optimizer, state, x, y: (state, np.nan, 0.0))
    with pytest.raises(SystemExit, match="the loss became nan in epoch 1: try a lower --learning-rate"):
        digits.main(["--batch-size", "32", "--output", str(tmp_path)])
