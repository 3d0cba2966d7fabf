"""Recalibration gives the population statistics of float64, whoever collects them and however the data are cut."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxbn
import jaxbn.linen
import jaxbn.nnx
from tests.recalibrate_models import (
    CUTS,
    DATA,
    FORMS,
    Linen,
    assert_close,
    batches,
    functional,
    in_sequence,
    in_training,
    population,
)


@pytest.mark.parametrize("form", FORMS)
def test_each_layer_gets_the_population_statistics_of_training(form):
    cut = batches([24, 24])
    assert_close(FORMS[form](iter(cut), True), in_training(cut))


@pytest.mark.parametrize("form", FORMS)
def test_in_sequence_each_layer_gets_those_of_evaluation(form):
    assert_close(FORMS[form](batches([24, 24]), False, sequential=True), in_sequence())


@pytest.mark.parametrize("form", FORMS)
def test_without_jit_it_is_the_same(form):
    with jax.disable_jit():
        assert_close(FORMS[form](batches([24, 24]), True), in_training(batches([24, 24])))


def test_in_sequence_one_more_layer_is_settled_in_each_pass():
    params, stats = jaxbn.init(3)
    cut = batches([24, 24])

    def forward(variables, x):
        moments = []
        for s in variables["batch_stats"]:
            moments.append(jaxbn.batch_moments(x))
            x = 2 * jnp.tanh(jaxbn.normalize(params, x, s["mean"], s["var"]))
        return x, moments

    new = jaxbn.recalibrate(forward, {"params": [{}] * 3, "batch_stats": [stats] * 3}, cut, sequential=True)
    entering = DATA.astype(np.float64)
    for got in new["batch_stats"]:
        expected = population([entering])
        assert_close({"a": got}, {"a": expected})
        entering = 2 * np.tanh((entering - expected["mean"]) / np.sqrt(expected["var"] + 1e-5))


@pytest.mark.parametrize(("sizes", "order"), [("uneven", -1), ("small", 1)])
def test_sizes_and_order_do_not_matter(sizes, order):
    cut = batches(CUTS[sizes], order)
    assert_close(functional(cut, True), in_training(cut))


def test_many_batches_far_from_zero_lose_nothing():
    x = np.random.default_rng(1).normal(1000, 1, size=(500, 4, 2)).astype(np.float32)
    params, stats = jaxbn.init(2)
    variables = {"params": params, "batch_stats": stats}
    got = jaxbn.recalibrate(lambda v, x: (None, jaxbn.batch_moments(x)), variables, x)["batch_stats"]
    flat = x.reshape(-1, 2).astype(np.float64)
    np.testing.assert_allclose(got["mean"], flat.mean(0), rtol=1e-6)
    np.testing.assert_allclose(got["var"], flat.var(0), rtol=1e-5)


@pytest.mark.parametrize("split", ["jit", "shard_map", "groups"])
def test_devices_do_not_matter(split):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    groups = (tuple(range(4)), tuple(range(4, 8))) if split == "groups" else None
    model = Linen(axis_name=None if split == "jit" else "d", groups=groups)

    def forward(variables, x):
        return model.apply(variables, x, True, mutable=["batch_moments"])

    if split != "jit":
        forward = jax.shard_map(forward, mesh=mesh, in_specs=(P(), P("d")), out_specs=(P("d"), P()))
    cut = batches([24, 24])
    sharded = [jax.device_put(x, NamedSharding(mesh, P("d"))) for x in cut]
    variables = jax.device_put(model.variables(), NamedSharding(mesh, P()))
    new = jaxbn.recalibrate(forward, variables, sharded)
    # Groups are batches of their own to what they normalize, and one population to recalibration.
    normalized = cut if groups is None else [half for x in cut for half in np.split(x, 2)]
    assert_close(new["batch_stats"], in_training(normalized))
    assert jax.tree.map(lambda v: v.sharding, new) == jax.tree.map(lambda v: v.sharding, variables)


def test_variables_on_no_device_in_particular_stay_so():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jax.device_put(DATA, NamedSharding(mesh, P("d")))
    got = functional([x], True)
    assert not any(v.committed for v in jax.tree.leaves(got))


def test_masked_examples_do_not_count():
    model = Linen()

    def forward(variables, batch):
        return model.apply(variables, batch["x"], True, mask=batch["mask"], mutable=["batch_moments"])

    def masked(x):
        padded = np.concatenate([x, np.full((4, 3), np.nan, np.float32)])
        return {"x": padded, "mask": np.arange(len(padded))[:, None] < len(x)}

    cut = batches([24, 24])
    got = jaxbn.recalibrate(forward, model.variables(), [*map(masked, cut), masked(DATA[:0])])
    assert_close(got["batch_stats"], in_training(cut))


def test_a_layer_that_is_called_twice_gets_the_statistics_of_both():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = jaxbn.linen.BatchNorm(use_running_average=True)
            return layer(x) + layer(x[:, ::-1] * 2)

    model = Twice()
    variables = model.init(jax.random.key(0), DATA)
    got = jaxbn.recalibrate(lambda v, x: model.apply(v, x, mutable=["batch_moments"]), variables, [DATA])
    assert_close(got["batch_stats"], {"BatchNorm_0": population([DATA, DATA[:, ::-1] * 2])})


@pytest.mark.parametrize("layer", [nn.BatchNorm, jaxbn.linen.BatchNorm, nnx.BatchNorm, jaxbn.nnx.BatchNorm])
def test_features_may_be_on_another_axis(layer):
    x, expected = DATA.reshape(-1, 4, 3).swapaxes(1, 2), {"a": population([DATA])}
    if issubclass(layer, nnx.Module):
        model = layer(3, axis=1, rngs=nnx.Rngs(0))
        jaxbn.recalibrate(lambda model, x: model(x), model, [x])
        assert_close({"a": {"mean": model.mean[...], "var": model.var[...]}}, expected)
    else:
        model = layer(use_running_average=False, axis=1)
        variables = model.init(jax.random.key(0), x)
        forward = lambda v, x: model.apply(v, x, mutable=["batch_moments", "batch_stats"])  # noqa: E731
        assert_close({"a": jaxbn.recalibrate(forward, variables, [x])["batch_stats"]}, expected)


def test_moments_that_the_variables_hold_already_do_not_count():
    model = jaxbn.linen.BatchNorm(use_running_average=False)
    variables = model.init(jax.random.key(0), DATA)
    forward = lambda v, x: model.apply(v, x, mutable=["batch_moments"])  # noqa: E731
    _, moments = forward(variables, 5 * DATA)
    got = jaxbn.recalibrate(forward, {**variables, **moments}, [DATA])
    assert_close({"a": got["batch_stats"]}, {"a": population([DATA])})


def test_complex_data_make_the_mean_complex():
    params, stats = jaxbn.init(3)
    x = DATA + 1j * DATA[:, ::-1]
    forward = lambda v, x: (None, jaxbn.batch_moments(x))  # noqa: E731
    new = jaxbn.recalibrate(forward, {"params": params, "batch_stats": stats}, [x])["batch_stats"]
    np.testing.assert_allclose(new["mean"], x.astype(complex).mean(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(new["var"], x.astype(complex).var(0), rtol=1e-5)


def test_layers_in_scan_and_remat_are_recalibrated_each():
    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            def body(module, x, _):
                return nn.remat(jaxbn.linen.BatchNorm)(use_running_average=not train, name="bn")(x) + 1, None

            scan = nn.scan(body, variable_axes={"params": 0, "batch_stats": 0, "batch_moments": 0}, length=2,
                           split_rngs={"params": True})  # fmt: skip
            return scan(self, x, None)[0]

    model = Stack()
    variables = model.init(jax.random.key(0), DATA, train=True)
    for train in (True, False):
        got = jaxbn.recalibrate(
            lambda v, x, train=train: model.apply(v, x, train, mutable=["batch_moments"]),
            variables, [DATA[:24], DATA[24:]], sequential=not train,
        )["batch_stats"]["bn"]  # fmt: skip
        np.testing.assert_allclose(got["mean"][0], DATA.mean(0, np.float64), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(got["mean"][1], np.ones(3), rtol=1e-5)


@pytest.mark.parametrize("layer", [nnx.BatchNorm, jaxbn.nnx.BatchNorm], ids=["flax", "jaxbn"])
def test_layers_in_nnx_scan_and_jit_are_recalibrated_each(layer):
    class Stack(nnx.Module):
        def __init__(self):
            make = nnx.vmap(lambda rngs: layer(3, use_running_average=True, rngs=rngs), in_axes=0)
            self.bn = make(nnx.Rngs(0).split(2))

        def __call__(self, x):
            return nnx.scan(lambda bn, x: bn(x) + 1, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(self.bn, x)

    forward = nnx.jit(lambda model, x: model(x))
    model = Stack()
    forward(model, DATA[:24])
    jaxbn.recalibrate(forward, model, [DATA[:24], DATA[24:]], sequential=True)
    assert type(model.bn) is layer
    np.testing.assert_allclose(model.bn.mean[0], DATA.mean(0, np.float64), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.bn.mean[1], np.ones(3), rtol=1e-5)
    np.testing.assert_allclose(model.bn.var[1], np.ones(3), rtol=2e-3)


def test_parameters_dtypes_and_the_tree_stay_and_the_count_is_that_of_the_batches():
    params, stats = jaxbn.init(3, use_count=True)
    variables = {"params": [params], "batch_stats": [stats], "other": {"x": jnp.ones(2)}}

    def forward(variables, x):
        return None, [jaxbn.batch_moments(x.astype(jnp.bfloat16))]

    new = jaxbn.recalibrate(forward, variables, batches(CUTS["uneven"]), unbiased=True)
    assert jax.tree.map(lambda v: v.dtype, new) == jax.tree.map(lambda v: v.dtype, variables)
    assert new["params"][0]["scale"] is params["scale"]
    np.testing.assert_array_equal(new["batch_stats"][0]["count"], [3, 3, 3])
    expected = DATA.astype(jnp.bfloat16).astype(np.float64).var(0, ddof=1)
    np.testing.assert_allclose(new["batch_stats"][0]["var"], expected, rtol=1e-5)
    assert variables["batch_stats"][0] is stats


def test_sick_statistics_become_healthy():
    params, stats = jaxbn.init(3)
    sick = {"mean": stats["mean"] * jnp.nan, "var": stats["var"] * jnp.inf}
    got = jaxbn.recalibrate(
        lambda v, x: (None, jaxbn.batch_moments(x)), {"params": params, "batch_stats": sick}, [DATA]
    )
    assert_close({"a": got["batch_stats"]}, {"a": population([DATA])})
