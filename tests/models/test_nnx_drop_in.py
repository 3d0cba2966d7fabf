"""`jaxbn.nnx.BatchNorm` in the place of `flax.nnx.BatchNorm`: the same fields, states, numbers and gradients."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.nnx.nn import dtypes
from jax.nn import initializers

import jaxbn
import jaxbn.nnx

FLAX, OURS = nnx.BatchNorm, jaxbn.nnx.BatchNorm
RANDOM = {"scale_init": initializers.normal(1.0), "bias_init": initializers.normal(1.0)}
UNROUNDED = {"promote_dtype": lambda arrays, dtype: arrays}
CASES = {
    # name: (fields, shape of x, dtype of x, mask, tolerance)
    "defaults": ({}, (6, 3), "float32", None, 1e-5),
    "no scale": ({"use_scale": False, "momentum": 0.5, "epsilon": 0.1}, (6, 3), "float32", None, 1e-5),
    "no bias": ({"use_bias": False, "axis": 1, **RANDOM}, (6, 3, 2), "float32", None, 1e-5),
    "half output": ({"dtype": jnp.bfloat16, **RANDOM}, (6, 3), "float32", None, 3e-2),
    "half input and parameters": ({"param_dtype": jnp.bfloat16, **RANDOM}, (6, 3), "bfloat16", None, 2e-2),
    "own promotion": ({"dtype": jnp.float16, **UNROUNDED, **RANDOM}, (6, 3), "float16", None, 2e-3),
    "masked examples": (
        {"use_fast_variance": False, **RANDOM},
        (6, 3),
        "float32",
        np.array([[1], [1], [0], [1], [0], [1]], bool),
        1e-5,
    ),
}
OURS_AFTER = ["virtual_batch_size", "unbiased", "activation", "renorm", "num_domains", "affine_per_domain"]


def data(shape, dtype):
    """Two batches, with an offset and a scale."""
    return jnp.asarray((0.5 + 2 * np.random.default_rng(0).normal(size=(2, *shape))).astype(dtype))


def train(layer, xs, mask):
    """Initial state; outputs, statistics, gradients and evaluation of each of two training steps."""
    graphdef, first = nnx.split(layer)
    weights = jnp.cos(jnp.arange(xs[0].size, dtype=jnp.float32)).reshape(xs[0].shape)

    @jax.jit
    def step(state, x):
        layer = nnx.merge(graphdef, state)

        def loss(layer, x):
            y = layer(x, mask=mask)
            return jnp.sum(weights * y.astype(jnp.float32) ** 2), y

        (_, y), grads = nnx.value_and_grad(loss, argnums=(0, 1), has_aux=True)(layer, x)
        new = nnx.state(layer)
        layer.eval()
        return y, new, grads, layer(x)

    history, state = [], first
    for x in xs:
        history.append(step(state, x))
        state = history[-1][1]
    return nnx.to_pure_dict(first), history


def assert_same(actual, expected, tolerance):
    actual, expected = (jax.tree_util.tree_leaves_with_path(t) for t in (actual, expected))
    assert [path for path, _ in actual] == [path for path, _ in expected]
    for (path, a), (_, e) in zip(actual, expected, strict=True):
        name = jax.tree_util.keystr(path)
        assert (a.shape, a.dtype) == (e.shape, e.dtype), name
        a, e = (np.asarray(v).astype(np.float64) for v in (a, e))
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance * max(1, np.abs(e).max()), err_msg=name)


@pytest.mark.parametrize("name", CASES)
def test_everything_is_as_with_flax(name):
    fields, shape, dtype, mask, tolerance = CASES[name]
    xs = data(shape, dtype)
    ours_first, ours = train(OURS(3, rngs=nnx.Rngs(7), **fields), xs, mask)
    with jax.numpy_dtype_promotion("standard"):
        flax_first, flax = train(FLAX(3, rngs=nnx.Rngs(7), **fields), xs, mask)
    assert_same(ours_first, flax_first, 0)
    assert_same(ours, flax, tolerance)


def test_fields_defaults_and_their_order_are_those_of_flax_and_ours_come_after():
    def parameters(function):
        return [(p.name, p.default, p.kind) for p in inspect.signature(function).parameters.values()]

    flax = parameters(FLAX.__init__)
    assert parameters(OURS.__init__)[: len(flax)] == flax
    assert [p[0] for p in parameters(OURS.__init__)[len(flax) :]] == OURS_AFTER
    assert parameters(OURS.__call__)[:-2] == parameters(FLAX.__call__)
    assert [p[0] for p in parameters(OURS.__call__)[-2:]] == ["residual", "domain"]
    assert issubclass(OURS, FLAX)
    ours, flax = (vars(norm(3, rngs=nnx.Rngs(0))) for norm in (OURS, FLAX))
    assert set(ours) >= set(flax)
    assert all(ours[name] == flax[name] for name in flax if isinstance(flax[name], int | float | str | None))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_evaluation_does_not_round_the_running_mean(dtype):
    """Flax's rounds 1000.2 to 1000 before it subtracts it; a `promote_dtype` that asks for that gets it."""

    def evaluate(**fields):
        layer = OURS(1, dtype=dtype, use_running_average=True, rngs=nnx.Rngs(0), **fields)
        layer.mean[...] = jnp.array([1000.2])
        return float(layer(jnp.array([[1001.4]], jnp.float32))[0, 0])

    asked = functools.partial(dtypes.promote_dtype)
    assert abs(evaluate() - 1.2) < 0.01
    with jax.numpy_dtype_promotion("standard"):
        assert abs(evaluate(promote_dtype=asked) - 1.2) > 0.2


