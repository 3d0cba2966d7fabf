"""Each option goes through each front end to the core: the layer gives what the function gives, and not the default."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
import jaxbn.linen
import jaxbn.nnx

RNG = np.random.default_rng(0)
X = (np.sort(RNG.normal(size=(8, 3, 4)), 0) * 3 + 20).astype(np.float32)
RESIDUAL = RNG.normal(size=X.shape).astype(np.float32)
MASK = (np.arange(8) % 3 > 0).reshape(8, 1, 1)
MEMBERS = 4

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "axis": {"axis": 1},
    "two axes": {"axis": (2, 1)},
    "momentum": {"momentum": 0.3},
    "cumulative": {"momentum": None},
    "schedule": {"momentum": jaxbn.debiased(0.5)},
    "epsilon": {"epsilon": 10.0},
    "dtype": {"dtype": jnp.bfloat16},
    "virtual batches": {"virtual_batch_size": 2},
    "renorm": {"renorm": jaxbn.Renorm(1.5, 0.5)},
    "unbiased": {"unbiased": True},
    "activation": {"activation": "tanh"},
    "mask": {"mask": MASK},
    "weights": {"mask": MASK * np.float32(0.3)},
    "residual": {"residual": RESIDUAL},
    "two passes": {"use_fast_variance": False},
    "axis name": {"axis_name": "d"},
    "groups": {"axis_name": "d", "axis_index_groups": ((0, 3), (1, 2))},
}
SAME = {"default", "two passes", "axis name"}
"""Those that change no value: the one reads x twice, the other is the whole batch again."""
IN_EVALUATION = {"axis", "two axes", "epsilon", "dtype", "activation", "residual"}
OF_CALL = ("mask", "residual")


def features(options):
    axes = options.get("axis", -1)
    return tuple(X.shape[a] for a in sorted(axes)) if isinstance(axes, tuple) else (X.shape[axes],)


def state(options):
    """Parameters and statistics that are not 0 and 1, with a count where it is needed."""
    shape = features(options)
    rng = np.random.default_rng(1)
    params = {name: rng.normal(size=shape).astype(np.float32) for name in ("scale", "bias")}
    stats = {"mean": rng.normal(size=shape).astype(np.float32), "var": np.exp(rng.normal(size=shape), dtype=np.float32)}
    momentum = options.get("momentum", 0.99)
    if momentum is None or callable(momentum):
        stats["count"] = np.full(shape, 2, np.int32)
    return params, stats


def over_members(layer, options):
    """The layer of each member of an axis, where one is named: all give the whole batch and a state each."""
    if "axis_name" not in options:
        return layer
    return lambda *args: jax.vmap(layer, in_axes=(None, None, 0), axis_name="d")(*args)


def core(options, running, params, stats, x):
    return jaxbn.batch_norm(params, stats, x, use_running_average=running, **options)


def linen(options, running, params, stats, x):
    fields = {k: v for k, v in options.items() if k not in OF_CALL}
    call = {k: v for k, v in options.items() if k in OF_CALL}
    module = jaxbn.linen.BatchNorm(use_running_average=running, **fields)
    y, new = module.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"], **call)
    return y, new["batch_stats"]


def of_nnx(options, running, params, stats, x):
    fields = {k: v for k, v in options.items() if k not in OF_CALL}
    call = {k: v for k, v in options.items() if k in OF_CALL}
    module = jaxbn.nnx.BatchNorm(features(options), use_running_average=running, rngs=nnx.Rngs(0), **fields)
    for name, value in {**params, **stats}.items():
        getattr(module, name).set_value(jnp.asarray(value))
    y = module(x, **call)
    return y, {name: getattr(module, name)[...] for name in stats}


@functools.cache
def run(front, name, running):
    options = OPTIONS[name]
    params, stats = state(options)
    x = X.reshape(MEMBERS, 2, *X.shape[1:]) if "axis_name" in options else X

    def layer(params, stats, x):
        return front(options, running, params, stats, x)

    return jax.tree.map(np.asarray, jax.jit(over_members(layer, options))(params, stats, x))


@pytest.mark.parametrize("front", [linen, of_nnx])
@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_reaches_the_core_in_training(name, front):
    got, want = run(front, name, False), run(core, name, False)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), got, want)
    assert got[0].dtype == want[0].dtype


@pytest.mark.parametrize("front", [linen, of_nnx])
@pytest.mark.parametrize("name", sorted(IN_EVALUATION))
def test_an_option_reaches_the_core_in_evaluation(name, front):
    got, want = run(front, name, True), run(core, name, True)
    np.testing.assert_allclose(got[0].astype(np.float32), want[0].astype(np.float32), rtol=1e-5, atol=1e-5)
    assert got[0].dtype == want[0].dtype


@pytest.mark.parametrize("name", sorted(set(OPTIONS) - SAME - {"axis", "two axes"}))
def test_an_option_is_not_the_default(name):
    got, want = run(core, name, False), run(core, "axis name" if name == "groups" else "default", False)
    y, z = (v[0].reshape(X.shape).astype(np.float32) for v in (got, want))
    same_stats = all(
        np.allclose(np.asarray(got[1][k]).reshape(-1, 4)[0], np.asarray(want[1][k]).reshape(-1, 4)[0], rtol=1e-4)
        for k in ("mean", "var")
    )
    assert got[0].dtype != want[0].dtype or not np.allclose(y, z, rtol=1e-3, atol=1e-3) or not same_stats


@pytest.mark.parametrize("front", ["linen", "nnx"])
@pytest.mark.parametrize("use_scale", [True, False])
@pytest.mark.parametrize("use_bias", [True, False])
def test_a_layer_has_the_parameters_that_are_asked_for(front, use_scale, use_bias):
    if front == "linen":
        module = jaxbn.linen.BatchNorm(use_running_average=False, use_scale=use_scale, use_bias=use_bias)
        params = module.init(jax.random.key(0), X).get("params", {})
    else:
        layer = jaxbn.nnx.BatchNorm(4, use_scale=use_scale, use_bias=use_bias, rngs=nnx.Rngs(0))
        params = {name: v for name, v in (("scale", layer.scale), ("bias", layer.bias)) if v is not None}
    assert set(params) == {name for name, used in (("scale", use_scale), ("bias", use_bias)) if used}


def test_the_modules_hand_the_exact_mean_on():
    """It changes no value that a small batch could show, so the programs are compared."""

    def programs(fast):
        linen = jaxbn.linen.BatchNorm(False, use_fast_variance=fast)
        variables = linen.init(jax.random.key(0), X)
        graphdef, moving = nnx.split(jaxbn.nnx.BatchNorm(4, use_fast_variance=fast, rngs=nnx.Rngs(0)))
        yield jax.make_jaxpr(lambda v, x: linen.apply(v, x, mutable=["batch_stats"]))(variables, X)
        yield jax.make_jaxpr(lambda s, x: nnx.merge(graphdef, s)(x))(moving, X)

    for fast, exact in zip(programs(True), programs(False), strict=True):
        assert str(fast) != str(exact)
