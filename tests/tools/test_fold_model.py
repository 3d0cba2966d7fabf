"""Folding a whole model: the same outputs, every batch norm the identity, and nothing else moved."""

import fold_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jaxbn

X = jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, 6, 4)), jnp.float32)


def linen_case():
    model = fold_models.Linen()
    variables = fold_models.filled(jax.eval_shape(model.init, jax.random.key(0), X))
    folded = jaxbn.fold(model, variables, X)
    run = jax.jit(model.apply)
    leaves = {"/".join(k): v for k, v in nnx.traversals.flatten_mapping({**folded}).items()}
    old = {"/".join(k): v for k, v in nnx.traversals.flatten_mapping({**variables}).items()}
    return run(variables, X), run(folded, X), old, leaves


def nnx_case():
    model = nnx.eval_shape(lambda: fold_models.Nnx(nnx.Rngs(0)))
    nnx.update(model, fold_models.filled(nnx.state(model)))
    folded = jaxbn.fold(model, X)
    assert model.norms[0].use_running_average == folded.norms[0].use_running_average == False  # noqa: E712
    model.eval()
    folded.eval()
    run = nnx.jit(lambda m, x: m(x))
    old, leaves = ({"/".join(map(str, k)): v[...] for k, v in nnx.to_flat_state(nnx.state(m))} for m in (model, folded))
    return run(model, X), run(folded, X), old, leaves


@pytest.fixture(scope="module", params=[linen_case, nnx_case])
def case(request):
    with jax.numpy_dtype_promotion("standard"):  # Flax's own layers promote a half input
        return request.param()


def test_the_outputs_stay(case):
    before, after, _, _ = case
    for name, y in before.items():
        rounding = {"float16": 2e-3, "bfloat16": 2e-2}.get(name, 1e-5)
        error = np.abs(np.asarray(after[name], np.float64) - np.asarray(y, np.float64)).max()
        assert after[name].dtype == y.dtype
        assert error <= rounding * np.abs(np.asarray(y, np.float64)).max(), name


def test_every_batch_norm_is_the_identity(case):
    *_, leaves = case
    stats = {k: v for k, v in leaves.items() if k.endswith(("mean", "var"))}
    assert len(stats) == 2 * len(fold_models.BEFORE | fold_models.AFTER)
    for name, v in leaves.items():
        if name.endswith("scale"):
            np.testing.assert_array_equal(v, jnp.ones_like(v))
        if name.endswith("var"):
            assert any(np.all(v + np.float32(eps) == 1) for eps in (1e-5, 1e-3)), name
    # Only where neither the layer nor the batch norm has a bias, the mean carries the rest.
    assert sum(bool(np.any(np.asarray(v) != 0)) for k, v in stats.items() if k.endswith("mean")) == 1


def test_the_structure_stays_and_the_old_values_too(case):
    _, _, old, new = case
    assert jax.tree.map(lambda v: (v.shape, v.dtype), old) == jax.tree.map(lambda v: (v.shape, v.dtype), new)
    scales = [v for k, v in old.items() if k.endswith("scale")]
    assert scales
    assert not any(np.any(np.asarray(v) == 1) for v in scales)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_half_kernels_are_rounded_once(dtype):
    layer = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(64, 64)), jnp.bfloat16)}
    params = {"scale": jnp.asarray(np.random.default_rng(1).uniform(0.5, 2, 64), dtype)}
    stats = {"mean": jnp.zeros(64, dtype), "var": jnp.asarray(np.random.default_rng(2).uniform(0.5, 2, 64), dtype)}
    a = np.asarray(params["scale"], np.float64) / np.sqrt(np.asarray(stats["var"], np.float64) + 1e-5)
    right = jnp.asarray(np.asarray(layer["kernel"], np.float64) * a, jnp.float32).astype(jnp.bfloat16)
    got = jaxbn.fold_into_previous(layer, params, stats)["kernel"]
    assert got.dtype == jnp.bfloat16
    assert np.mean(np.asarray(got == right)) > 0.999  # a tie may fall to the other side


def test_folding_can_be_compiled():
    layer, params, stats = (
        {"kernel": jnp.ones((2, 3))},
        {"scale": jnp.full(3, 2.0)},
        {"mean": jnp.ones(3), "var": jnp.ones(3)},
    )
    out = jax.jit(jaxbn.fold_into_previous)(layer, params, stats)
    np.testing.assert_allclose(out["kernel"], np.full((2, 3), 2.0), rtol=1e-5)
    np.testing.assert_allclose(out["bias"], np.full(3, -2.0), rtol=1e-5)


@pytest.mark.parametrize("transform", [nn.jit, nn.remat])
def test_parts_under_a_transform_fold_too_after_they_have_run(transform):
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            kernel = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
            x = nn.Dense(4, kernel_init=kernel)(x)
            return nn.relu(nn.BatchNorm(use_running_average=True)(x))

    model = transform(Block)()
    variables = fold_models.filled(model.init(jax.random.key(0), X))
    before = model.apply(variables, X)
    assert jaxbn.foldable_pairs(model, variables, X) == [("Dense_0", "BatchNorm_0")]
    folded = jaxbn.fold(model, variables, X)
    assert jax.tree.structure(folded) == jax.tree.structure(variables)  # the boxes of nn.Partitioned too
    np.testing.assert_allclose(model.apply(folded, X), before, atol=1e-5)


def test_an_epsilon_of_zero_is_as_good_as_any():
    layer, params = {"kernel": jnp.array([[2.0, 3.0]]), "bias": jnp.array([1.0, 1.0])}, {}
    stats = {"mean": jnp.array([1.0, 0.0]), "var": jnp.array([4.0, 9.0])}
    folded = jaxbn.fold_into_previous(layer, params, stats, epsilon=0)
    np.testing.assert_allclose(folded["kernel"], [[1.0, 1.0]], rtol=1e-6)
    np.testing.assert_allclose(folded["bias"], [0.0, 1 / 3], atol=1e-6)
    with pytest.raises(ValueError, match="not finite in float32"):
        jaxbn.fold_into_previous(layer, params, {**stats, "var": jnp.zeros(2)}, epsilon=0)
