"""State over a long time: 100,000 microbatches 1000 deviations from 0, more than 2^24 rows, 10,000 updates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxbn
import jaxbn.linen
import jaxbn.nnx
from jaxbn._core.merge import merge_into, zeros_of_layer

MICROBATCHES, ROWS = 100_000, 32


@functools.cache
def microbatches(kind):
    """[microbatches, rows, 2] of deviation 1 about 1000 and -700: at random, or the smallest first."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(MICROBATCHES, ROWS, 2))
    if kind == "sorted":
        x = np.sort(x.reshape(-1, 2), 0).reshape(x.shape)
    return (x + np.array([1000, -700])).astype(np.float32)


def standard_errors(mean, x):
    """The largest error of a mean, in standard errors of all rows."""
    x = np.float64(x).reshape(-1, x.shape[-1])
    return np.max(np.abs(np.asarray(mean) - x.mean(0)) / x.std(0)) * np.sqrt(len(x))


@jax.jit
def of_linen(x):
    model = jaxbn.linen.BatchNorm(use_running_average=False)
    variables = model.init(jax.random.key(0), x[0])

    def body(batch_moments, x):
        _, written = model.apply({**variables, "batch_moments": batch_moments}, x, mutable=["batch_moments"])
        return written["batch_moments"], None

    start = jaxbn.zero_moments(variables["batch_stats"])
    return jaxbn.commit_moments(variables["batch_stats"], lax.scan(body, start, x)[0], momentum=0.0)


@nnx.jit
def nnx_step(model, x):
    jaxbn.nnx.zero_moments(model)
    nnx.scan(lambda model, x: (model, model(x)[0]), in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))(model, x)
    jaxbn.nnx.commit_moments(model)


def of_nnx(x):
    model = jaxbn.nnx.BatchNorm(x.shape[-1], momentum=0.0, rngs=nnx.Rngs(0))
    nnx_step(model, x)
    return {"mean": model.mean[...], "var": model.var[...]}


@jax.jit
def of_functions(x):
    """Merged in pairs, and pairs of pairs, as the docstring of `merge_moments` says."""
    moments = jax.vmap(jaxbn.batch_moments)(x)
    while len(moments.mean) > 1:
        if len(moments.mean) % 2:
            moments = jax.tree.map(lambda v: jnp.concatenate([v, jnp.zeros_like(v[:1])]), moments)
        halves = (jax.tree.map(lambda v, i=i: v[i::2], moments) for i in (0, 1))
        moments = jax.vmap(jaxbn.merge_moments)(*halves)
    return {"mean": moments.mean[0], "var": moments.var[0]}


@pytest.mark.parametrize("kind", ["random", "sorted"])
@pytest.mark.parametrize("way", [of_linen, of_nnx, of_functions])
def test_the_mean_of_100000_microbatches_is_right_to_a_tenth_of_a_standard_error(way, kind):
    x = microbatches(kind)
    stats = way(jnp.asarray(x))
    assert standard_errors(stats["mean"], x) < (0.2 if way is of_functions else 0.1)  # rounded at each level of pairs
    np.testing.assert_allclose(stats["var"], np.float64(x).reshape(-1, 2).var(0), rtol=1e-4)


@pytest.mark.exhaustive
def test_recalibration_over_100000_batches_is_right_to_a_tenth_of_a_standard_error():
    x = microbatches("sorted")
    params, batch_stats = jaxbn.init(2)

    def forward(variables, x):
        return jaxbn.normalize_batch(variables["params"], variables["batch_stats"], x)

    new = jaxbn.recalibrate(forward, {"params": params, "batch_stats": batch_stats}, list(x))["batch_stats"]
    assert standard_errors(new["mean"], x) < 0.1
    np.testing.assert_allclose(new["var"], np.float64(x).reshape(-1, 2).var(0), rtol=1e-4)


def test_rows_are_counted_one_by_one_beyond_2_to_the_24():
    large = jaxbn.Moments(jnp.float32(2**24), jnp.array([1000.0]), jnp.array([1.0]))
    row = jaxbn.Moments(jnp.float32(1), jnp.array([1001.0]), jnp.array([0.0]))
    start = merge_into(zeros_of_layer(jnp.zeros(1)), large)
    add_rows = jax.jit(lambda start: lax.scan(lambda m, _: (merge_into(m, row), None), start, None, length=10_001))
    merged, _ = add_rows(start)
    assert np.float64(merged.count) + np.float64(merged.count_rest) == 2**24 + 10_001
    right = 1000 + 10_001 / (2**24 + 10_001)
    np.testing.assert_allclose(np.float64(merged.mean) + np.float64(merged.mean_rest), right, rtol=1e-10)


def test_what_both_sides_of_a_merge_have_dropped_is_counted():
    odd = zeros_of_layer(jnp.zeros(1))._replace(
        count=jnp.full(1, 2.0**24), count_rest=jnp.ones(1), mean=jnp.full(1, 1000.0), mean_rest=jnp.full(1, 1e-5)
    )
    for merged in (merge_into(odd, odd), merge_into(zeros_of_layer(jnp.zeros(1)), odd)):
        rows = 2 * (2**24 + 1) if merged.count > 2**24 + 1 else 2**24 + 1
        assert np.float64(merged.count) + np.float64(merged.count_rest) == rows
        np.testing.assert_allclose(np.float64(merged.mean) + np.float64(merged.mean_rest), 1000.00001, rtol=1e-12)


STEPS = 10_000


def schedule(count):
    return jnp.where(count < 100, 0.5, 0.95)


AVERAGES = {
    "number": (0.9, lambda n: 0.9),
    "cumulative": (None, lambda n: n / (n + 1)),
    "schedule": (schedule, lambda n: np.where(n < 100, 0.5, 0.95)),
    "debiased": (jaxbn.debiased(0.99), lambda n: 0.99 * (1 - 0.99**n) / (1 - 0.99 ** (n + 1))),
}


@pytest.mark.parametrize("average", AVERAGES)
def test_10000_random_updates_with_masks_empty_and_nan_batches(average):
    momentum, weight = AVERAGES[average]
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(STEPS, 4, 3)) * [1, 3, 0.1] + [5, -20, 0.3]).astype(np.float32)
    mask = rng.random((STEPS, 4, 3)) < 0.8
    mask &= rng.random((STEPS, 1, 3)) < 0.95  # now and then no example of a channel
    x[rng.random(x.shape) < 0.01] = np.nan
    params, stats = jaxbn.init(3, use_count=True)

    def step(stats, batch):
        x, mask = batch
        _, stats = jaxbn.batch_norm(params, stats, x, use_running_average=False, momentum=momentum, mask=mask)
        return stats, None

    got, _ = jax.jit(lambda stats: lax.scan(step, stats, (jnp.asarray(x), jnp.asarray(mask))))(stats)
    mean, var, count = np.zeros(3), np.ones(3), np.zeros(3, int)
    for batch, here in zip(np.float64(x), mask, strict=True):
        n = np.maximum(here.sum(0), 1)
        m = np.where(here, batch, 0).sum(0) / n
        v = (np.where(here, batch - m, 0) ** 2).sum(0) / n
        usable = here.any(0) & np.isfinite(m)
        w = weight(count)
        mean, var = (np.where(usable, w * a + (1 - w) * b, a) for a, b in ((mean, m), (var, v)))
        count += usable
    np.testing.assert_array_equal(got["count"], count)
    np.testing.assert_allclose(got["mean"], mean, rtol=1e-5, atol=1e-5 * np.sqrt(var.max()))
    np.testing.assert_allclose(got["var"], var, rtol=2e-5)
