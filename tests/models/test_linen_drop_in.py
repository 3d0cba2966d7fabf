"""`jaxbn.linen.BatchNorm` in the place of `flax.linen.BatchNorm`: the same fields, trees, numbers and gradients."""

import dataclasses
import inspect

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import initializers

import jaxbn.linen

FLAX, OURS = nn.BatchNorm, jaxbn.linen.BatchNorm
RANDOM = {"scale_init": initializers.normal(1.0), "bias_init": initializers.normal(1.0)}
CASES = {
    # name: (fields, shape of x, dtype of x, mask, tolerance)
    "defaults": ({}, (6, 3), "float32", None, 1e-5),
    "no scale": ({"use_scale": False, "momentum": 0.5}, (6, 3), "float32", None, 1e-5),
    "no bias": ({"use_bias": False, "epsilon": 0.1, "axis": 1}, (6, 3, 2), "float32", None, 1e-5),
    "several feature axes": ({"axis": (1, -1), **RANDOM}, (6, 3, 2, 4), "float32", None, 1e-5),
    "two passes": ({"use_fast_variance": False, **RANDOM}, (6, 5, 3), "float32", None, 1e-5),
    "half output": ({"dtype": jnp.bfloat16, **RANDOM}, (6, 3), "float32", None, 2e-2),
    "half input": ({**RANDOM}, (6, 3), "bfloat16", None, 1e-5),
    "half input and parameters": ({"param_dtype": jnp.bfloat16, **RANDOM}, (6, 3), "bfloat16", None, 2e-2),
    "half statistics": (
        {"param_dtype": jnp.float16, "force_float32_reductions": False, **RANDOM}, (6, 3), "float16", None, 1e-2,
    ),
    "mask of a channel": ({**RANDOM}, (6, 4, 3), "float32", (np.arange(72) % 5 > 0).reshape(6, 4, 3), 1e-5),
    "complex": ({"dtype": jnp.complex64}, (6, 3), "complex64", None, 1e-5),
}  # fmt: skip
OURS_AFTER = ["virtual_batch_size", "unbiased", "activation", "renorm", "num_domains", "affine_per_domain"]


def data(shape, dtype):
    """Two batches, with an offset and a scale."""
    rng = np.random.default_rng(0)
    x = 0.5 + 2 * rng.normal(size=(2, *shape))
    return (x + 1j * rng.normal(size=x.shape) if dtype == "complex64" else x).astype(dtype)


def train(module, xs, mask):
    """Initial variables; outputs, statistics, gradients and evaluation of each of two training steps."""
    variables = jax.jit(lambda key, x: module.init(key, x, use_running_average=False))(jax.random.key(7), xs[0])
    weights = jnp.cos(jnp.arange(xs[0].size, dtype=jnp.float32)).reshape(xs[0].shape)

    @jax.jit
    def step(params, batch_stats, x):
        def loss(params, x):
            given = {"params": params, "batch_stats": batch_stats}
            y, updates = module.apply(given, x, False, mask=mask, mutable=["batch_stats"])
            return jnp.sum(weights * y.real.astype(jnp.float32) ** 2), (y, updates["batch_stats"])

        (_, (y, new)), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)
        return y, new, grads, module.apply({"params": params, "batch_stats": new}, x, True)

    params, batch_stats = variables.get("params", {}), variables["batch_stats"]
    if jnp.iscomplexobj(xs):  # Flax's running mean is real until its first update
        batch_stats = batch_stats | {"mean": batch_stats["mean"].astype(xs.dtype)}
    history = []
    for x in xs:
        history.append(step(params, batch_stats, x))
        batch_stats = history[-1][1]
    return variables, history


