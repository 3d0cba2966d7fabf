"""Stacks of layers, by scan, vmap and remat, are recalibrated layer by layer, or it is said what keeps them from it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
import jaxbn.linen
import jaxbn.nnx
from tests.recalibrate_models import DATA, assert_close, batches, population

CUT = batches([16, 32])
BOTH = ["batch_moments", "batch_stats"]
LINEN, NNX = [jaxbn.linen.BatchNorm, nn.BatchNorm], [jaxbn.nnx.BatchNorm, nnx.BatchNorm]
IDS = ["jaxbn", "flax"]


def normalized(x):
    return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)


def of_scan(cut, depth=2):
    """Statistics of each layer of x -> 2 tanh(norm(x)) in float64, where each batch is normalized by its own."""
    parts, layers = [np.asarray(x, np.float64) for x in cut], []
    for _ in range(depth):
        layers.append(population(parts))
        parts = [2 * np.tanh(normalized(x)) for x in parts]
    return {k: np.stack([layer[k] for layer in layers]) for k in ("mean", "var")}


class Scanned(nn.Module):
    layer: type
    axes: tuple = ("params", "batch_stats")
    wrap: str = ""

    @nn.compact
    def __call__(self, x, train):
        layer = nn.remat(self.layer) if self.wrap == "remat" else self.layer

        def body(module, x, _):
            return 2 * jnp.tanh(layer(use_running_average=not train, name="bn")(x)), None

        scan = nn.scan(body, dict.fromkeys(self.axes, 0), split_rngs={"params": True}, length=2)
        return scan(self, x, None)[0]


def recalibrated(model, mutable, *args):
    variables = model.init(jax.random.key(0), DATA, *args)
    forward = lambda v, x: model.apply(v, x, *args, mutable=mutable)  # noqa: E731
    return jaxbn.recalibrate(forward, variables, CUT)["batch_stats"]


@pytest.mark.parametrize("layer", LINEN, ids=IDS)
@pytest.mark.parametrize("wrap", ["", "remat"])
def test_a_linen_scan_needs_no_entry_of_its_own(layer, wrap):
    got = recalibrated(Scanned(layer, wrap=wrap), BOTH, True)
    assert_close(got, {"bn": of_scan(CUT)})
    assert set(got["bn"]) == {"mean", "var"}


def test_with_the_statistics_alone_mutable_it_is_the_same():
    assert_close(recalibrated(Scanned(nn.BatchNorm), ["batch_stats"], True), {"bn": of_scan(CUT)})


def test_an_entry_of_its_own_does_as_well():
    axes = ("params", "batch_stats", "batch_moments")
    assert_close(recalibrated(Scanned(jaxbn.linen.BatchNorm, axes), ["batch_moments"], True), {"bn": of_scan(CUT)})


@pytest.mark.parametrize("layer", LINEN, ids=IDS)
@pytest.mark.parametrize("train", [True, False])
def test_what_keeps_a_layer_from_reporting_is_said(layer, train):
    message = "bn.*inside Scanned .*`variable_axes` must have an entry 'batch_moments' like that of 'batch_stats'"
    with pytest.raises(ValueError, match=message):
        recalibrated(Scanned(layer), ["batch_moments"], train)


@pytest.mark.parametrize("train", [True, False])
def test_collections_that_may_not_be_written_are_named(train):
    model = nn.Sequential([nn.BatchNorm(not train)])
    variables = model.init(jax.random.key(0), DATA)
    with pytest.raises(ValueError, match=r"layers_0.*mutable=\['batch_moments', 'batch_stats'\]"):
        jaxbn.recalibrate(lambda v, x: model.apply(v, x, mutable=["other"]), variables, CUT)


def test_entries_that_do_not_fit_each_other_are_an_error():
    class Wrong(nn.Module):
        @nn.compact
        def __call__(self, x):
            axes = {"params": 0, "batch_stats": 0, "batch_moments": 1}
            scan = nn.scan(lambda m, x, _: (nn.BatchNorm(False, name="bn")(x), None), axes,
                           split_rngs={"params": True}, length=2)  # fmt: skip
            return scan(self, x, None)[0]

    with pytest.raises(ValueError, match=r"\[2, 3\] of bn, got \[3, 2\].*same entry in `variable_axes`"):
        recalibrated(Wrong(), BOTH)


@pytest.mark.parametrize("layer", LINEN, ids=IDS)
def test_an_ensemble_of_linen_is_recalibrated_member_by_member(layer):
    class Ensemble(nn.Module):
        @nn.compact
        def __call__(self, x):
            axes = {"params": 0, "batch_stats": 0}
            norm = nn.vmap(layer, axes, {"params": True}, in_axes=0, axis_size=2)
            return norm(use_running_average=False, name="bn")(jnp.stack([x, 1 + 3 * x]))

    members = [population(CUT), population([1 + 3 * np.float64(x) for x in CUT])]
    expected = {k: np.stack([m[k] for m in members]) for k in ("mean", "var")}
    assert_close(recalibrated(Ensemble(), BOTH), {"bn": expected})


@pytest.mark.parametrize("layer", LINEN, ids=IDS)
def test_lanes_of_linen_that_share_their_statistics_are_one_batch(layer):
    class Lanes(nn.Module):
        @nn.compact
        def __call__(self, x):
            axes = {"params": None, "batch_stats": None}
            norm = nn.vmap(layer, axes, {"params": False}, in_axes=0, axis_name="lane")
            return norm(use_running_average=False, axis_name="lane", name="bn")(x.reshape(4, -1, 3))

    model = Lanes()
    variables = {"params": {"bn": jaxbn.init(3)[0]}, "batch_stats": {"bn": jaxbn.init(3)[1]}}
    got = jaxbn.recalibrate(lambda v, x: model.apply(v, x, mutable=BOTH), variables, CUT)
    assert_close(got["batch_stats"], {"bn": population(CUT)})


def nnx_stack(layer):
    make = nnx.vmap(lambda rngs: layer(3, rngs=rngs), in_axes=0)
    return make(nnx.Rngs(0).split(2))


@pytest.mark.parametrize("layer", NNX, ids=IDS)
@pytest.mark.parametrize("wrap", [nnx.remat, lambda f: f], ids=["remat", "plain"])
def test_an_nnx_scan_is_recalibrated_layer_by_layer(layer, wrap):
    class Stack(nnx.Module):
        def __init__(self):
            self.bn = nnx_stack(layer)

        def __call__(self, x):
            body = wrap(lambda bn, x: 2 * jnp.tanh(bn(x)))
            return nnx.scan(body, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(self.bn, x)

    model = jaxbn.recalibrate(lambda model, x: model(x), Stack(), CUT)
    assert type(model.bn) is layer
    assert_close({"bn": {"mean": model.bn.mean[...], "var": model.bn.var[...]}}, {"bn": of_scan(CUT)})


@pytest.mark.parametrize("layer", NNX, ids=IDS)
def test_an_nnx_ensemble_is_recalibrated_member_by_member(layer):
    model = nnx_stack(layer)

    def forward(model, x):
        return nnx.vmap(lambda bn, x: bn(x), in_axes=(0, 0))(model, jnp.stack([x, 1 + 3 * x]))

    jaxbn.recalibrate(forward, model, CUT)
    members = [population(CUT), population([1 + 3 * np.float64(x) for x in CUT])]
    for i, expected in enumerate(members):
        assert_close({"bn": {"mean": model.mean[i], "var": model.var[i]}}, {"bn": expected})


def test_a_layer_that_nnx_modules_share_sees_what_enters_both():
    class Shared(nnx.Module):
        def __init__(self):
            self.a = jaxbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))
            self.b = self.a

        def __call__(self, x):
            return self.a(x) + self.b(5 * x)

    model = jaxbn.recalibrate(lambda model, x: model(x), Shared(), CUT)
    assert model.b is model.a
    expected = population([*CUT, *(5 * x for x in CUT)])
    assert_close({"a": {"mean": model.a.mean[...], "var": model.a.var[...]}}, {"a": expected})


@pytest.mark.parametrize("moments", [(), ("batch_moments",)], ids=["without an entry", "with one"])
def test_a_layer_in_the_carry_of_a_linen_scan_sees_what_enters_all_steps(moments):
    class Repeated(nn.Module):
        @nn.compact
        def __call__(self, x):
            def body(module, x, _):
                jaxbn.linen.BatchNorm(False, name="bn")(x)
                return 3 * x, None

            carry = ["batch_stats", *moments]
            scan = nn.scan(
                body, variable_broadcast="params", variable_carry=carry, split_rngs={"params": False}, length=2
            )
            return scan(self, x, None)[0]

    params, stats = jaxbn.init(3)
    variables = {"params": {"bn": params}, "batch_stats": {"bn": stats}}
    got = jaxbn.recalibrate(lambda v, x: Repeated().apply(v, x, mutable=BOTH), variables, CUT)
    assert_close(got["batch_stats"], {"bn": population([*CUT, *(3 * x for x in CUT)])})


def test_array_references_are_read_and_written():
    with nnx.var_defaults(ref=True):
        model = jaxbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    mean = model.mean
    jaxbn.recalibrate(lambda model, x: model(x), model, CUT)
    assert model.mean is mean
    assert_close({"bn": {"mean": model.mean[...], "var": model.var[...]}}, {"bn": population(CUT)})
