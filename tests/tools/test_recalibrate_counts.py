"""Recalibration counts, for each channel, the batches that had an example of it."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
from jaxbn._core.merge import merge_into, zeros_of_layer
from jaxbn._core.types import Moments
from jaxbn._tools.seen import Seen, _set_layer


def seen(batches, counts):
    zeros = jnp.zeros((2, 3))
    moments = Moments(jnp.asarray(counts, jnp.float32), zeros, zeros + 1)
    return Seen(merge_into(zeros_of_layer(zeros), moments), jnp.asarray(batches, jnp.int32))


@pytest.mark.parametrize(
    ("old", "expected"),
    [([[7, 7, 7], [7, 7, 7]], [[2, 7, 1], [3, 3, 3]]), ([7, 7], [2, 3]), (7, 3)],
    ids=["of each channel", "of each layer of a stack", "of all"],
)
def test_counts_are_set_where_there_are_examples(old, expected):
    stats = {"mean": jnp.zeros((2, 3)), "var": jnp.ones((2, 3)), "count": jnp.asarray(old, jnp.int32)}
    new = _set_layer(stats, seen([[2, 0, 1], [3, 3, 3]], [[4, 0, 2], [9, 9, 9]]), unbiased=False)
    np.testing.assert_array_equal(new["count"], expected)
    assert new["count"].dtype == jnp.int32


def test_batches_without_an_example_do_not_count():
    params, stats = jaxbn.init(2, use_count=True)
    masks = [[True, True], [True, False], [False, False]]

    def forward(variables, batch):
        return None, jaxbn.batch_moments(batch["x"], mask=batch["mask"])

    batches = [{"x": np.ones((4, 2), np.float32), "mask": np.array([mask] * 4)} for mask in masks]
    new = jaxbn.recalibrate(forward, {"params": params, "batch_stats": stats}, batches)["batch_stats"]["count"]
    np.testing.assert_array_equal(new, [2, 1])


def test_progress_has_a_total_where_the_length_is_known(capsys):
    params, stats = jaxbn.init(2)
    variables, x = {"params": params, "batch_stats": stats}, np.ones((4, 2), np.float32)
    forward = lambda v, x: (None, jaxbn.batch_moments(x))  # noqa: E731
    jaxbn.recalibrate(forward, variables, [x] * 4, progress=True)
    assert "100%" in capsys.readouterr().out

    class Loader:
        def __len__(self):
            return 3

        def __iter__(self):
            return iter([x] * 3)

    jaxbn.recalibrate(forward, variables, Loader(), progress=True)
    assert "100%" in capsys.readouterr().out
    jaxbn.recalibrate(forward, variables, iter(Loader()), progress=True)


def test_statistics_in_half_precision_are_rounded_once():
    params, stats = jaxbn.init(2)
    half = {k: v.astype(jnp.bfloat16) for k, v in stats.items()}
    x = 1000 + np.arange(10, dtype=np.float32).reshape(5, 2)
    new = jaxbn.recalibrate(lambda v, x: (None, jaxbn.batch_moments(x)), {"params": params, "batch_stats": half}, [x])
    assert new["batch_stats"]["mean"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(new["batch_stats"]["mean"], x.mean(0).astype(jnp.bfloat16))
    np.testing.assert_array_equal(new["batch_stats"]["var"], x.var(0).astype(jnp.bfloat16))
