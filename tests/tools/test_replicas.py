"""Statistics of replicas that were trained unsynchronized: those of all their examples together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(3, 10, 4)) + RNG.normal(size=(3, 1, 4)) * 2).astype(np.float32)


def of_replica(x):
    _, batch_stats = jaxbn.init(4)
    return jaxbn.update_batch_stats(batch_stats, jaxbn.batch_moments(x), momentum=0.0)


def test_the_variance_between_the_replicas_counts():
    stacked = {"block": {"norm": jax.vmap(of_replica)(jnp.asarray(X))}}
    merged = jaxbn.merge_batch_stats(stacked)["block"]["norm"]
    np.testing.assert_allclose(merged["mean"], np.float64(X).mean((0, 1)), rtol=0, atol=1e-6)
    np.testing.assert_allclose(merged["var"], np.float64(X).var((0, 1)), rtol=1e-5)


def test_a_list_of_states_merges_as_a_stacked_one_does():
    states = [of_replica(x) | {"count": jnp.int32(i)} for i, x in enumerate(X)]
    merged = jaxbn.merge_batch_stats(states)
    for name, value in jaxbn.merge_batch_stats(jax.vmap(of_replica)(jnp.asarray(X))).items():
        np.testing.assert_array_equal(merged[name], value)
    assert merged["count"] == 2
    assert merged["count"].dtype == jnp.int32


def test_the_count_is_the_largest_for_each_channel():
    counts = jnp.array([[3, 0, 1, 5], [2, 4, 0, 5]], jnp.int32)
    merged = jaxbn.merge_batch_stats([of_replica(x) | {"count": c} for x, c in zip(X, counts, strict=False)])
    np.testing.assert_array_equal(merged["count"], [3, 4, 1, 5])


def test_replicas_of_different_size_weigh_by_their_counts():
    parts = [X[0, :2], X[1, :7]]
    merged = jaxbn.merge_batch_stats([of_replica(x) for x in parts], counts=jnp.array([2, 7]))
    whole = np.float64(np.concatenate(parts))
    np.testing.assert_allclose(merged["mean"], whole.mean(0), rtol=0, atol=1e-6)
    np.testing.assert_allclose(merged["var"], whole.var(0), rtol=1e-5)


def test_wrong_replicas_are_errors():
    with pytest.raises(ValueError, match="must hold at least one replica, got none"):
        jaxbn.merge_batch_stats([])
    with pytest.raises(ValueError, match=r"one number for each replica.*\[2, 4\], got \[3\]"):
        jaxbn.merge_batch_stats([of_replica(x) for x in X[:2]], counts=jnp.ones(3))
    with pytest.raises(TypeError, match="`batch_stats` must be a dict"):
        jaxbn.merge_batch_stats([jnp.ones(3)])
    with pytest.raises(ValueError, match=r"same layers and shapes in all replicas.* in number 1, counted from 0"):
        jaxbn.merge_batch_stats([of_replica(X[0]), of_replica(X[0]) | {"var": jnp.ones(3)}])


@pytest.mark.parametrize("value", [jax.random.key(0), np.array(["a"] * 4), "x"], ids=["key", "texts", "text"])
@pytest.mark.parametrize("name", ["mean", "var", "count"])
def test_what_is_no_array_of_numbers_is_an_error_that_says_where(name, value):
    state = {"bn": of_replica(X[0]) | {"count": jnp.int32(1)} | {name: value}}
    for batch_stats in [state, state], {"blocks": [state]}:
        with pytest.raises(TypeError, match=f"`batch_stats` must hold arrays of numbers, got .* at .*bn/{name}"):
            jaxbn.merge_batch_stats(batch_stats)


def test_random_keys_are_no_counts():
    keys = jax.random.split(jax.random.key(0))
    for run in jax.jit, lambda f: f:
        with pytest.raises(TypeError, match=r"`counts` must be numbers >= 0, .* got key<\w+>\[2\]"):
            run(lambda keys: jaxbn.merge_batch_stats([of_replica(x) for x in X[:2]], counts=keys))(keys)


@pytest.mark.parametrize("counts", [[-1, 2], [0, 0], [np.nan, 1.0], [np.inf, 1.0], [True, True], "ab"])
def test_counts_that_are_no_numbers_of_examples_are_errors(counts):
    with pytest.raises(ValueError, match="numbers >= 0, finite and not all 0, got"):
        jaxbn.merge_batch_stats([of_replica(x) for x in X[:2]], counts=np.array(counts))


def test_a_replica_without_an_example_changes_nothing():
    merged = jaxbn.merge_batch_stats([of_replica(x) for x in X[:2]], counts=np.array([10, 0]))
    np.testing.assert_allclose(merged["mean"], np.float64(X[0]).mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(merged["var"], np.float64(X[0]).var(0), rtol=1e-5)


def test_layers_in_lists_are_merged():
    stacked = jax.vmap(of_replica)(jnp.asarray(X))
    merged = jaxbn.merge_batch_stats({"blocks": [stacked, (stacked,)]})
    np.testing.assert_array_equal(merged["blocks"][1][0]["var"], jaxbn.merge_batch_stats(stacked)["var"])
    with pytest.raises(TypeError, match=r"got .* at blocks/1/sigma"):
        jaxbn.merge_batch_stats({"blocks": [stacked, {"sigma": jnp.ones(3)}]})
