"""Each average of the running statistics, evaluated after 1, 10 and 100 steps, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxbn
import jaxbn.linen
import jaxbn.nnx

STEPS = (1, 10, 100)
RNG = np.random.default_rng(0)
DATA = (RNG.normal(size=(100, 6, 2)) * 3 + [1, -20]).astype(np.float32)


def schedule(count):
    return optax.linear_schedule(0.5, 0.95, 50)(count)


def schedule64(step):
    return 0.5 + 0.45 * min(step / 50, 1)


def weights_debiased(steps):
    weights = 0.99 ** np.arange(steps)[::-1]
    return weights / weights.sum()


def weights_scheduled(steps):
    """The weight of each batch; the rest is that of the start."""
    momenta = [schedule64(s) for s in range(steps)]
    return np.array([(1 - momenta[s]) * np.prod(momenta[s + 1 :]) for s in range(steps)])


MOMENTA = {
    "cumulative": (None, lambda steps: np.full(steps, 1 / steps)),
    "debiased": (jaxbn.debiased(0.99), weights_debiased),
    "debiased to nothing": (jaxbn.debiased(0), lambda steps: np.eye(steps)[-1]),
    "schedule": (schedule, weights_scheduled),
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
@pytest.mark.parametrize("momentum", [0, 1e-9, 0.3, 0.5, 0.9, 0.999, 1 - 1e-6, 1])
def test_any_momentum_weighs_the_new_batch_to_all_its_digits_and_keeps_what_is_equal(momentum, dtype):
    """1 - float32(0.999) is 1e-5 off, and so were the first steps or the limit."""
    with jax.enable_x64(dtype == "float64"):
        old = {"mean": jnp.array([0, 3], dtype), "var": jnp.array([0.0, 7.0], jnp.zeros((), dtype).real.dtype)}
        moments = jaxbn.Moments(
            jnp.array([9.0, 9.0], old["var"].dtype), *(v + jnp.array([5, 0], v.dtype) for v in old.values())
        )
        new = jax.jit(lambda s, m: jaxbn.update_batch_stats(s, m, momentum=momentum))(old, moments)
        for name in new:
            np.testing.assert_allclose(new[name][0], 5 * (1 - momentum), rtol=2e-7)
            assert new[name][1] == old[name][1]


@pytest.mark.parametrize(
    ("momentum", "steps", "weight"),
    [
        (None, 10**6, 1e-6),
        (jaxbn.debiased(0.999), 2000, 0.001 / (1 - 0.999**2000)),
        (jaxbn.debiased(0.9999), 10**6, 0.0001),
        (jaxbn.debiased(0.999), 1, 1),
    ],
)
def test_an_average_weighs_a_late_batch_to_all_its_digits(momentum, steps, weight):
    stats = {"mean": jnp.zeros(1), "var": jnp.ones(1), "count": jnp.full(1, steps - 1, jnp.int32)}
    new = jaxbn.update_batch_stats(stats, jaxbn.Moments(jnp.ones(1), jnp.ones(1), jnp.ones(1)), momentum=momentum)
    np.testing.assert_allclose(new["mean"], weight, rtol=1e-6)
    assert new["var"] == 1


def expected(weights, unbiased):
    data = DATA[: len(weights)].astype(np.float64)
    rest = 1 - weights.sum()
    return {"mean": weights @ data.mean(1), "var": rest + weights @ data.var(1, ddof=int(unbiased))}


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("average", MOMENTA)
def test_an_average_is_exact_after_1_10_and_100_steps(average, unbiased):
    momentum, weights = MOMENTA[average]
    params, stats = jaxbn.init(2, use_count=True)

    def step(stats, x):
        _, stats = jaxbn.batch_norm(params, stats, x, use_running_average=False, momentum=momentum, unbiased=unbiased)
        return stats, stats

    with jax.numpy_dtype_promotion("standard"):  # optax's schedules promote their count
        _, history = jax.lax.scan(step, stats, jnp.asarray(DATA))
    evaluate = jax.jit(lambda stats: jaxbn.batch_norm(params, stats, DATA[0], use_running_average=True)[0])
    for steps in STEPS:
        got, want = jax.tree.map(lambda v, i=steps - 1: v[i], history), expected(weights(steps), unbiased)
        assert (got["count"] == steps).all()
        for name, value in want.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=f"{name} after {steps}")
        y = (DATA[0] - want["mean"]) / np.sqrt(want["var"] + 1e-5)
        np.testing.assert_allclose(evaluate(got), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("momentum", [None, jaxbn.debiased(0.99)], ids=["cumulative", "debiased"])
def test_the_modules_average_as_the_function_does(momentum):
    linen = jaxbn.linen.BatchNorm(use_running_average=False, momentum=momentum)
    assert hash(linen) == hash(linen.copy())
    variables = linen.init(jax.random.key(0), DATA[0])
    model = jaxbn.nnx.BatchNorm(2, momentum=momentum, rngs=nnx.Rngs(0))
    apply = jax.jit(lambda variables, x: linen.apply(variables, x, mutable=["batch_stats"])[1])
    call = nnx.jit(lambda model, x: model(x))
    weights = np.full(3, 1 / 3) if momentum is None else weights_debiased(3)
    for x in DATA[:3]:
        variables = variables | apply(variables, x)
        call(model, x)
    for name, value in expected(weights, False).items():
        np.testing.assert_allclose(variables["batch_stats"][name], value, rtol=1e-5)
        np.testing.assert_allclose(getattr(model, name)[...], value, rtol=1e-5)


def test_a_momentum_near_one_keeps_its_digits():
    got = [float(jaxbn.debiased(1 - 1e-7)(jnp.int32(n))) for n in (0, 1, 9)]
    np.testing.assert_allclose(got, [0, 1 / 2, 9 / 10], rtol=2e-6)


def test_equal_averages_are_one_to_a_compiled_program():
    assert jaxbn.debiased(0.9) == jaxbn.debiased(0.9)
    assert hash(jaxbn.debiased(0.9)) == hash(jaxbn.debiased(0.9))
    assert jaxbn.debiased(0.9) != jaxbn.debiased(0.8)


@pytest.mark.parametrize(
    ("momentum", "error"), [(1.0, ValueError), (-0.1, ValueError), ("0.9", TypeError), (True, TypeError)]
)
def test_a_wrong_momentum_is_an_error(momentum, error):
    with pytest.raises(error, match="`momentum` must be"):
        jaxbn.debiased(momentum)


def test_an_average_that_counts_needs_a_count():
    params, stats = jaxbn.init(2)
    with pytest.raises(ValueError, match="use_count=True"):
        jaxbn.batch_norm(params, stats, DATA[0], use_running_average=False, momentum=jaxbn.debiased(0.9))
