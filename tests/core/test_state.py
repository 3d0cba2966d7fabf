"""What moves the running statistics, and what leaves them as they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
from tests import reference

X = np.random.default_rng(0).normal(2, 3, size=(8, 3)).astype(np.float32)


def start(count=4):
    return {
        "mean": jnp.array([1.0, 2.0, 3.0]),
        "var": jnp.array([0.5, 1.0, 1.5]),
        "count": jnp.asarray(count, jnp.int32),
    }


def step(x, mask=None, **options):
    params, _ = jaxbn.init(3)
    return jaxbn.batch_norm(params, start(), x, use_running_average=False, mask=mask, **options)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("options", [{}, {"use_fast_variance": False}, {"unbiased": True}, {"virtual_batch_size": 4}])
def test_a_channel_that_is_not_finite_keeps_its_statistics_and_touches_no_other(bad, options):
    x = X.copy()
    x[5, 1] = bad
    y, new = step(x, **options)
    clean_y, clean = step(X, **options)
    for name in ("mean", "var"):
        assert new[name][1] == start()[name][1]
        np.testing.assert_array_equal(new[name][::2], clean[name][::2])
    np.testing.assert_array_equal(y[:, ::2], clean_y[:, ::2])


@pytest.mark.parametrize("mask", [np.zeros((8, 1), bool), np.zeros((8, 3), np.float32), np.zeros((1, 1), np.int32)])
def test_a_batch_without_an_example_is_normalized_by_the_state_and_leaves_all_of_it(mask):
    y, new = step(np.where(X > 4, np.nan, X), mask)
    jax.tree.map(np.testing.assert_array_equal, new, start())
    want, _ = jaxbn.batch_norm(jaxbn.init(3)[0], start(), np.where(X > 4, 0, X), use_running_average=True)
    np.testing.assert_allclose(y, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "momentum", [0, 1, 0.9, np.float32(0.9), None, lambda count: 1 / (1 + count.astype(jnp.float32))]
)
@pytest.mark.parametrize("unbiased", [False, True])
def test_the_update_is_that_of_the_formula(momentum, unbiased):
    moments = jaxbn.Moments(jnp.float32(6), jnp.array([4.0, 5.0, 6.0]), jnp.array([2.0, 3.0, 4.0]))
    new = jaxbn.update_batch_stats(start(), moments, momentum=momentum, unbiased=unbiased)
    want = reference.update(
        jax.tree.map(np.asarray, start()), *map(np.float64, moments), momentum=momentum, unbiased=unbiased
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), new, want)


def test_a_traced_momentum_is_as_a_number():
    moments = jaxbn.batch_moments(X)
    traced = jax.jit(lambda m: jaxbn.update_batch_stats(start(), moments, momentum=m))(0.7)
    number = jaxbn.update_batch_stats(start(), moments, momentum=0.7)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), traced, number)


def test_the_cumulative_average_is_that_of_all_batches():
    batches = np.random.default_rng(1).normal(size=(5, 8, 3)).astype(np.float32)
    _, stats = jaxbn.init(3, use_count=True)
    for x in batches:
        stats = jaxbn.update_batch_stats(stats, jaxbn.batch_moments(x), momentum=None)
    np.testing.assert_allclose(stats["mean"], batches.mean(1).mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["var"], batches.var(1).mean(0), rtol=1e-5)
    assert (stats["count"] == 5).all()


def test_half_precision_statistics_stay_what_they_are_and_are_told():
    stats = {"mean": jnp.zeros(3, jnp.bfloat16), "var": jnp.ones(3, jnp.float16)}
    with pytest.warns(UserWarning, match=r"`batch_stats\['(mean|var)'\]` is b?float16\[3\]: running statistics below"):
        _, new = jaxbn.batch_norm({}, stats, X, use_running_average=False)
    assert {k: v.dtype for k, v in new.items()} == {"mean": jnp.bfloat16, "var": jnp.float16}


def test_evaluation_returns_the_state_itself_and_counts_nothing():
    stats = start()
    _, same = jaxbn.batch_norm({}, stats, X, use_running_average=True, mask=np.zeros((8, 1), bool))
    assert same is stats
