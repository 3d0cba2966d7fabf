"""Several processes, each with batches of its own, recalibrate one model: the statistics are those of all batches."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.recalibrate_models import assert_close, population
from tests.recalibrate_process import OWN, ROWS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results():
    """What each of two processes got."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, str(ROOT / "tests" / "recalibrate_process.py"), address]
    workers = [subprocess.Popen([*command, str(i)], env=env, stdout=subprocess.PIPE, text=True) for i in range(2)]
    try:
        outputs = [worker.communicate(timeout=300)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    lines = [next(line for line in output.splitlines() if line.startswith("RESULTS ")) for output in outputs]
    return [json.loads(line.removeprefix("RESULTS ")) for line in lines]


def expected(cut):
    def normalized(x):
        x = np.float64(x)
        return np.tanh((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5))

    return {"a": population(cut), "b": population([normalized(x) for x in cut])}


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("kind", "cut"),
    [("own", [*OWN[0], *OWN[1]]), ("replicated", [*OWN[0], *OWN[1]]), ("over all", [ROWS[:20], ROWS[20:]])],
)
def test_the_statistics_are_those_of_all_batches_and_the_same_in_each_process(results, kind, cut):
    assert results[0][kind] == results[1][kind]
    got = results[0][kind]
    assert_close(got, expected(cut))
    assert np.all(np.equal(got["a"]["count"], len(cut)))
    assert all(r["sharding kept"] for r in results)


@pytest.mark.exhaustive
def test_in_sequence_each_layer_has_what_it_will_see(results):
    assert results[0]["sequential"] == results[1]["sequential"]
    a = population([ROWS])
    entered = np.tanh((np.float64(ROWS) - a["mean"]) / np.sqrt(a["var"] + 1e-5))
    assert_close(results[0]["sequential"], {"a": a, "b": population([entered])})


@pytest.mark.exhaustive
def test_a_process_that_has_no_result_is_told_to_all(results):
    for r in results:
        assert "ValueError: `batches` must hold at least one batch in each process, got none in" in r["none"]
        assert "processes [0]" in r["none"]
        assert r["after"] == r["own"]["a"]
    assert results[0]["broken"] == "OSError: the disk is gone"
    assert "RuntimeError: Another process failed while it read its batches" in results[1]["broken"]
    assert "[0]" in results[1]["broken"]
