"""Results of several processes, merged: two threads stand for two processes, and what they exchange is real."""

import concurrent.futures
import threading

import jax
import numpy as np
import pytest

import jaxbn
from jaxbn._tools import processes
from tests.recalibrate_models import DATA, assert_close, population

OWN = [[DATA[:8], DATA[8:12], DATA[12:24]], [DATA[24:]]]
"""the batches of each process: three and one"""


@pytest.fixture
def together(monkeypatch, no_stored_programs):
    """A function that runs f(0) and f(1) at the same time, each as a process of two; what they return, errors too."""
    barrier, sent, number = threading.Barrier(2, timeout=60), [None, None], threading.local()

    def allgather(row):
        sent[number.own] = row
        barrier.wait()
        rows = np.stack(sent)
        barrier.wait()
        return rows

    def run(f, i):
        number.own = i
        try:
            return f(i)
        except Exception as error:
            return error

    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", allgather)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        yield lambda f: [task.result() for task in [pool.submit(run, f, i) for i in range(2)]]


def recalibrated(batches, features: int = 3):
    params, stats = jaxbn.init(features, use_count=True)
    variables = {"params": params, "batch_stats": stats}
    return jaxbn.recalibrate(lambda v, x: (None, jaxbn.batch_moments(x)), variables, batches)["batch_stats"]


def test_the_statistics_are_those_of_all_batches_and_the_same_in_each(together):
    first, second = together(lambda i: recalibrated(OWN[i]))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert_close({"a": first}, {"a": population([DATA])})
    np.testing.assert_array_equal(first["count"], [4, 4, 4])


def test_a_process_without_a_batch_is_named_to_both(together):
    for error in together(lambda i: recalibrated(OWN[i] if i else [])):
        assert "at least one batch in each process, got none in the processes [0]" in str(error)


def test_a_process_that_fails_is_named_to_the_other(together):
    def broken():
        yield DATA
        raise OSError("the disk is gone")

    first, second = together(lambda i: recalibrated(OWN[0] if i else broken()))
    assert str(first) == "the disk is gone"
    assert isinstance(second, RuntimeError)
    assert "Another process failed while it read its batches: of the processes, [0]" in str(second)


def test_processes_with_models_of_different_sizes_are_an_error(together):
    for error in together(lambda i: recalibrated([DATA[:, : 3 - i]], 3 - i)):
        assert "of one kind, arrays of each or arrays over all of them, and the model the same" in str(error)
