"""Batch renormalization against the formulas of its paper (Ioffe 2017, section 3), written in float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
import jaxbn.linen
import jaxbn.nnx

EPSILON = 1e-5


def paper(scale, bias, mean, var, x, dy, r_max, d_max, weights=None):
    """y, dx, dscale, dbias, and the mean and variance of the batch; r and d are constants."""
    weights = np.ones((len(x), 1)) if weights is None else weights
    m = weights.sum(0)
    batch_mean = (weights * x).sum(0) / m
    batch_var = (weights * (x - batch_mean) ** 2).sum(0) / m
    sigma_b, sigma = np.sqrt(batch_var + EPSILON), np.sqrt(var + EPSILON)
    r = np.clip(sigma_b / sigma, 1 / r_max, r_max)
    d = np.clip((batch_mean - mean) / sigma, -d_max, d_max)
    x_hat = (x - batch_mean) / sigma_b * r + d
    dx_hat = dy * scale
    dsigma = (dx_hat * (x - batch_mean) * -r / sigma_b**2).sum(0)
    dmean = (dx_hat * -r / sigma_b).sum(0)
    dx = dx_hat * r / sigma_b + weights / m * (dsigma * (x - batch_mean) / sigma_b + dmean)
    return x_hat * scale + bias, dx, (dy * x_hat).sum(0), dy.sum(0), batch_mean, batch_var


def data(rows=12, channels=5):
    """Batches that are far from the running statistics in some channels, so that each limit is met and not met."""
    rng = np.random.default_rng(0)
    mean, var = np.array([0.0, 2.0, -30.0, 0.1, 1.0]), np.array([1.0, 0.01, 4.0, 100.0, 1.0])
    scale, bias = rng.normal(size=channels), rng.normal(size=channels)
    x = rng.normal(size=(rows, channels)) * [1.1, 1.0, 2.0, 1.0, 0.3] + [0.2, 2.0, 3.0, 0.0, -8.0]
    return scale, bias, mean, var, x, rng.normal(size=(rows, channels))


def close(found, expected):
    scale = np.maximum(1.0, np.abs(expected).max())
    np.testing.assert_allclose(np.asarray(found, np.float64) / scale, expected / scale, atol=1e-5)


def f32(*values):
    return [jnp.asarray(v, jnp.float32) for v in values]


@pytest.mark.parametrize("limits", [(3.0, 5.0), (1.0, 0.0), (1.5, 0.5), (1e6, 1e6)])
@pytest.mark.parametrize("masked", [False, True])
def test_output_gradients_and_state_are_those_of_the_paper(limits, masked):
    scale, bias, mean, var, x, dy = data()
    weights = (np.arange(12) % 3).reshape(12, 1).astype(np.float64) if masked else None
    y, *gradients, batch_mean, batch_var = paper(scale, bias, mean, var, x, dy, *limits, weights)
    s, b, m, v, inputs, cotangent = f32(scale, bias, mean, var, x, dy)

    def layer(x, s, b):
        return jaxbn.batch_norm(
            {"scale": s, "bias": b}, {"mean": m, "var": v}, x, use_running_average=False, momentum=0.9,
            renorm=jaxbn.Renorm(*limits), mask=None if weights is None else jnp.asarray(weights, jnp.float32),
        )  # fmt: skip

    found, vjp, state = jax.vjp(layer, inputs, s, b, has_aux=True)
    close(found, y)
    for got, expected in zip(vjp(cotangent), gradients, strict=True):
        close(got, expected)
    close(state["mean"], 0.9 * mean + 0.1 * batch_mean)
    close(state["var"], 0.9 * var + 0.1 * batch_var)
    # The derivative in forward mode is that in reverse mode.
    _, dy = jax.jvp(lambda *a: layer(*a)[0], (inputs, s, b), (inputs * 0.1, s, b))
    close((dy * cotangent).sum(), sum((a * b).sum() for a, b in zip(vjp(cotangent), (inputs * 0.1, s, b), strict=True)))


def test_a_batch_that_is_split_over_devices_is_one_batch():
    scale, bias, mean, var, x, dy = data()
    y, dx, *_ = paper(scale, bias, mean, var, x, dy, 3.0, 5.0)
    s, b, m, v, inputs, cotangent = f32(scale, bias, mean, var, x.reshape(4, 3, 5), dy.reshape(4, 3, 5))

    def layer(x):
        return jaxbn.batch_norm(
            {"scale": s, "bias": b}, {"mean": m, "var": v}, x, use_running_average=False, axis_name="i",
            renorm=jaxbn.Renorm(),
        )[0]  # fmt: skip

    found, vjp = jax.vjp(jax.vmap(layer, axis_name="i"), inputs)
    close(found.reshape(12, 5), y)
    close(vjp(cotangent)[0].reshape(12, 5), dx)


def test_each_virtual_batch_and_each_group_is_corrected_by_itself():
    scale, bias, mean, var, x, dy = data()
    y = np.concatenate(
        [
            paper(scale, bias, mean, var, a, b, 3.0, 5.0)[0]
            for a, b in zip(x.reshape(3, 4, 5), dy.reshape(3, 4, 5), strict=True)
        ]
    )
    s, b, m, v, inputs = f32(scale, bias, mean, var, x)
    layer = functools.partial(
        jaxbn.batch_norm, {"scale": s, "bias": b}, {"mean": m, "var": v}, use_running_average=False,
        renorm=jaxbn.Renorm(),
    )  # fmt: skip
    close(layer(inputs, virtual_batch_size=4)[0], y)
    grouped = jax.vmap(lambda x: layer(x, axis_name="i", axis_index_groups=[[0, 1], [2, 3], [4, 5]])[0], axis_name="i")
    close(grouped(inputs.reshape(6, 2, 5)).reshape(12, 5), y)


@pytest.mark.parametrize("use", [{"use_scale": False}, {"use_bias": False}, {"use_scale": False, "use_bias": False}])
def test_a_scale_or_a_bias_that_is_absent_is_one_or_zero(use):
    *_, mean, var, x, dy = data()
    params, _ = jaxbn.init(5, **use)
    y, dx, *_ = paper(1.0, 0.0, mean, var, x, dy, 3.0, 5.0)
    m, v, inputs, cotangent = f32(mean, var, x, dy)
    found, vjp = jax.vjp(
        lambda x: jaxbn.batch_norm(params, {"mean": m, "var": v}, x, use_running_average=False, renorm=jaxbn.Renorm())[
            0
        ],
        inputs,
    )
    close(found, y)
    close(vjp(cotangent)[0], dx)


def test_a_warm_up_is_batch_norm_at_first_in_the_functions_and_in_both_modules():
    """Limits that are schedules of the count, over four steps, from a state of zeros and ones."""
    warm = jaxbn.Renorm(lambda n: jnp.where(n < 2, 1.0, 3.0), lambda n: jnp.where(n < 2, 0.0, 5.0))
    rng = np.random.default_rng(1)
    batches = rng.normal(size=(4, 8, 3)) * 2 + 1
    linen = jaxbn.linen.BatchNorm(use_running_average=False, momentum=0.5, renorm=warm)
    variables = linen.init(jax.random.key(0), jnp.zeros((8, 3)))
    module = jaxbn.nnx.BatchNorm(3, momentum=0.5, renorm=warm, rngs=nnx.Rngs(0))
    params, stats = jaxbn.init(3, use_count=True)
    mean, var = np.zeros(3), np.ones(3)
    for step, x in enumerate(batches):
        limits = (1.0, 0.0) if step < 2 else (3.0, 5.0)
        y, *_, batch_mean, batch_var = paper(1.0, 0.0, mean, var, x, x, *limits)
        mean, var = (mean + batch_mean) / 2, (var + batch_var) / 2
        (inputs,) = f32(x)
        of_linen, updates = linen.apply(variables, inputs, mutable=["batch_stats"])
        variables |= updates
        of_functions, stats = jaxbn.batch_norm(
            params, stats, inputs, use_running_average=False, momentum=0.5, renorm=warm
        )
        for found in (of_linen, module(inputs), of_functions):
            close(found, y)
    for found in (variables["batch_stats"]["mean"], module.mean[...], stats["mean"]):
        close(found, mean)


def test_microbatches_are_corrected_by_the_state_before_the_step():
    scale, bias, mean, var, x, dy = data()
    s, b, m, v, inputs = f32(scale, bias, mean, var, x)
    for part in (slice(0, 5), slice(5, 12)):
        y, moments = jaxbn.normalize_batch(
            {"scale": s, "bias": b}, {"mean": m, "var": v}, inputs[part], renorm=jaxbn.Renorm()
        )
        expected, *_, batch_mean, _ = paper(scale, bias, mean, var, x[part], dy[part], 3.0, 5.0)
        close(y, expected)
        close(moments.mean, batch_mean)


def test_an_empty_channel_and_evaluation_are_not_corrected():
    *_, mean, var, x, _ = data()
    params, _ = jaxbn.init(5)
    m, v, inputs = f32(mean, var, x)
    expected = (x - mean) / np.sqrt(var + EPSILON)
    for options in ({"use_running_average": False, "mask": jnp.zeros((12, 1), bool)}, {"use_running_average": True}):
        y, _ = jaxbn.batch_norm(params, {"mean": m, "var": v}, inputs, renorm=jaxbn.Renorm(1.5, 0.1), **options)
        close(y, expected)


@pytest.mark.parametrize("d_max", [5.0, 0.5])
def test_complex_values_are_moved_by_at_most_d_max_along_their_direction(d_max):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 3)) + 1j * rng.normal(size=(12, 3)) + np.array([3 - 2j, 0.1j, -8])
    mean, var, epsilon = np.array([1 + 1j, 0, 0]), np.array([2.0, 1.0, 30.0]), 0.5
    sigma_b, sigma = (np.sqrt(v + epsilon) for v in ((np.abs(x - x.mean(0)) ** 2).mean(0), var))
    r, d = np.clip(sigma_b / sigma, 1 / 1.2, 1.2), (x.mean(0) - mean) / sigma
    d = d * np.minimum(1, d_max / np.abs(d))
    found, _ = jaxbn.batch_norm(
        {}, {"mean": mean.astype(np.complex64), "var": np.float32(var)}, x.astype(np.complex64),
        use_running_average=False, renorm=jaxbn.Renorm(1.2, d_max), epsilon=epsilon,
    )  # fmt: skip
    np.testing.assert_allclose(found, (x - x.mean(0)) / sigma_b * r + d, atol=1e-5)


def falling(count):
    """At counts of 0 and 1 a limit is looked at, and later not."""
    return jnp.where(count < 2, 1.0, -3.0)


@pytest.mark.parametrize("limits", [(falling, 0.0), (1.0, falling)], ids=["r_max", "d_max"])
def test_a_schedule_of_one_limit_that_goes_below_its_least_stays_there(limits):
    *_, mean, var, x, _ = data()
    m, v, inputs = f32(mean, var, x)
    stats = {"mean": m, "var": v, "count": jnp.full(5, 7, jnp.int32)}
    found, _ = jaxbn.batch_norm({}, stats, inputs, use_running_average=False, renorm=jaxbn.Renorm(*limits))
    plain, _ = jaxbn.batch_norm({}, stats, inputs, use_running_average=False)
    np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-5)


def test_second_derivatives_take_the_correction_as_a_constant():
    *_, mean, var, x, dy = data()
    params, _ = jaxbn.init(5)
    m, v, inputs, cotangent = f32(mean, var, x, dy)

    def first(x, renorm):
        y = jaxbn.batch_norm(params, {"mean": m, "var": v}, x, use_running_average=False, renorm=renorm)[0]
        return (y * cotangent).sum()

    def by_hand(x):
        """Plain batch norm, and r and d of the same batch."""
        batch = jaxbn.batch_moments(x)
        plain = jaxbn.normalize(params, x, batch.mean, batch.var)
        sigma = jnp.sqrt(v + EPSILON)
        r = jnp.clip(jnp.sqrt(batch.var + EPSILON) / sigma, 1 / 3, 3)
        d = jnp.clip((batch.mean - m) / sigma, -5, 5)
        r, d = jax.lax.stop_gradient((r[None], d[None]))
        return ((plain * r + d) * cotangent).sum()

    found = jax.jvp(jax.grad(lambda x: first(x, jaxbn.Renorm())), (inputs,), (cotangent,))[1]
    close(found, np.asarray(jax.jvp(jax.grad(by_hand), (inputs,), (cotangent,))[1]))


@pytest.mark.parametrize(
    ("limits", "name"),
    [((0.5, 1.0), "r_max"), ((3.0, -1.0), "d_max"), ((float("nan"), 1.0), "r_max"), ((1.0, float("inf")), "d_max"),
     ((lambda n: 0.5, 1.0), "r_max"), ((1.0, lambda n: jnp.asarray(-1.0)), "d_max"), (("3", 1.0), "r_max"),
     ((True, 1.0), "r_max"), ((1.0, jnp.ones(3)), "d_max")],
)  # fmt: skip
def test_limits_that_are_none_are_told(limits, name):
    with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
        jaxbn.Renorm(*limits)


def test_a_renorm_of_another_type_or_without_its_count_is_told():
    params, stats = jaxbn.init(3)
    for renorm in (True, (3.0, 5.0), {"r_max": 3.0}):
        with pytest.raises(TypeError, match="`renorm` must be None or a "):
            jaxbn.batch_norm(params, stats, jnp.ones((4, 3)), use_running_average=False, renorm=renorm)
    with pytest.raises(ValueError, match="`renorm` with a schedule of the count needs"):
        jaxbn.batch_norm(
            params, stats, jnp.ones((4, 3)), use_running_average=False, renorm=jaxbn.Renorm(lambda n: 1.0, 0.0)
        )


@pytest.mark.parametrize("limits", [{"r_max": lambda count: 2.0}, {"d_max": lambda count: 2.0}])
def test_either_schedule_needs_the_count_and_a_module_keeps_it(limits):
    renorm, x = jaxbn.Renorm(**limits), jnp.ones((4, 3))
    params, stats = jaxbn.init(3)
    with pytest.raises(ValueError, match=r"needs batch_stats\['count'\]"):
        jaxbn.batch_norm(params, stats, x, use_running_average=False, renorm=renorm)
    assert jaxbn.nnx.BatchNorm(3, renorm=renorm, rngs=nnx.Rngs(0)).count is not None
    variables = jaxbn.linen.BatchNorm(False, renorm=renorm).init(jax.random.key(0), x)
    assert "count" in variables["batch_stats"]
