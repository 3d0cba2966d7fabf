"""float32 keeps five digits at any offset from a cold start, and half precision those of its rounded inputs."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
from jaxbn._xla import program
from tests import reference

OFFSETS = np.array([0, 1e1, -1e2, 1e3, -1e4, 1e5], np.float32)
"""of the mean from 0, in standard deviations"""
EPSILON = 1e-5


@contextlib.contextmanager
def moments_as_on_a_tpu(asked):
    """There the running mean is the pivot, and a second read takes place where it was far off."""
    if not asked:
        yield
        return
    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patch:
        of = program.program_of
        patch.setattr(program, "program_of", lambda *args: of(*args)._replace(platforms=("tpu",)))
        yield
    jax.clear_caches()


@functools.cache
def run(options):
    """Two passes over a batch whose channels lie at OFFSETS, last a constant one, and its reference."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(64, 6)) + OFFSETS).astype(np.float32)
    x = np.concatenate([x, np.full((64, 1), 12345.678, np.float32)], 1)
    dy = rng.normal(size=x.shape).astype(np.float32)
    params = {k: rng.normal(size=7).astype(np.float32) for k in ("scale", "bias")}
    _, stats = jaxbn.init(7)
    given = dict(options)
    on_a_tpu = given.pop("tpu", False)
    mask = given.pop("mask", None) and rng.random((64, 1)) < 0.7

    @jax.jit
    def step(params, stats, x, dy):
        def layer(params, x):
            return jaxbn.batch_norm(params, stats, x, use_running_average=False, momentum=0.0, mask=mask, **given)

        y, vjp, new = jax.vjp(layer, params, x, has_aux=True)
        return y, new, vjp(dy)

    chunk = given.get("virtual_batch_size")
    batches = None if chunk is None else np.arange(64).reshape(-1, chunk).tolist()
    y = reference.train(params, stats, x, mask=mask, batches=batches)
    gradients = reference.gradients(params, stats, x, dy, mask=mask, batches=batches)
    with moments_as_on_a_tpu(on_a_tpu):
        found = step(params, stats, x, dy)
    return found, (y, reference.moments(x, mask=mask), gradients), params["bias"]


WAYS = {
    "one pass": (),
    "one pass, on a TPU": (("tpu", True),),
    "two passes": (("use_fast_variance", False),),
    "mask": (("mask", True),),
    "virtual batches": (("virtual_batch_size", 32),),
}


@pytest.mark.parametrize("way", WAYS)
def test_output_statistics_and_gradients_keep_five_digits_at_1e5_standard_deviations(way):
    (y, stats, (params, dx)), (want_y, (_, mean, var), want), _ = run(WAYS[way])
    np.testing.assert_allclose(y, want_y, rtol=0, atol=1e-5 * np.abs(want_y).max())
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(stats["var"][:-1], var[:-1], rtol=1e-5)
    for got, expected in ((dx, want["x"]), (params["scale"], want["scale"]), (params["bias"], want["bias"])):
        # The constant channel has its own scale: 1 / sqrt(epsilon).
        unit = np.abs(expected).max(0)
        np.testing.assert_allclose(
            np.asarray(got) / np.maximum(unit, 1), expected / np.maximum(unit, 1), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("way", WAYS)
def test_a_constant_channel_gives_the_bias(way):
    (y, stats, _), _, bias = run(WAYS[way])
    np.testing.assert_allclose(y[:, -1], np.full(64, bias[-1]), rtol=0, atol=1e-5)
    assert stats["var"][-1] < 1e-10


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("fast", [True, False])
def test_statistics_of_half_precision_are_those_of_the_rounded_inputs(dtype, fast):
    x = (np.random.default_rng(0).normal(size=(512, 4)) + np.array([0, 3, -20, 200])).astype(jnp.dtype(dtype))
    _, mean, var = jax.tree.map(np.float64, jaxbn.batch_moments(jnp.asarray(x), use_fast_variance=fast))
    _, want_mean, want_var = reference.moments(x)
    np.testing.assert_allclose(mean, want_mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(var, want_var, rtol=1e-5)


@pytest.mark.parametrize("shape", [(100_000, 1), (1, 100_000, 1), (8, 64, 64, 2), (7, 5, 7, 9, 11, 1)], ids=str)
@pytest.mark.parametrize("mean", [0, 1000])
def test_outliers_at_one_place_of_all_examples_cost_no_digits(shape, mean):
    """Wherever they stand, they do not become the pivot: that would cost the variance up to 1 %."""
    x = (mean + np.random.default_rng(0).normal(size=shape)).astype(np.float32)
    sizes = shape[:1] if len(shape) == 2 else shape[1:-1]

    @jax.jit
    def variance(*place):
        index = place if len(shape) == 2 else (slice(None), *place)
        return jaxbn.batch_moments(jnp.asarray(x).at[index].set(mean + 300.0)).var

    fractions = np.arange(57) / 56  # quarters, eighths, fourteenths
    rng = np.random.default_rng(1)
    for fraction in fractions:
        for place in (
            [min(int(fraction * n), n - 1) for n in sizes],
            [int(rng.integers(n)) for n in sizes],
        ):
            changed = x.copy()
            changed[tuple(place) if len(shape) == 2 else (slice(None), *place)] = mean + 300
            want = changed.astype(np.float64).reshape(-1, shape[-1]).var(0)
            np.testing.assert_allclose(variance(*place), want, rtol=5e-6)
