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

RNG = np.random.default_rng(0)
DATA = (RNG.normal(size=(48, 3)) * [1, 10, 0.1] + [0, 100, -0.3]).astype(np.float32)
KERNEL = RNG.normal(size=(3, 4)).astype(np.float32)
CUTS = {"uneven": [16, 8, 24], "small": [8] * 6}


def batches(sizes, order=1):
    return np.split(DATA, np.cumsum(sizes)[:-1])[::order]


class Linen(nn.Module):
    layer: type = jaxbn.linen.BatchNorm
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train, mask=None):
        x = self.layer(name="a", axis_name=self.axis_name)(x, use_running_average=not train, mask=mask)
        x = jax.nn.relu(nn.Dense(4, use_bias=False, name="dense")(x))
        return self.layer(name="b", axis_name=self.axis_name)(x, use_running_average=not train, mask=mask)

    def variables(self):
        stats = {"a": jaxbn.init(3), "b": jaxbn.init(4)}
        params = {k: v[0] for k, v in stats.items()} | {"dense": {"kernel": jnp.asarray(KERNEL)}}
        return {"params": params, "batch_stats": {k: v[1] for k, v in stats.items()}}


class Nnx(nnx.Module):
    def __init__(self, layer):
        rngs = nnx.Rngs(0)
        self.a, self.b = layer(3, rngs=rngs), layer(4, rngs=rngs)
        self.kernel = nnx.Param(jnp.asarray(KERNEL))

    def __call__(self, x, train):
        x = self.a(x, use_running_average=not train)
        return self.b(jax.nn.relu(x @ self.kernel[...]), use_running_average=not train)


def linen(layer):
    def recalibrated(cut, train, **options):
        model = Linen(layer)

        def forward(variables, x):
            return model.apply(variables, x, train, mutable=["batch_moments", "batch_stats"])

        return jaxbn.recalibrate(forward, model.variables(), cut, **options)["batch_stats"]

    return recalibrated


def in_nnx(layer):
    def recalibrated(cut, train, **options):
        model = jaxbn.recalibrate(lambda model, x: model(x, train), Nnx(layer), cut, **options)
        return {n: {k: getattr(getattr(model, n), k)[...] for k in ("mean", "var")} for n in "ab"}

    return recalibrated


def functional(cut, train, **options):
    def layer(variables, name, x):
        params, stats = variables["params"][name], variables["batch_stats"][name]
        if train:
            return jaxbn.normalize_batch(params, stats, x)
        return jaxbn.batch_norm(params, stats, x, use_running_average=True)[0], jaxbn.batch_moments(x)

    def forward(variables, x):
        x, a = layer(variables, "a", x)
        x, b = layer(variables, "b", jax.nn.relu(x @ variables["params"]["dense"]["kernel"]))
        return x, {"a": a, "b": b}

    return jaxbn.recalibrate(forward, Linen().variables(), cut, **options)["batch_stats"]


FORMS = {
    "functional": functional,
    "jaxbn.linen": linen(jaxbn.linen.BatchNorm),
    "flax.linen": linen(nn.BatchNorm),
    "jaxbn.nnx": in_nnx(jaxbn.nnx.BatchNorm),
    "flax.nnx": in_nnx(nnx.BatchNorm),
}


def population(parts):
    x = np.concatenate([np.asarray(p, np.float64) for p in parts])
    return {"mean": x.mean(0), "var": x.var(0)}


def hidden(x, mean, var):
    return np.maximum((x - mean) / np.sqrt(var + 1e-5) @ KERNEL.astype(np.float64), 0)


def in_training(cut):
    """Each batch is normalized with its own statistics."""
    cut = [np.asarray(x, np.float64) for x in cut]
    return {"a": population(cut), "b": population([hidden(x, x.mean(0), x.var(0)) for x in cut])}


def in_sequence():
    """All batches are normalized with the population statistics of the layer below."""
    a = population([DATA])
    return {"a": a, "b": population([hidden(DATA.astype(np.float64), a["mean"], a["var"])])}


def assert_close(got, expected):
    for name, stats in expected.items():
        for key, value in stats.items():
            np.testing.assert_allclose(got[name][key], value, rtol=1e-5, atol=1e-5, err_msg=f"{name} {key}")


@pytest.mark.parametrize("form", FORMS)
def test_each_layer_gets_the_population_statistics_of_training(form):
    cut = batches([24, 24])
    assert_close(FORMS[form](iter(cut), True), in_training(cut))


@pytest.mark.parametrize("form", FORMS)
def test_in_sequence_each_layer_gets_those_of_evaluation(form):
    assert_close(FORMS[form](batches([24, 24]), False, sequential=True), in_sequence())


@pytest.mark.parametrize(("sizes", "order"), [("uneven", 1), ("uneven", -1), ("small", 1)])
def test_sizes_and_order_do_not_matter(sizes, order):
    cut = batches(CUTS[sizes], order)
    assert_close(functional(cut, True), in_training(cut))


def test_many_batches_far_from_zero_lose_nothing():
    x = RNG.normal(1000, 1, size=(500, 4, 2)).astype(np.float32)
    params, stats = jaxbn.init(2)
    variables = {"params": params, "batch_stats": stats}
    got = jaxbn.recalibrate(lambda v, x: (None, jaxbn.batch_moments(x)), variables, x)["batch_stats"]
    flat = x.reshape(-1, 2).astype(np.float64)
    np.testing.assert_allclose(got["mean"], flat.mean(0), rtol=1e-6)
    np.testing.assert_allclose(got["var"], flat.var(0), rtol=1e-5)


@pytest.mark.parametrize("split", ["jit", "shard_map"])
def test_devices_do_not_matter(split):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    model = Linen(axis_name=None if split == "jit" else "d")

    def forward(variables, x):
        return model.apply(variables, x, True, mutable=["batch_moments"])

    if split == "shard_map":
        forward = jax.shard_map(forward, mesh=mesh, in_specs=(P(), P("d")), out_specs=(P("d"), P()))
    cut = batches([24, 24])
    sharded = [jax.device_put(x, NamedSharding(mesh, P("d"))) for x in cut]
    variables = jax.device_put(model.variables(), NamedSharding(mesh, P()))
    new = jaxbn.recalibrate(forward, variables, sharded)
    assert_close(new["batch_stats"], in_training(cut))
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
    assert new["batch_stats"][0]["count"] == 3
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
