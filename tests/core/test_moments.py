"""Moments: of a batch, and of a union of batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxbn
from tests import reference

EMPTY = jaxbn.Moments(jnp.float32(0), jnp.zeros(2), jnp.zeros(2))

sets = st.builds(
    lambda size, offset, seed: (offset + np.random.default_rng(seed).normal(size=(size, 2))).astype(np.float32),
    st.integers(1, 5),
    st.floats(-100, 100),
    st.integers(0, 1000),
)
few = settings(max_examples=20, deadline=None, derandomize=True)


def moments_of(x):
    """From the reference, so that only merging is under test."""
    count, mean, var = reference.moments(x)
    return jaxbn.Moments(jnp.float32(count[0]), jnp.asarray(mean, jnp.float32), jnp.asarray(var, jnp.float32))


def close(got, want, unit):
    np.testing.assert_allclose(got.count, want.count, rtol=1e-6)
    np.testing.assert_allclose(got.mean, want.mean, rtol=1e-6, atol=1e-6 * unit)
    np.testing.assert_allclose(got.var, want.var, rtol=1e-4, atol=1e-5 * unit)


@few
@given(sets, sets, sets)
def test_merging_is_the_union_in_any_order_and_grouping(a, b, c):
    unit = 1 + max(np.abs(v).max() for v in (a, b, c))
    whole = moments_of(np.concatenate([a, b, c]))
    a, b, c = map(moments_of, (a, b, c))
    merge = jaxbn.merge_moments
    for merged in (merge(a, b, c), merge(merge(a, b), c), merge(a, merge(b, c)), merge(c, b, a)):
        close(merged, whole, unit)


def test_an_empty_set_is_neutral_whatever_it_holds():
    a = moments_of(np.random.default_rng(0).normal(1e4, 1, size=(7, 2)))
    for empty in (EMPTY, EMPTY._replace(mean=jnp.full(2, jnp.nan), var=jnp.full(2, jnp.inf))):
        for merged in (jaxbn.merge_moments(a, empty), jaxbn.merge_moments(empty, a)):
            close(merged, a, 1)
    jax.tree.map(np.testing.assert_array_equal, jaxbn.merge_moments(EMPTY, EMPTY), EMPTY)


def test_an_empty_set_takes_part_in_no_derivative():
    a, b = (moments_of(np.random.default_rng(seed).normal(3, 2, size=(5, 2))) for seed in (0, 1))
    nothing = EMPTY._replace(mean=jnp.full(2, jnp.nan), var=jnp.full(2, jnp.inf))

    def derivatives(*others):
        def total(mean, var):
            merged = jaxbn.merge_moments(a._replace(mean=mean, var=var), *others)
            return jnp.sin(merged.mean).sum() + (merged.var**2).sum()

        at = a.mean, a.var
        return *jax.grad(total, (0, 1))(*at), jax.jvp(total, at, at)[1]

    for got, want in zip(derivatives(b, nothing), derivatives(b), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_counts_of_each_channel_merge_with_counts_of_all():
    x, y = np.random.default_rng(0).normal(size=(2, 6, 2)).astype(np.float32)
    mask = np.array([[True, False]] * 3 + [[True, True]] * 3)
    merged = jaxbn.merge_moments(jaxbn.batch_moments(x, mask=mask), jaxbn.batch_moments(y))
    want = reference.moments(np.concatenate([x, y]), mask=np.concatenate([mask, np.ones_like(mask)]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), tuple(merged), want)


@pytest.mark.parametrize("axis", [-1, 1, (0, 2)])
@pytest.mark.parametrize("fast", [True, False])
def test_moments_of_a_batch_are_those_of_the_reference(axis, fast):
    x = np.random.default_rng(0).normal(5, 2, size=(4, 3, 2)).astype(np.float32)
    got = jaxbn.batch_moments(x, axis=axis, use_fast_variance=fast)
    count, mean, var = reference.moments(x, axis=axis)
    assert got.count.shape == ()
    assert (np.asarray(got.count) == count).all()
    np.testing.assert_allclose(got.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(got.var, var, rtol=1e-5)


def test_a_batch_without_an_example_has_zero_moments():
    got = jaxbn.batch_moments(np.full((4, 2), np.nan, np.float32), mask=np.zeros((4, 1), bool))
    jax.tree.map(np.testing.assert_array_equal, got, EMPTY)


@pytest.mark.parametrize(
    "options",
    [{}, {"use_fast_variance": False}, {"mask": np.ones((9, 1), bool)}],
    ids=["one pass", "two passes", "mask"],
)
@pytest.mark.parametrize("row", [0, 4, 8, slice(2, None)])
def test_an_infinite_value_makes_the_mean_infinite_and_no_other_channel(row, options):
    x = np.random.default_rng(0).normal(5, 2, size=(9, 3)).astype(np.float32)
    x[row] = [1, np.inf, -np.inf]
    got = jax.jit(lambda x: jaxbn.batch_moments(x, **options))(x)
    _, mean, var = reference.moments(x[:, :1])
    np.testing.assert_allclose([got.mean[0], got.var[0]], [mean[0], var[0]], rtol=1e-5)
    np.testing.assert_array_equal(got.mean[1:], [np.inf, -np.inf])
    assert not np.isfinite(got.var[1:]).any()


@pytest.mark.parametrize("way", ["named axis", "split array"])
def test_what_overflows_in_one_part_of_a_batch_is_infinite_in_the_whole(way):
    """An infinite value, and a variance beyond float32 about a mean that is not."""
    x = np.random.default_rng(0).normal(5, 2, size=(128, 3)).astype(np.float32)
    x[3, 1:] = [np.inf, 1e20]
    if way == "named axis":
        of_parts = jax.vmap(lambda x: jaxbn.batch_moments(x, axis_name="parts"), axis_name="parts")(x.reshape(8, 16, 3))
        got = jax.tree.map(lambda v: v[0], of_parts)
    else:
        mesh = jax.make_mesh((8,), ("parts",), axis_types=(jax.sharding.AxisType.Auto,))
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("parts"))
        got = jax.jit(jaxbn.batch_moments)(jax.device_put(x, sharding))
    _, mean, var = reference.moments(x[:, :1])
    np.testing.assert_allclose([got.mean[0], got.var[0]], [mean[0], var[0]], rtol=1e-5)
    np.testing.assert_array_equal(got.mean[1], np.inf)
    np.testing.assert_allclose(got.mean[2], 1e20 / 128, rtol=1e-6)
    np.testing.assert_array_equal(got.var[2], np.inf)
    assert not np.isfinite(got.var[1])
