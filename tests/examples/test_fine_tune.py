"""The example of a batch-norm model's life, from its command line."""

import re

import jax
import numpy as np
import pytest

import data
import fine_tune
from jaxbn import interop


def test_import_fine_tune_fold_export_and_a_fresh_process(tmp_path, capfd):
    pytest.importorskip("flatbuffers")  # jax.export writes its files with it
    with jax.numpy_dtype_promotion("standard"):  # for optax
        fine_tune.main(["--fast", "--output", str(tmp_path)])
    printed, progress = capfd.readouterr()
    rotated = dict(re.findall(r"rotated test images, (\w+) *: ([\d.]+)%", printed))
    assert list(rotated) == ["imported", "adapted", "frozen", "trained"]
    assert float(rotated["adapted"]) > float(rotated["imported"]) + 1
    change = float(re.search(r"folded: logits change by (\S+) of the largest", printed)[1])
    assert change <= 1e-5
    assert "a fresh process predicts the same with it" in printed
    assert (tmp_path / "fine_tune.png").stat().st_size > 10_000
    assert "2/2" in progress  # the progress bar


def test_the_network_beside_the_script_gives_the_logits_of_pytorch():
    digits = data.load_digits()
    expected = interop.load(fine_tune.SHIPPED)["test_logits"]
    variables = fine_tune.import_network(fine_tune.SHIPPED, digits)
    logits = np.asarray(fine_tune.evaluate(variables, digits.test_x))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_array_equal(logits.argmax(-1), expected.argmax(-1))
    assert (logits.argmax(-1) == digits.test_y).mean() > 0.97
    assert fine_tune.SHIPPED.stat().st_size < 200_000


def test_frozen_batch_norms_stay_as_they_are():
    digits = fine_tune.rotated(data.load_digits(), 20.0)
    start = fine_tune.import_network(fine_tune.SHIPPED, data.load_digits())
    args = fine_tune.parse(["--fast", "--labels", "50"])
    with jax.numpy_dtype_promotion("standard"):  # for optax
        variables, curve = fine_tune.train(start, digits, args, frozen=True, name="frozen")
    assert len(curve) == 3
    for name in ("bn1", "bn2", "bn3"):
        for collection in ("params", "batch_stats"):
            for key, value in start[collection][name].items():
                np.testing.assert_array_equal(variables[collection][name][key], value)
    assert np.any(np.asarray(variables["params"]["conv1"]["kernel"]) != start["params"]["conv1"]["kernel"])


def test_wrong_arguments_are_one_line(tmp_path, capsys):
    arrays = interop.load(fine_tune.SHIPPED)
    del arrays["bn1.weight"]
    interop.save(tmp_path / "other.safetensors", arrays)
    with pytest.raises(SystemExit, match=r"missing: 'bn1.weight', for params/bn1/scale"):
        fine_tune.main(["--weights", str(tmp_path / "other.safetensors"), "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"must end in .npz or .safetensors, got 'model.pt'"):
        fine_tune.main(["--weights", "model.pt", "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"No such file"):
        fine_tune.main(["--weights", "none.npz", "--output", str(tmp_path)])
    with pytest.raises(SystemExit):
        fine_tune.parse(["--labels", "0"])
    assert "must be in [1, 1000], got 0" in capsys.readouterr().err


def test_pytorch_trains_the_network(tmp_path):
    pytest.importorskip("torch").set_num_threads(1)
    import torch_digits

    digits = data.load_digits()
    few = digits._replace(train_x=digits.train_x[:640], train_y=digits.train_y[:640])
    torch_digits.train(few, tmp_path / "net.safetensors", epochs=1, seed=0)
    variables = fine_tune.import_network(tmp_path / "net.safetensors", digits)
    assert fine_tune.accuracy(variables, digits.test_x, digits.test_y) > 0.5
