"""`use_running_average` as a boolean array: training and evaluation in one program, each as if it were alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
import jaxbn.linen
import jaxbn.nnx

OPTIONS = {
    "plain": {},
    "mask": {"mask": np.arange(8).reshape(8, 1) % 3 > 0},
    "virtual batches": {"virtual_batch_size": 4},
    "activation": {"activation": "relu"},
    "count": {"momentum": None},
}


def layer(momentum=0.99):
    _, stats = jaxbn.init(3, use_count=momentum is None)
    params = {"scale": jnp.array([1.0, 2.0, -1.0]), "bias": jnp.array([0.0, 1.0, 2.0])}
    return params, stats | {"mean": jnp.array([1.0, -2.0, 30.0]), "var": jnp.array([1.0, 2.0, 3.0])}


def close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), found, expected)


@pytest.mark.parametrize("poisoned", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_each_choice_is_exact_with_its_gradients_and_its_state(name, poisoned):
    options = OPTIONS[name]
    params, stats = layer(options.get("momentum", 0.99))
    keys = jax.random.split(jax.random.key(0))
    x, dy = jax.random.normal(keys[0], (8, 3)) * 3 + 5, jax.random.normal(keys[1], (8, 3))
    x = x.at[1, 0].set(jnp.nan) if poisoned else x

    def run(flag, params, x):
        y, new = jaxbn.batch_norm(params, stats, x, use_running_average=flag, **options)
        return y, new

    @jax.jit
    def all_of(flag):
        y, vjp, new = jax.vjp(lambda *primals: run(flag, *primals), params, x, has_aux=True)
        return y, new, vjp(dy)

    for flag in (True, False):
        y, vjp, new = jax.vjp(lambda *primals, flag=flag: run(flag, *primals), params, x, has_aux=True)
        close(all_of(jnp.asarray(flag)), (y, new, vjp(dy)))


def test_a_choice_for_each_lane_of_vmap():
    params, stats = layer()
    x = jax.random.normal(jax.random.key(0), (2, 8, 3))
    flags = jnp.array([True, False])
    y, new = jax.vmap(lambda flag, x: jaxbn.batch_norm(params, stats, x, use_running_average=flag))(flags, x)
    for i, flag in enumerate((True, False)):
        close(
            (y[i], jax.tree.map(lambda v, i=i: v[i], new)),
            jaxbn.batch_norm(params, stats, x[i], use_running_average=flag),
        )


def test_the_modules_take_one_too():
    x = jax.random.normal(jax.random.key(0), (8, 3)) + 2
    module = jaxbn.linen.BatchNorm()
    variables = module.init(jax.random.key(0), x, use_running_average=True)

    @jax.jit
    def apply(flag):
        return module.apply(variables, x, use_running_average=flag, mutable=["batch_stats"])

    for flag in (True, False):
        expected = module.apply(variables, x, use_running_average=flag, mutable=["batch_stats"])
        close(apply(flag), expected)
        close(module.apply(variables, x, use_running_average=np.array(flag), mutable=["batch_stats"]), expected)
        found, expected = (jaxbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0)) for _ in range(2))
        close(nnx.jit(lambda m, f: m(x, f))(found, jnp.asarray(flag)), expected(x, flag))
        close(found.mean[...], expected.mean[...])


def test_a_microbatch_that_only_evaluates_joins_no_moments():
    x = jax.random.normal(jax.random.key(0), (8, 3)) + 2
    module, layer = jaxbn.linen.BatchNorm(), jaxbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    variables = module.init(jax.random.key(0), x, use_running_average=True)
    moments = jaxbn.zero_moments(variables["batch_stats"])
    jaxbn.nnx.zero_moments(layer)
    want = jaxbn.batch_moments(x)

    @nnx.jit
    def call(layer, moments, flag):
        given = {**variables, "batch_moments": moments}
        return module.apply(given, x, flag, mutable=["batch_moments"])[1]["batch_moments"], layer(x, flag)

    for flag in (True, False, True):
        moments, _ = call(layer, moments, jnp.asarray(flag))
        if flag and not moments["count"].any():
            continue
        for found in (moments, {name: v[...] for name, v in layer.batch_moments.items()}):
            np.testing.assert_array_equal(found["count"], [8, 8, 8])
            close([found["mean"], found["var"]], [want.mean, want.var])
    np.testing.assert_array_equal(layer.mean[...], [0, 0, 0])


@pytest.mark.parametrize("flag", [True, False])
def test_a_model_whose_layers_take_one_can_be_recalibrated(flag):
    x = jax.random.normal(jax.random.key(0), (8, 3)) + 5
    linen, flag = jaxbn.linen.BatchNorm(), jnp.asarray(flag)
    variables = linen.init(jax.random.key(0), x, use_running_average=True)

    def forward(variables, x):
        return linen.apply(variables, x, use_running_average=flag, mutable=["batch_moments", "batch_stats"])

    module = jaxbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    jaxbn.recalibrate(lambda module, x: module(x, flag), module, [x])
    for mean in (jaxbn.recalibrate(forward, variables, [x])["batch_stats"]["mean"], module.mean[...]):
        np.testing.assert_allclose(mean, x.mean(0), rtol=1e-6)


@pytest.mark.parametrize("flag", [jnp.ones(2, bool), jnp.ones((), jnp.int32), 1, "no", None])
def test_anything_else_is_an_error(flag):
    params, stats = layer()
    with pytest.raises(TypeError, match="`use_running_average` must be True, False or a boolean array"):
        jaxbn.batch_norm(params, stats, jnp.ones((8, 3)), use_running_average=flag)
