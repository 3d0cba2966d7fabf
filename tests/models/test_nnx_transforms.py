"""nnx transforms, views and modes of the nnx module: what Flax's module does, ours does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn.nnx

NORMS = {"flax": nnx.BatchNorm, "ours": jaxbn.nnx.BatchNorm}
X = jnp.asarray(3 + np.random.default_rng(0).normal(size=(3, 6, 4)), jnp.float32)  # three batches


class Model(nnx.Module):
    def __init__(self, norm, rngs, **fields):
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.bn = norm(4, momentum=0.5, rngs=rngs, **fields)

    def __call__(self, x):
        return jnp.tanh(self.bn(self.linear(x)))


def loss(model, x):
    return jnp.sum(model(x) ** 3)


def steps(norm):
    """Three steps with nnx.jit, nnx.value_and_grad and a descent by hand."""
    model = Model(norm, nnx.Rngs(0))

    @nnx.jit
    def step(model, x):
        value, grads = nnx.value_and_grad(loss)(model, x)
        nnx.update(model, jax.tree.map(lambda p, g: p - 0.01 * g, nnx.state(model, nnx.Param), grads))
        return value

    return [step(model, x) for x in X], nnx.state(model)


def scanned(norm):
    model = Model(norm, nnx.Rngs(0))

    @nnx.jit
    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def run(model, x):
        return model, model(x)

    _, y = run(model, X)
    return y, nnx.state(model)


def stacked(norm):
    """Three layers at once, with their parameters and statistics along an axis."""
    make = nnx.vmap(lambda key: Model(norm, nnx.Rngs(key)), in_axes=0, out_axes=0)
    model = make(jax.random.split(jax.random.key(0), 3))
    y = nnx.jit(nnx.vmap(lambda model, x: model(x), in_axes=(0, None)))(model, X[0])
    return y, nnx.state(model)


def mapped(norm):
    """The batch along a vmap axis, that statistics are synchronized over."""
    model = Model(norm, nnx.Rngs(0), axis_name="batch")
    axes = nnx.StateAxes({...: None})
    run = nnx.vmap(lambda model, x: model(x), in_axes=(axes, 0), axis_name="batch")
    return nnx.jit(run)(model, X), nnx.state(model)


def merged(norm):
    graphdef, params, batch_stats = nnx.split(Model(norm, nnx.Rngs(0)), nnx.Param, nnx.BatchStat)

    @jax.jit
    def step(params, batch_stats, x):
        model = nnx.merge(graphdef, params, batch_stats)
        return model(x), nnx.state(model, nnx.BatchStat)

    return step(params, batch_stats, X[0])


@pytest.mark.parametrize("run", [steps, scanned, stacked, mapped, merged])
def test_a_transformed_model_is_as_with_flax(run):
    results = {name: jax.tree.leaves_with_path(run(norm)) for name, norm in NORMS.items()}
    assert [path for path, _ in results["ours"]] == [path for path, _ in results["flax"]]
    for (path, ours), (_, flax) in zip(results["ours"], results["flax"], strict=True):
        assert (ours.shape, ours.dtype) == (flax.shape, flax.dtype)
        np.testing.assert_allclose(ours, flax, rtol=1e-4, atol=1e-5, err_msg=jax.tree_util.keystr(path))


def test_modes_views_and_attributes_switch_the_statistics():
    model = Model(jaxbn.nnx.BatchNorm, nnx.Rngs(0))
    y = model(X[0])
    mean = model.bn.mean[...]
    assert (np.asarray(mean) != 0).all()
    model.eval()
    assert not np.allclose(model(X[0]), y, atol=1e-3)
    np.testing.assert_array_equal(model.bn.mean[...], mean)
    model.train()
    np.testing.assert_allclose(model(X[0]), y, rtol=1e-5)
    model.set_attributes(use_running_average=True, activation="relu")
    assert (np.asarray(model.bn(X[0])) >= 0).all()
    view = nnx.view(model, use_running_average=False)
    assert (view.bn.use_running_average, model.bn.use_running_average) == (False, True)


@pytest.mark.parametrize("momentum", [None, lambda count: 1 - 1 / (1 + count)])
def test_an_average_that_counts_has_its_count_in_the_state(momentum):
    layer = jaxbn.nnx.BatchNorm(4, momentum=momentum, rngs=nnx.Rngs(0))
    run = nnx.jit(lambda layer, x: layer(x))
    for x in X:
        run(layer, x)
    assert (layer.count[...] == 3).all()
    np.testing.assert_allclose(layer.mean[...], np.asarray(X, np.float64).mean((0, 1)), rtol=1e-5)
    assert "count" not in nnx.to_pure_dict(nnx.state(jaxbn.nnx.BatchNorm(4, rngs=nnx.Rngs(0))))


def test_several_feature_axes_and_our_fields_reach_the_core():
    fields = {"axis": (1, 2), "virtual_batch_size": 3, "unbiased": True, "activation": "relu", "momentum": 0.0}
    layer = jaxbn.nnx.BatchNorm((2, 2), **fields, rngs=nnx.Rngs(0))
    x = X[0].reshape(6, 2, 2)
    y = layer(x, residual=jnp.ones_like(x))
    chunks = np.asarray(x, np.float64).reshape(2, 3, 2, 2)
    normal = (chunks - chunks.mean(1, keepdims=True)) / np.sqrt(chunks.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, np.maximum(normal.reshape(x.shape) + 1, 0), atol=1e-4)
    np.testing.assert_allclose(layer.var[...], np.asarray(x, np.float64).var(0, ddof=1), rtol=1e-5)


BAD = {
    "features": ({}, jnp.ones((2, 3)), {}, ValueError, "must have the feature shape of x"),
    "integers": ({}, jnp.ones((2, 4), int), {}, TypeError, "`x` must be floating or complex"),
    "axis": ({"axis": -3}, X[0], {}, ValueError, r"`axis` must be in \[-2, 2\)"),
    "mask": ({}, X[0], {"mask": jnp.ones((5, 1), bool)}, ValueError, "`mask` must broadcast to x"),
    "axis name": ({"axis_name": "batch"}, X[0], {}, ValueError, "`axis_name` must be bound"),
    "momentum": ({"momentum": -0.1}, X[0], {}, ValueError, r"must be in \[0, 1\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_and_leaves_the_state(name):
    fields, x, arguments, error, message = BAD[name]
    layer = jaxbn.nnx.BatchNorm(4, rngs=nnx.Rngs(0), **fields)
    with pytest.raises(error, match=message):
        layer(x, **arguments)
    np.testing.assert_array_equal(layer.mean[...], np.zeros(4))


def test_num_features_must_be_an_integer_and_not_negative():
    with pytest.raises(ValueError, match="`num_features` must not be negative"):
        jaxbn.nnx.BatchNorm(-1, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="`num_features` must be an integer"):
        jaxbn.nnx.BatchNorm(2.5, rngs=nnx.Rngs(0))
