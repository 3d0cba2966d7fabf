"""Folding whole networks: residual blocks, strided shortcuts, activations inside, grouped convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo_models
from flax import nnx
from fold_models import filled

import jaxbn
import resnet_linen
import resnet_nnx

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 1)), jnp.float32)


def he_filled(tree):
    """Statistics and scales at random, kernels as they are initialized."""
    return jax.tree.map(lambda old, new: old if old.ndim > 1 else new, tree, filled(tree))


def linen():
    model = resnet_linen.ResNet(10)
    variables = he_filled(jax.jit(model.init, static_argnums=2)(jax.random.key(0), X, False))
    folded = jaxbn.fold(model, variables, X, train=False)
    run = jax.jit(lambda v: model.apply(v, X, train=False))
    return run(variables), run(folded), jaxbn.foldable_pairs(model, variables, X, train=False), folded["params"]


def nnx_model():
    model = nnx.jit(lambda: resnet_nnx.ResNet(1, 10, "batch", rngs=nnx.Rngs(0)))()
    nnx.update(model, he_filled(nnx.state(model)))
    folded = jaxbn.fold(model, X)
    model.eval(), folded.eval()
    run = nnx.jit(lambda m: m(X))
    return run(model), run(folded), jaxbn.foldable_pairs(model, X), nnx.to_pure_dict(nnx.state(folded, nnx.Param))


@pytest.mark.parametrize(
    ("case", "widths", "number"),
    [(linen, (32, 64), 6), pytest.param(nnx_model, (4, 8), 6, marks=pytest.mark.exhaustive)],
)
def test_the_example_network_evaluates_to_the_same(case, widths, number, monkeypatch):
    for module in (resnet_linen, resnet_nnx):
        monkeypatch.setattr(module, "WIDTHS", widths)
    before, after, pairs, params = case()
    norms = [path for _, path in pairs]
    assert len(norms) == len(set(norms)) == number
    error = np.abs(np.asarray(after, np.float64) - before).max() / np.abs(before).max()
    assert error <= 1e-5, error
    scales = [v for path, v in jax.tree_util.tree_leaves_with_path(params) if "scale" in jax.tree_util.keystr(path)]
    assert len(scales) == number
    assert all(np.all(np.asarray(v) == 1) for v in scales)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["bottleneck resnet", "mobilenet_v2"])
def test_every_batch_norm_of_a_network_of_convolutions_folds(name):
    model, x = zoo_models.NETWORKS[name][0], zoo_models.images(2)
    variables = he_filled(filled(jax.eval_shape(model.init, jax.random.key(0), x)))
    folded = jaxbn.fold(model, variables, x)
    variances = [v for k, v in jax.tree.leaves_with_path(folded["batch_stats"]) if "var" in jax.tree_util.keystr(k)]
    assert len(variances) == 19
    assert all(np.all(v + np.float32(1e-5) == 1) for v in variances)
    before, after = (jax.jit(model.apply)(v, x) for v in (variables, folded))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())
