"""`batch_stats['count']`, [C] int32: the updates of each channel, so that one that misses a batch averages its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
import jaxbn.linen
import jaxbn.nnx

LARGEST = 2**31 - 1
MOMENTA = {"cumulative": None, "debiased": jaxbn.debiased(0.9)}
DATA = np.random.default_rng(0).normal((1, 11, -5), size=(4, 6, 3)).astype(np.float32)


def weights(average, steps):
    """The weight of each of so many updates."""
    w = np.ones(steps) if average == "cumulative" else 0.9 ** np.arange(steps)[::-1]
    return w / w.sum()


def train(stats, batches, masks=None, **options):
    params, _ = jaxbn.init(3)
    masks = [None] * len(batches) if masks is None else masks
    for x, mask in zip(batches, masks, strict=True):
        _, stats = jaxbn.batch_norm(params, stats, x, use_running_average=False, mask=mask, **options)
    return stats


def test_a_new_state_counts_each_channel():
    _, stats = jaxbn.init(3, use_count=True)
    assert stats["count"].dtype == jnp.int32
    np.testing.assert_array_equal(stats["count"], np.zeros(3))
    _, stats = jaxbn.init((2, 3), use_count=True)
    assert stats["count"].shape == (2, 3)
    stats = train(jaxbn.init(3, use_count=True)[1], DATA)
    np.testing.assert_array_equal(stats["count"], np.full(3, len(DATA)))


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("missing", ["nan", "inf", "empty"])
@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("average", MOMENTA)
def test_a_channel_that_misses_a_batch_averages_the_others(average, step, missing, unbiased):
    batches, masks = DATA.copy(), np.ones(DATA.shape, bool)
    if missing == "empty":
        masks[step, :, 1] = False
    else:
        batches[step, 2, 1] = float(missing)
    start = jaxbn.init(3, use_count=True)[1]
    stats = train(start, batches, masks, momentum=MOMENTA[average], unbiased=unbiased)
    np.testing.assert_array_equal(stats["count"], [4, 3, 4])
    for channel in range(3):
        seen = [i for i in range(4) if not (channel == 1 and i == step)]
        w, data = weights(average, len(seen)), np.float64(DATA[seen, :, channel])
        np.testing.assert_allclose(stats["mean"][channel], w @ data.mean(1), rtol=1e-5)
        np.testing.assert_allclose(stats["var"][channel], w @ data.var(1, ddof=int(unbiased)), rtol=1e-5)


@pytest.mark.parametrize("average", MOMENTA)
def test_a_count_stays_at_its_largest_value(average):
    _, stats = jaxbn.init(3, use_count=True)
    stats = {**stats, "count": jnp.array([LARGEST - 1, LARGEST, 0], jnp.int32)}
    for _ in range(3):
        stats = train(stats, DATA[:1], momentum=MOMENTA[average])
    np.testing.assert_array_equal(stats["count"], [LARGEST, LARGEST, 3])
    for name in ("mean", "var"):
        assert np.isfinite(stats[name]).all()


def test_a_schedule_sees_the_count_of_each_channel():
    def schedule(count):
        return jnp.where(count == 0, 0.0, 1.0)

    batches = DATA.copy()
    batches[0, 0, 1] = np.nan
    stats = train(jaxbn.init(3, use_count=True)[1], batches, momentum=schedule)
    first = np.float64([DATA[0, :, 0].mean(), DATA[1, :, 1].mean(), DATA[0, :, 2].mean()])
    np.testing.assert_allclose(stats["mean"], first, rtol=1e-5)


def test_a_schedule_may_give_one_momentum_for_all():
    stats = train(jaxbn.init(3, use_count=True)[1], DATA[:1], momentum=lambda count: jnp.float32(0.5))
    np.testing.assert_allclose(stats["mean"], DATA[0].mean(0) / 2, rtol=1e-5)


def test_the_layers_count_each_channel():
    x = DATA[0].copy()
    x[0, 1] = np.nan
    linen = jaxbn.linen.BatchNorm(use_running_average=False, momentum=None)
    variables = linen.init(jax.random.key(0), x)
    assert variables["batch_stats"]["count"].shape == (3,)
    _, variables = linen.apply(variables, x, mutable=True)
    np.testing.assert_array_equal(variables["batch_stats"]["count"], [1, 0, 1])
    layer = jaxbn.nnx.BatchNorm(3, momentum=None, rngs=nnx.Rngs(0))
    layer(x)
    np.testing.assert_array_equal(layer.count[...], [1, 0, 1])


def test_microbatches_are_one_update():
    stats = jaxbn.init(3, use_count=True)[1]
    moments = jaxbn.merge_moments(*map(jaxbn.batch_moments, DATA))
    stats = jaxbn.update_batch_stats(stats, moments, momentum=None)
    np.testing.assert_array_equal(stats["count"], [1, 1, 1])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("which", ["mean", "var"])
def test_moments_of_which_one_is_not_finite_are_no_update(which, bad):
    start = {"mean": jnp.float32([1, 2]), "var": jnp.float32([3, 4]), "count": jnp.int32([5, 5])}
    moments = jaxbn.Moments(jnp.float32(8), jnp.float32([7, 7]), jnp.float32([7, 7]))
    moments = moments._replace(**{which: jnp.float32([7, bad])})
    new = jaxbn.update_batch_stats(start, moments, momentum=0.5)
    np.testing.assert_array_equal(new["mean"], [4, 2])
    np.testing.assert_array_equal(new["var"], [5, 4])
    np.testing.assert_array_equal(new["count"], [6, 5])


def test_a_count_of_another_shape_is_an_error():
    _, stats = jaxbn.init(3, use_count=True)
    with pytest.raises(ValueError, match=r"`batch_stats\['count'\]`"):
        train({**stats, "count": jnp.zeros(2, jnp.int32)}, DATA[:1], momentum=None)


@pytest.mark.parametrize("average", MOMENTA)
def test_counts_go_through_a_scan(average):
    params, stats = jaxbn.init(3, use_count=True)

    def step(stats, x):
        _, stats = jaxbn.batch_norm(params, stats, x, use_running_average=False, momentum=MOMENTA[average])
        return stats, None

    scanned, _ = jax.lax.scan(step, stats, DATA)
    for name, value in train(stats, DATA, momentum=MOMENTA[average]).items():
        np.testing.assert_allclose(scanned[name], value, rtol=1e-5)


def test_an_unbiased_variance_of_weights_below_one_is_not_negative():
    _, stats = jaxbn.init(2)
    moments = jaxbn.Moments(jnp.array([0.5, 1.5]), jnp.ones(2), jnp.full(2, 4.0))
    new = jaxbn.update_batch_stats(stats, moments, momentum=0.0, unbiased=True)
    np.testing.assert_allclose(new["var"], [2.0, 6.0])  # divided by 1, where `count - 1` is less


def test_a_channel_that_is_not_finite_leaves_the_gradient_of_the_momentum_finite():
    _, stats = jaxbn.init(2)
    moments = jaxbn.Moments(jnp.float32(3), jnp.array([np.nan, 5.0]), jnp.array([1.0, 4.0]))

    def total(momentum):
        return jaxbn.update_batch_stats(stats, moments, momentum=momentum)["mean"].sum()

    np.testing.assert_allclose(jax.grad(total)(jnp.float32(0.9)), -5.0)
