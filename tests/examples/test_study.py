"""The study: many runs in one program are the runs by themselves, it resumes, and its page stands alone."""

import re

import jax
import numpy as np
import pytest
from PIL import Image

import study
from claims import network as net
from claims import regularization
from claims.claim import Setting, interval, ratio
from claims.network import Network
from claims.residual_networks import fold_network
from claims.store import Store
from claims.training import Plan, Runs, steps_to, train
from data import load_digits

PLAN = Plan(20, 16, train_images=64, evaluations=2)
DATA = load_digits()
SMALL = DATA._replace(test_x=DATA.test_x[:32], test_y=DATA.test_y[:32])


def test_runs_side_by_side_are_the_runs_one_by_one():
    runs = Runs.grid(2, [0.03, 0.1], [0.5, 1.0])
    together = train(Network(depth=2, width=8), PLAN, SMALL, runs)
    assert together.loss.shape == (8, 20)
    assert together.test_accuracy.shape == (8, 2)
    for i in (1, 6):
        alone = train(Network(depth=2, width=8), PLAN, SMALL, Runs(*(v[i : i + 1] for v in runs)))
        np.testing.assert_allclose(alone.loss[0], together.loss[i], rtol=1e-4, atol=1e-5)


def test_a_residual_network_with_its_batch_norms_folded_evaluates_the_same():
    network = Network("residual", 4, 8)
    out = train(network, PLAN, SMALL, Runs.grid(1, [0.1]))
    params, batch_stats = jax.tree.map(lambda v: v[0], (out.params, out.batch_stats))
    expected = net.apply(network, params, batch_stats, SMALL.test_x, train=False).logits
    plain = net.apply(
        network._replace(norm="none"), *fold_network(params, batch_stats), SMALL.test_x, train=False
    ).logits
    np.testing.assert_allclose(plain, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.fixture(autouse=True)
def as_users_run_it():
    """With JAX's own promotions, in which biases broadcast."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def small(monkeypatch):
    """One claim of two small parts."""
    monkeypatch.setattr(regularization, "CASES", {"none": Network(norm="none", depth=1), "whole": Network(depth=1),
                                                  "chunks of 8": Network(depth=1, virtual_batch_size=8)})  # fmt: skip
    monkeypatch.setattr(regularization, "IMAGES", 32)
    made = []

    def counted(network, plan, data, runs):
        made.append(network)
        return train(network, plan._replace(steps=10, evaluations=10), data, runs)

    monkeypatch.setattr(regularization, "train", counted)
    return made


def test_the_command_writes_a_page_that_stands_alone_and_goes_on_where_it_was(tmp_path, capsys, small):
    command = ["regularization", "--fast", "--seeds", "2", "--out", str(tmp_path)]
    study.main(command)
    assert len(small) == 3
    page = (tmp_path / "index.html").read_text()
    assert not re.search(r'(src|href)="(?!#|data:)', page)
    assert "regularization --fast --seeds 2" in page
    assert (tmp_path / "regularization.png").stat().st_size > 1000
    assert "regularizing" in capsys.readouterr().out

    study.main(command)
    assert len(small) == 3  # nothing was measured again
    assert (tmp_path / "index.html").read_text() == page

    damaged = tmp_path / "measurements/regularization/whole.json"
    damaged.write_text(damaged.read_text()[:100])
    study.main(command)
    assert len(small) == 4
    assert "damaged" in capsys.readouterr().out
    assert (tmp_path / "index.html").read_text() == page  # the same numbers


def test_it_runs_on_a_folder_of_images(tmp_path, small):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(24):
            Image.fromarray(rng.integers(0, 255, (9, 9), np.uint8)).save(tmp_path / "images" / name / f"{i}.png")
    study.main(
        ["regularization", "--fast", "--seeds", "2", "--data", str(tmp_path / "images"), "--out", str(tmp_path / "out")]
    )
    assert (tmp_path / "out/index.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "invalid choice"),
        (["depth", "--seeds", "1"], "--seeds must be at least 2"),
        (["depth", "--data", "missing"], "missing is no folder"),
    ],
)
def test_bad_input_is_told(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        study.main(arguments)
    assert message in f"{stopped.value} {capsys.readouterr().err}"


def test_each_claim_has_parts_of_its_own():
    setting = Setting(DATA, 2, fast=True)
    for claim in study.CLAIMS.values():
        assert claim.TITLE
        assert claim.CLAIM.endswith(".")
        assert all(map(callable, claim.parts(setting).values()))


def test_a_measurement_of_other_settings_is_none(tmp_path):
    store = Store(tmp_path, Setting(DATA, 2, fast=True))
    store.write("claim", "part, one", {"values": np.arange(3)})
    assert store.read("claim", "part, one") == {"values": [0, 1, 2]}
    assert Store(tmp_path, Setting(DATA, 3, fast=True)).read("claim", "part, one") is None


def test_intervals_are_those_of_students_t():
    mean, half = interval([1.0, 2.0, 3.0])
    assert (mean, round(half, 3)) == (2.0, 2.484)
    assert ratio([2.0, 2.0], [1.0, 1.0]).startswith("2 times")
    np.testing.assert_array_equal(steps_to(np.array([[0.1, 0.95], [0.1, 0.2]]), 0.9, PLAN), [20, np.inf])
