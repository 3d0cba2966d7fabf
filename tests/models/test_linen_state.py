"""The state of the linen module: what it keeps, what it counts, and what it says when it is missing."""

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbn.linen import BatchNorm

X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 2)), jnp.float32)  # three batches


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        return BatchNorm(use_running_average=False, name="bn")(x)


def test_missing_statistics_are_an_error_that_names_collection_and_path():
    variables = Model().init(jax.random.key(0), X[0])
    for mutable in (False, ["batch_stats"], True):
        with pytest.raises(ValueError, match=r"'batch_stats' must hold \['mean', 'var'\] of the module /bn"):
            Model().apply({"params": variables["params"]}, X[0], mutable=mutable)
    with pytest.raises(ValueError, match=r"must hold \['count'\] of the module /"):
        BatchNorm(use_running_average=False, momentum=None).apply(
            {"params": {}, "batch_stats": variables["batch_stats"]["bn"]}, X[0], mutable=True
        )


def test_an_update_of_immutable_statistics_is_the_error_of_flax():
    with pytest.raises(flax.errors.ModifyScopeVariableError, match="batch_stats"):
        Model().apply(Model().init(jax.random.key(0), X[0]), X[0])


@pytest.mark.parametrize("momentum", [None, lambda count: 1 - 1 / (1 + count)])
def test_an_average_that_counts_has_its_count_in_the_state(momentum):
    model = BatchNorm(use_running_average=False, momentum=momentum)
    variables = model.init(jax.random.key(0), X[0])
    assert not variables["batch_stats"]["count"].any()
    step = jax.jit(lambda variables, x: variables | model.apply(variables, x, mutable=["batch_stats"])[1])
    for x in X:
        variables = step(variables, x)
    stats = variables["batch_stats"]
    assert (stats["count"].tolist(), stats["count"].dtype) == ([3] * stats["mean"].size, jnp.int32)
    np.testing.assert_allclose(stats["mean"], np.asarray(X, np.float64).mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], np.asarray(X, np.float64).var(1).mean(0), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*running statistics below float32")
@pytest.mark.parametrize(
    ("x_dtype", "param_dtype", "kept"),
    [("float16", "float32", "float32"), ("bfloat16", "bfloat16", "bfloat16"), ("float32", "float16", "float16")],
)
def test_force_float32_reductions_decides_the_dtype_of_the_state_which_steps_keep(x_dtype, param_dtype, kept):
    model = BatchNorm(use_running_average=False, param_dtype=param_dtype, force_float32_reductions=kept == "float32")
    variables = model.init(jax.random.key(0), X[0].astype(x_dtype))

    def body(batch_stats, x):
        y, updates = model.apply({**variables, "batch_stats": batch_stats}, x, mutable=["batch_stats"])
        return updates["batch_stats"], y

    batch_stats, _ = jax.lax.scan(body, variables["batch_stats"], X.astype(x_dtype))
    assert {v.dtype.name for v in batch_stats.values()} == {kept}


def test_a_real_running_mean_of_flax_becomes_complex_with_the_first_complex_batch():
    x = jnp.array([[1 + 2j], [3 + 6j]], jnp.complex64)
    model = BatchNorm(use_running_average=False, momentum=0.0, dtype=jnp.complex64)
    variables = model.init(jax.random.key(0), x)
    real = {"mean": jnp.zeros(1), "var": jnp.ones(1)}
    for batch_stats in (variables["batch_stats"], real):
        _, updates = model.apply({**variables, "batch_stats": batch_stats}, x, mutable=["batch_stats"])
        np.testing.assert_allclose(updates["batch_stats"]["mean"], [2 + 4j], rtol=1e-6)
        np.testing.assert_allclose(updates["batch_stats"]["var"], [5.0], rtol=1e-6)


def test_initialization_leaves_the_statistics_and_evaluation_the_state():
    model = BatchNorm()
    y, variables = model.init_with_output(jax.random.key(0), X[0], use_running_average=False)
    np.testing.assert_allclose(y.mean(0), [0, 0], atol=1e-6)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], [0, 0])
    y, updates = model.apply(variables, X[0], use_running_average=True, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])


def test_our_fields_reach_the_core():
    model = BatchNorm(use_running_average=False, virtual_batch_size=2, unbiased=True, activation="relu", momentum=0.0)
    variables = model.init(jax.random.key(0), X[0])
    y, updates = model.apply(variables, X[0], residual=jnp.ones_like(X[0]), mutable=["batch_stats"])
    chunks = np.asarray(X[0], np.float64).reshape(2, 2, 2)
    normal = (chunks - chunks.mean(1, keepdims=True)) / np.sqrt(chunks.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, np.maximum(normal.reshape(4, 2) + 1, 0), atol=1e-4)
    np.testing.assert_allclose(updates["batch_stats"]["var"], np.asarray(X[0], np.float64).var(0, ddof=1), rtol=1e-5)


BAD = {
    "rank": ({}, jnp.ones(()), {}, ValueError, "`x` must have at least one axis"),
    "integers": ({}, jnp.ones((4, 2), int), {}, TypeError, "`x` must be floating or complex"),
    "axis": ({"axis": 2}, X[0], {}, ValueError, r"`axis` must be in \[-2, 2\)"),
    "doubled axis": ({"axis": (1, -1)}, X[0], {}, ValueError, "`axis` must name each axis once"),
    "features": (
        {},
        jnp.ones((4, 3)),
        {},
        ValueError,
        r"`batch_stats\['mean'\]` must have the feature shape of x, \[3\]",
    ),
    "mask": ({}, X[0], {"mask": jnp.ones((3, 1), bool)}, ValueError, "`mask` must broadcast to x"),
    "epsilon": ({"epsilon": -1.0}, X[0], {}, ValueError, "`epsilon` must be finite and not negative"),
    "momentum": ({"momentum": 1.5}, X[0], {}, ValueError, r"must be in \[0, 1\]"),
    "axis name": ({"axis_name": "batch"}, X[0], {}, ValueError, "`axis_name` must be bound"),
    "groups": ({"axis_index_groups": [[0]]}, X[0], {}, ValueError, "`axis_index_groups` needs an `axis_name`"),
    "virtual": ({"virtual_batch_size": 3}, X[0], {}, ValueError, "`virtual_batch_size` must divide"),
    "residual": ({}, X[0], {"residual": X[0, :1]}, ValueError, "`residual` must be of the shape"),
    "activation": ({"activation": "swish2"}, X[0], {}, ValueError, "`activation` must be one of"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    fields, x, arguments, error, message = BAD[name]
    variables = {"params": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}}
    variables["batch_stats"] = {"mean": jnp.zeros(2), "var": jnp.ones(2)}
    with pytest.raises(error, match=message):
        BatchNorm(use_running_average=False, **fields).apply(variables, x, **arguments, mutable=["batch_stats"])