@pytest.mark.parametrize("norm", [FLAX, OURS], ids=["flax", "jaxbn"])
def test_a_promotion_of_ones_own_does_not_reach_the_statistics_that_training_moves(norm):
    def promote(arrays, dtype):
        return tuple(None if a is None else a.astype(jnp.bfloat16) for a in arrays)

    layer = norm(1, momentum=0.75, promote_dtype=promote, rngs=nnx.Rngs(0))
    layer.mean[...] = jnp.array([1000.2])  # 1000 in bfloat16
    with jax.numpy_dtype_promotion("standard"):
        layer(jnp.array([[1.0], [3.0]]))
    np.testing.assert_allclose(layer.mean[...], [0.75 * 1000.2 + 0.25 * 2], rtol=1e-6)


def test_a_complex_running_mean_keeps_its_imaginary_part():
    x = jnp.array([[1 + 2j], [3 + 6j]], jnp.complex64)
    for param_dtype in ("float32", "complex64"):
        layer = OURS(1, momentum=0.0, param_dtype=param_dtype, rngs=nnx.Rngs(0))
        assert layer.mean[...].dtype == param_dtype  # complex from the start, where that is known, as a scan needs it
        assert layer(x).dtype == jnp.complex64
        np.testing.assert_allclose(layer.mean[...], [2 + 4j], rtol=1e-6)
        np.testing.assert_allclose(layer.var[...], [5.0], rtol=1e-6)
        np.testing.assert_allclose(layer(x[:1], use_running_average=True), [[(-1 - 2j) / 5**0.5]], rtol=1e-5)


@pytest.mark.parametrize("norm", [FLAX, OURS], ids=["flax", "jaxbn"])
def test_no_gradient_flows_through_the_running_statistics(norm):
    def loss(x):
        layer = norm(3, momentum=0.5, rngs=nnx.Rngs(0))
        layer(x)
        return jnp.sin(layer(x, use_running_average=True)).sum(), (layer.mean[...], layer.var[...])

    x = data((6, 3), "float32")[0]
    gradient, (mean, var) = jax.device_get(jax.grad(loss, has_aux=True)(x))
    deviation = np.sqrt(var + 1e-5)
    np.testing.assert_allclose(gradient, np.cos((np.asarray(x) - mean) / deviation) / deviation, rtol=1e-4, atol=1e-5)


def test_metadata_of_the_parameters_is_kept():
    layer = OURS(2, scale_metadata={"note": "a"}, bias_metadata={"note": "b"}, rngs=nnx.Rngs(0))
    assert (layer.scale.note, layer.bias.note) == ("a", "b")


def test_use_running_average_comes_from_the_call_then_the_module_and_must_be_somewhere():
    x = jnp.ones((2, 3))
    layer = OURS(3, use_running_average=None, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="use_running_average"):
        layer(x)
    np.testing.assert_allclose(layer(x, use_running_average=True), x, rtol=1e-4)
    np.testing.assert_array_equal(layer.mean[...], jnp.zeros(3))
    view = nnx.view(layer, use_running_average=False)
    view(x)
    assert (np.asarray(layer.mean[...]) != 0).all()


def test_a_variable_stands_for_its_array():
    x, mask = nnx.Param(data((8, 3), np.float32)[0]), nnx.Variable(jnp.arange(8)[:, None] % 3 > 0)
    layer = OURS(3, rngs=nnx.Rngs(0))
    params, stats = nnx.state(layer, nnx.Param), nnx.state(nnx.clone(layer), nnx.BatchStat)

    def function(params: Any, stats: Any, x: Any, mask: Any):
        return jaxbn.batch_norm(params, stats, x, use_running_average=False, mask=mask, residual=x)

    want_y, want = function(*jaxbn.init(3), x[...], mask[...])
    y, new = function(params, stats, x, mask)
    np.testing.assert_array_equal(y, want_y)
    jax.tree.map(np.testing.assert_array_equal, new, want)
    np.testing.assert_array_equal(layer(x, mask=mask, residual=x), want_y)
    np.testing.assert_array_equal(layer.mean[...], want["mean"])
