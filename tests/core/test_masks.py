"""A fine-tuning user's pitfalls: which statistics normalize, which are updated, and what the optimizer moves."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxbn
import jaxbn.linen
import jaxbn.nnx

X = np.random.default_rng(0).normal(2, 3, size=(8, 3)).astype(np.float32)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, use_running_average):
        x = jaxbn.linen.BatchNorm(name="bn")(x, use_running_average=use_running_average)
        return nn.LayerNorm(name="ln")(nn.Dense(2, name="dense")(x))


class Nnx(nnx.Module):
    def __init__(self, layer=jaxbn.nnx.BatchNorm):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([layer(3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs), nnx.LayerNorm(2, rngs=rngs)])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


LINEN = {
    "bn": {"scale": True, "bias": True},
    "ln": {"scale": False, "bias": False},
    "dense": {"kernel": False, "bias": False},
}


def optimizer_for(mask, freeze):
    """Everything trains but the frozen; or weight decay alone, so that what moves is what decays."""
    if freeze:
        labels = jax.tree.map(lambda b: "frozen" if b else "trained", mask)
        return optax.multi_transform({"trained": optax.sgd(0.1), "frozen": optax.set_to_zero()}, labels)
    decay = optax.add_decayed_weights(0.1, mask=jax.tree.map(lambda b: not b, mask))
    return optax.chain(decay, optax.scale(-1.0))


def moved(old, new):
    return jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), old, new)


def test_only_batch_norms_are_found_in_linen_variables():
    variables = Linen().init(jax.random.key(0), X, True)
    assert jaxbn.batch_norm_mask(variables) == LINEN


def test_partitioned_parameters_keep_their_boxes():
    layer = nn.BatchNorm(True, scale_init=nn.with_partitioning(nn.initializers.ones, ("model",)))
    variables = layer.init(jax.random.key(0), X)
    mask = jaxbn.batch_norm_mask(variables)
    assert jax.tree.structure(mask) == jax.tree.structure(variables["params"])
    assert jax.tree.leaves(mask) == [True, True]


def test_plain_trees_of_lists_and_tuples_are_searched():
    params, stats = jaxbn.init(2)
    model = {"params": [params, (params, {"kernel": 1})], "batch_stats": [{}, (stats, {})]}
    off, on = ({"scale": b, "bias": b} for b in (False, True))
    assert jaxbn.batch_norm_mask(model) == [off, (on, {"kernel": False})]


def test_other_parameters_of_a_batch_norm_are_not_its_scale_and_bias():
    params, stats = jaxbn.init(2)
    mask = jaxbn.batch_norm_mask({"params": params | {"gate": jnp.ones(2)}, "batch_stats": stats})
    assert mask == {"scale": True, "bias": True, "gate": False}


def test_a_model_without_batch_norm_is_an_error():
    with pytest.raises(ValueError, match="must have a batch norm"):
        jaxbn.batch_norm_mask(nnx.LayerNorm(2, rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError, match="got list"):
        jaxbn.batch_norm_mask([])


@pytest.mark.parametrize("freeze", [False, True], ids=["decay", "frozen"])
def test_linen_scales_do_not_decay_and_frozen_ones_do_not_train(freeze):
    model = Linen()
    variables = model.init(jax.random.key(0), X, True)
    params = jax.tree.map(lambda p: p + 1, variables["params"])
    optimizer = optimizer_for(jaxbn.batch_norm_mask(variables), freeze)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        def loss(params):
            y = model.apply({**variables, "params": params}, X, False, mutable=["batch_stats"])[0]
            return (y[:, 0] ** 2).mean()

        gradient = jax.grad(loss)(params) if freeze else jax.tree.map(jnp.zeros_like, params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    new, state = step(params, state)
    new, state = step(new, state)
    assert moved(params, new) == jax.tree.map(lambda b: not b, LINEN)


@pytest.mark.parametrize("layer", [nnx.BatchNorm, jaxbn.nnx.BatchNorm], ids=["flax", "jaxbn"])
@pytest.mark.parametrize("freeze", [False, True], ids=["decay", "frozen"])
def test_nnx_scales_do_not_decay_and_frozen_ones_do_not_train(layer, freeze):
    model = Nnx(layer)
    nnx.update(model, jax.tree.map(lambda p: p + 1, nnx.state(model, nnx.Param)))
    old = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    mask = jaxbn.batch_norm_mask(model)
    assert mask == jaxbn.batch_norm_mask(nnx.state(model))
    optimizer = nnx.Optimizer(model, optimizer_for(mask, freeze), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        gradient = nnx.grad(lambda model: (model(X)[:, 0] ** 2).mean())(model)
        optimizer.update(model, gradient if freeze else jax.tree.map(jnp.zeros_like, gradient))

    step(model, optimizer)
    step(model, optimizer)
    changed = moved(old, nnx.to_pure_dict(nnx.state(model, nnx.Param)))["layers"]
    assert changed[0] == {"scale": False, "bias": False}
    assert all(jax.tree.leaves([changed[1], changed[2]]))


def test_frozen_statistics_do_not_move_in_evaluation():
    linen = Linen()
    variables = linen.init(jax.random.key(0), X, True)
    _, updates = linen.apply(variables, X, True, mutable=["batch_stats"])
    assert not any(jax.tree.leaves(moved(variables["batch_stats"], updates["batch_stats"])))
    model = Nnx()
    model.eval()
    before = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    model(X)
    assert not any(jax.tree.leaves(moved(before, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))))


def test_momentum_one_normalizes_with_the_batch_and_moves_no_statistics():
    params, stats = jaxbn.init(3)
    y, new = jaxbn.batch_norm(params, stats, X, use_running_average=False, momentum=1.0)
    np.testing.assert_allclose(y, (X - X.mean(0)) / np.sqrt(X.var(0) + 1e-5), rtol=1e-4, atol=1e-5)
    assert not any(jax.tree.leaves(moved(stats, new)))
    model = Nnx()
    model.layers[0].momentum = 1.0
    model(X)
    assert not np.any(model.layers[0].mean[...])


@pytest.mark.parametrize("running", [False, True], ids=["batch", "running"])
@pytest.mark.parametrize("update", [False, True], ids=["kept", "updated"])
@pytest.mark.parametrize("train", [False, True], ids=["frozen", "trained"])
def test_the_three_choices_are_independent(running, update, train):
    params, stats = jaxbn.init(3)
    model = {"params": params, "batch_stats": stats}
    optimizer = optimizer_for(jaxbn.batch_norm_mask(model), True) if not train else optax.sgd(0.1)

    def loss(params):
        y, _ = jaxbn.batch_norm(params, stats, X, use_running_average=running)
        return (y**2 * y).mean(), y

    (_, y), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    new_params = optax.apply_updates(params, updates)
    new_stats = jaxbn.update_batch_stats(stats, jaxbn.batch_moments(X), momentum=0.9) if update else stats

    expected = X if running else (X - X.mean(0)) / X.std(0)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(new_stats["mean"], 0.1 * X.mean(0) if update else np.zeros(3), rtol=1e-5)
    assert moved(params, new_params) == {"scale": train, "bias": train}
