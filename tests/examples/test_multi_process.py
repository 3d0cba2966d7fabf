"""Several processes, started for real: the same numbers as one, an error where one dies, and a way back."""

import argparse
import json

import jax
import numpy as np
import pytest

from examples import multi_process


def test_two_processes_train_like_one_and_go_on_after_one_of_them_died(tmp_path, capfd, monkeypatch):
    launch = multi_process.launch

    def launch_unless_alone(args, output, processes, devices):
        """The run in one process is made in this one, with its devices."""
        if processes > 1:
            launch(args, output, processes, devices)
            return
        with jax.numpy_dtype_promotion("standard"):  # for optax
            multi_process.work(argparse.Namespace(**(vars(args) | {"output": output})))

    monkeypatch.setattr(multi_process, "launch", launch_unless_alone)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: None)
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: None)
    options = ["--output", str(tmp_path), "--steps=10", "--save-every=4", "--heartbeat-timeout=5"]
    with pytest.raises(SystemExit, match="A process failed, and the others stopped"):
        multi_process.main([*options, "--fail-at=6"])
    assert not (tmp_path / "weights.npz").exists()

    multi_process.main(options)
    losses = json.loads((tmp_path / "losses.json").read_text())
    undisturbed = json.loads((tmp_path / "alone" / "losses.json").read_text())
    assert list(losses) == ["4", "5", "6", "7", "8", "9"]
    assert len(undisturbed) == 10
    np.testing.assert_allclose(list(losses.values()), list(undisturbed.values())[4:], rtol=1e-5)
    with np.load(tmp_path / "weights.npz") as split, np.load(tmp_path / "alone" / "weights.npz") as alone:
        assert len(alone) == 11
        for name in alone:
            np.testing.assert_allclose(split[name], alone[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert "Largest difference between the weights" in capfd.readouterr().out

    alone = {
        "output": str(tmp_path / "alone"),
        "steps": 10,
        "batch_size": 32,
        "seed": 0,
        "save_every": 4,
        "fail_at": None,
    }
    processes = {"coordinator": None, "processes": 1, "process_id": None, "cluster": False, "heartbeat_timeout": 5}
    with jax.numpy_dtype_promotion("standard"):
        multi_process.work(argparse.Namespace(**alone, **processes))  # run again, from step 8
    again = json.loads((tmp_path / "alone" / "losses.json").read_text())
    np.testing.assert_allclose(list(again.values()), list(undisturbed.values()), rtol=1e-6)
