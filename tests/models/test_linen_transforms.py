"""`nn.scan`, `nn.remat`, `nn.vmap`, `nn.jit`, partitioning and mapped axes: what Flax's module does, ours does."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn.linen

NORMS = {"flax": nn.BatchNorm, "ours": jaxbn.linen.BatchNorm}
X = jnp.asarray(3 + np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)


class Layer(nn.Module):
    """A layer to transform, with an unused argument and output for nn.scan."""

    norm: type
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, _):
        fields = {"momentum": 0.5, "axis_name": self.axis_name, "scale_init": nn.initializers.normal(1.0)}
        return jnp.tanh(self.norm(use_running_average=False, **fields, name="bn")(x)), None


TRANSFORMS = {
    "scan": lambda norm: nn.scan(
        Layer,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        length=3,
    )(norm),
    "scan, shared": lambda norm: nn.scan(
        Layer,
        variable_broadcast="params",
        variable_carry="batch_stats",
        split_rngs={"params": False},
        length=3,
    )(norm),
    "remat and jit": lambda norm: nn.jit(nn.remat(Layer))(norm),
    "vmap": lambda norm: nn.vmap(
        Layer,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        in_axes=None,
        axis_size=3,
    )(norm),
    "vmap over the batch": lambda norm: nn.vmap(
        Layer,
        variable_axes={"params": None, "batch_stats": None},
        split_rngs={"params": False},
        in_axes=(0, None),
        axis_name="batch",
    )(norm, axis_name="batch"),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_transformed_layer_is_as_with_flax(transform):
    x = X.reshape(2, 3, 4) if transform == "vmap over the batch" else X
    results = {}
    for name, norm in NORMS.items():
        model = TRANSFORMS[transform](norm)
        # Flax cannot initialize what nn.scan carries.
        first = Layer(norm) if transform == "scan, shared" else model
        variables = jax.jit(lambda key, first=first: first.init(key, x, None))(jax.random.key(1))

        @jax.jit
        def step(variables, model=model):
            def loss(params):
                (y, _), updates = model.apply({**variables, "params": params}, x, None, mutable=["batch_stats"])
                return jnp.sum(y**3), (y, updates)

            return jax.grad(loss, has_aux=True)(variables["params"])

        results[name] = variables, step(variables)
    assert jax.tree.structure(results["ours"]) == jax.tree.structure(results["flax"])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5), results["ours"], results["flax"])


def test_partitioned_parameters_keep_their_boxes():
    boxed = nn.with_partitioning(nn.initializers.normal(1.0), ("model",))
    logical = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("features",))
    models = [norm(use_running_average=False, scale_init=boxed, bias_init=logical) for norm in NORMS.values()]
    flax, ours = (model.init(jax.random.key(0), X) for model in models)
    assert jax.tree.structure(ours) == jax.tree.structure(flax)  # the boxes are nodes of the tree
    assert nn.get_partition_spec(ours) == nn.get_partition_spec(flax)
    (a, b), (c, d) = (model.apply(v, X, mutable=["batch_stats"]) for model, v in zip(models, (flax, ours), strict=True))
    np.testing.assert_allclose(c, a, rtol=1e-5, atol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), d, b)


def test_a_scanned_layer_accumulates_moments():
    model = nn.scan(
        Layer,
        variable_axes={"params": 0, "batch_stats": 0, "batch_moments": 0},
        split_rngs={"params": True},
        length=3,
    )(jaxbn.linen.BatchNorm)
    variables = jax.jit(lambda key: model.init(key, X, None))(jax.random.key(1))

    @jax.jit
    def both_ways(variables):
        batch_stats = variables["batch_stats"]
        given = {**variables, "batch_moments": jaxbn.zero_moments(batch_stats)}
        _, written = model.apply(given, X, None, mutable=["batch_moments"])
        _, updated = model.apply(variables, X, None, mutable=["batch_stats"])
        return jaxbn.commit_moments(batch_stats, written["batch_moments"], momentum=0.5), updated["batch_stats"]

    # The inputs of the upper layers differ in their last bits, and some of their means are near 0.
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9), *both_ways(variables))


def test_initialization_needs_no_mapped_axis_and_no_full_batch():
    model = jaxbn.linen.BatchNorm(axis_name="batch", axis_index_groups=[[0, 1]], use_running_average=False)
    variables = model.init(jax.random.key(0), X[:1])
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], jnp.zeros(4))
    model = jaxbn.linen.BatchNorm(virtual_batch_size=4, use_running_average=False)
    assert jax.tree.structure(model.init(jax.random.key(0), X[:1])) == jax.tree.structure(variables)
