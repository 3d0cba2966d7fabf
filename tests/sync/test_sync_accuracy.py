"""Large means from a cold start (running mean 0), across devices: how many digits of the variance remain."""

import functools

import jax
import numpy as np
import pytest

import jaxbn
from tests.split_data import DATA, arguments
from tests.split_reference import expected
from tests.splits import SHARDINGS, SPLITS

COLD = {"mean": np.zeros(8, np.float32), "var": np.ones(8, np.float32)}


def batch(offset, spread=0.0):
    """[8, 32, 8], of variance about 1 on each member; the means of the members differ by `spread` deviations."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 32, 8)) + np.repeat(rng.normal(size=(4, 1, 8)) * spread, 2, 0) + offset
    return x.astype(np.float32)


def layer(params, stats, x, mask, **options):
    """With momentum 0: the new statistics are those of the batch."""
    return jaxbn.batch_norm(params, stats, x, use_running_average=False, momentum=0.0, mask=mask, **options)


def error_of_variance(new, x):
    want = np.var(np.float64(x), (0, 1))
    return np.max(np.abs(np.float64(new["var"]) / want - 1))


@pytest.mark.parametrize("split", ["vmap, two names", "shard_map, checked"])
def test_the_variance_is_exact_where_the_axis_is_named(split):
    name, apply = SPLITS[split]
    run = jax.jit(lambda x: apply(lambda *args: layer(*args, axis_name=name), {}, COLD, x, None))
    for offset, spread, bound in (
        (0, 0, 1e-6),
        (0, 3, 1e-6),
        (1e3, 0, 1e-6),
        (1e3, 1, 1e-6),
        (1e3, 3, 1e-6),
        (1e5, 1, 1e-3),
    ):
        x = batch(offset, spread)
        assert error_of_variance(run(x)[1], x) < bound


def test_a_running_mean_that_is_near_keeps_the_variance_exact_at_1e5_deviations():
    name, apply = SPLITS["vmap"]
    x = batch(1e5, 1)
    warm = COLD | {"mean": np.full(8, 1e5, np.float32)}
    new = jax.jit(lambda x: apply(lambda *args: layer(*args, axis_name=name), {}, warm, x, None))(x)[1]
    assert error_of_variance(new, x) < 1e-5


def test_so_does_a_pivot_that_is_given():
    x = batch(1e5, 1)
    given = functools.partial(jaxbn.batch_moments, axis_name="d", pivot=np.full(8, 1e5, np.float32))
    moments = jax.jit(jax.vmap(given, axis_name="d"))(x)
    np.testing.assert_allclose(moments.var[0], np.float64(x).var((0, 1)), rtol=1e-5)


def test_float64_keeps_its_digits_where_the_axis_is_named():
    name, apply = SPLITS["vmap"]
    with jax.enable_x64(True):
        x, cold = np.float64(batch(1e3, 1)), jax.tree.map(np.float64, COLD)
        new = jax.jit(lambda x: apply(lambda *args: layer(*args, axis_name=name), {}, cold, x, None))(x)[1]
        assert error_of_variance(new, x) < 1e-10


@pytest.mark.parametrize("split", ["vmap, two names", "shard_map, checked"])
def test_an_exact_mean_first_is_that_of_the_whole_batch_though_its_members_differ(split):
    name, apply = SPLITS[split]
    options = {"axis_name": name, "use_fast_variance": False}
    run = jax.jit(lambda x: apply(lambda *args: layer(*args, **options), {}, COLD, x, None))
    for offset in (0, 1e3):
        x = np.sort(batch(offset, 3), 0)
        y, new = run(x)
        assert error_of_variance(new, x) < 1e-6
        wide = np.float64(x)
        exact = (wide - wide.mean((0, 1))) / np.sqrt(wide.var((0, 1)) + 1e-5)
        np.testing.assert_allclose(y, exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sharding", ["batch", "batch and features", "explicit", "explicit, batch and features"])
def test_plain_jit_over_sharded_arrays_is_exact_from_a_cold_start(sharding):
    sharding = SHARDINGS[sharding]
    run = jax.jit(lambda stats, x, fast: layer({}, stats, x, None, use_fast_variance=fast)[1], static_argnums=2)
    for offset in (10, 100, 1000, 1e5):
        with jax.set_mesh(sharding.mesh()):
            _, cold, x, _ = sharding.put({}, COLD, batch(offset, 1), None)
            assert error_of_variance(run(cold, x, True), batch(offset, 1)) < 1e-5
            assert error_of_variance(run(cold, x, False), batch(offset, 1)) < 1e-5


@pytest.mark.parametrize("split", ["vmap", "shard_map, checked"])
def test_moments_are_summed_and_not_gathered(split):
    name, apply = SPLITS[split]
    data = DATA["mask"]
    args = arguments(data)

    @jax.jit
    def run(params, x):
        def loss(params, x):
            return apply(
                lambda *args: jaxbn.batch_norm(
                    *args[:3], use_running_average=False, mask=args[3], axis_name=name, **data.options()
                ),
                params, args["stats"], x, data.mask,
            )  # fmt: skip

        out, vjp = jax.vjp(loss, params, x)
        return out, vjp((args["dy"], args["dstats"]))

    text = run.lower(args["params"], data.x).as_text()
    assert "all_gather" not in text
    (y, new), (dparams, dx) = run(args["params"], data.x)
    want = expected(data, args)
    for key, value in {"y": y, "dx": dx, **new, **dparams}.items():
        scale = max(1, np.abs(want[key]).max())
        np.testing.assert_allclose(np.float64(value) / scale, want[key] / scale, rtol=0, atol=2e-5, err_msg=key)