def assert_same(actual, expected, tolerance):
    """The same tree, shapes and dtypes, and the values to `tolerance` or one rounding of a half-precision dtype."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), e in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        name = jax.tree_util.keystr(path)
        assert (a.shape, a.dtype) == (e.shape, e.dtype), name
        half = jnp.issubdtype(a.dtype, jnp.floating) and jnp.finfo(a.dtype).bits < 32
        near = max(tolerance, float(jnp.finfo(a.dtype).eps)) if half else tolerance
        wide = np.complex128 if jnp.iscomplexobj(a) else np.float64
        a, e = (np.asarray(v).astype(wide) for v in (a, e))
        np.testing.assert_allclose(a, e, rtol=near, atol=near * max(1, np.abs(e).max()), err_msg=name)


@pytest.mark.filterwarnings("ignore:.*running statistics below float32")
@pytest.mark.parametrize("name", CASES)
def test_everything_is_as_with_flax(name):
    fields, shape, dtype, mask, tolerance = CASES[name]
    xs = jnp.asarray(data(shape, dtype))
    ours_first, ours = train(OURS(**fields), xs, mask)
    with jax.numpy_dtype_promotion("standard"):
        flax_first, flax = train(FLAX(**fields), xs, mask)
    if dtype == "complex64":
        flax_first["batch_stats"]["mean"] = flax_first["batch_stats"]["mean"].astype(dtype)
    assert_same(ours_first, flax_first, 0)
    assert_same(ours, flax, tolerance)


def test_fields_defaults_and_their_order_are_those_of_flax_and_ours_come_after():
    def fields(cls):
        return [(f.name, f.default) for f in dataclasses.fields(cls) if f.name not in ("parent", "name")]

    assert fields(OURS)[: len(fields(FLAX))] == fields(FLAX)
    assert [name for name, _ in fields(OURS)[len(fields(FLAX)) :]] == OURS_AFTER
    ours, flax = (list(inspect.signature(cls.__call__).parameters) for cls in (OURS, FLAX))
    assert ours == [*flax, "residual", "domain"]


def test_a_network_has_the_paths_and_initial_values_of_flax():
    def network(norm):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x):
                x = nn.Dense(3)(x)
                x = norm(use_running_average=False, **RANDOM)(x)
                return nn.Dense(2)(norm(use_running_average=False, **RANDOM, name="last")(x))

        return Block()

    x = jnp.asarray(data((6, 3), "float32")[0])
    ours, flax = (jax.jit(network(norm).init)(jax.random.key(3), x) for norm in (OURS, FLAX))
    assert_same(ours, flax, 0)


def test_a_checkpoint_of_flax_loads_and_evaluates_to_the_same_numbers():
    xs = jnp.asarray(data((6, 3), "float32"))
    flax_module, module = (norm(use_running_average=False, momentum=0.5, **RANDOM) for norm in (FLAX, OURS))
    variables = flax_module.init(jax.random.key(0), xs[0])
    _, updates = flax_module.apply(variables, xs[0], mutable=["batch_stats"])
    saved = flax.serialization.to_bytes({**variables, **updates})
    restored = flax.serialization.from_bytes(module.init(jax.random.key(1), xs[0]), saved)
    expected = FLAX(use_running_average=True).apply({**variables, **updates}, xs[1])
    actual = OURS(use_running_average=True).apply(restored, xs[1])
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)
    _, updates = module.apply(restored, xs[1], mutable=["batch_stats"])
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize("force", [True, False])
def test_parameters_of_another_dtype_than_asked_for_are_used_as_in_flax(force):
    fields = {"param_dtype": jnp.bfloat16, "force_float32_reductions": force, "use_running_average": True}
    variables = {
        "params": {"scale": jnp.float32([1.001, 2, 3]), "bias": jnp.float32([0, 1.001, 2])},
        "batch_stats": {"mean": jnp.float32([1, 2, 3]), "var": jnp.float32([1, 2, 3])},
    }
    x = jnp.asarray(data((6, 3), "float32")[0]).astype(jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):
        ours, flax = (norm(**fields).apply(variables, x) for norm in (OURS, FLAX))
    assert ours.dtype == flax.dtype
    tolerance = 1e-5 if force else 2e-2  # Flax rounds on its way
    np.testing.assert_allclose(np.float32(ours), np.float32(flax), rtol=tolerance, atol=tolerance)


def test_use_running_average_is_merged_as_in_flax():
    x = jnp.ones((2, 3))
    for norm in (OURS, FLAX):
        with pytest.raises(ValueError, match="use_running_average"):
            norm().init(jax.random.key(0), x)
        with pytest.raises(ValueError, match="use_running_average"):
            norm(use_running_average=True).init(jax.random.key(0), x, use_running_average=True)
