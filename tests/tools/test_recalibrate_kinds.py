"""What people build around a batch norm: subclasses, modules of their own, dropout, a mesh that is elsewhere."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
import jaxbn.linen
import jaxbn.nnx
from jaxbn._models.report import report_moments
from tests.recalibrate_models import DATA, Linen, assert_close, batches, in_training, population

CUT = batches([16, 32])
BOTH = ["batch_moments", "batch_stats"]
LINEN, NNX = [jaxbn.linen.BatchNorm, nn.BatchNorm], [jaxbn.nnx.BatchNorm, nnx.BatchNorm]
IDS = ["jaxbn", "flax"]


def of_linen(model, *args, mutable=BOTH, cut=CUT, **options):
    variables = model.init(jax.random.key(0), cut[0], *args)
    return jaxbn.recalibrate(lambda v, x: model.apply(v, x, *args, mutable=mutable), variables, cut, **options)


def of_nnx(layer):
    return {"mean": layer.mean[...], "var": layer.var[...]}


# A subclass


def padded(x):
    return np.concatenate([x, np.full((5, 3), 999, np.float32)]), np.arange(len(x) + 5) >= len(x)


@pytest.mark.parametrize("layer", LINEN, ids=IDS)
def test_a_linen_subclass_that_makes_the_mask_itself(layer):
    class Padded(layer):
        @nn.compact
        def __call__(self, x, paddings, train):
            return super().__call__(x, not train, mask=~paddings[:, None])

    variables = {"params": jaxbn.init(3)[0], "batch_stats": jaxbn.init(3)[1]}
    for train in True, False:
        got = jaxbn.recalibrate(
            lambda v, batch, train=train: Padded().apply(v, *batch, train, mutable=BOTH), variables, map(padded, CUT)
        )
        assert_close({"a": got["batch_stats"]}, {"a": population(CUT)})


@pytest.mark.parametrize("layer", NNX, ids=IDS)
def test_an_nnx_subclass_that_makes_the_mask_itself(layer):
    class Padded(layer):
        def __call__(self, x, paddings):
            return super().__call__(x, mask=~paddings[:, None])

    model = Padded(3, rngs=nnx.Rngs(0))
    jaxbn.recalibrate(lambda model, batch: model(*batch), model, map(padded, CUT))
    assert type(model) is Padded
    assert_close({"a": of_nnx(model)}, {"a": population(CUT)})


@pytest.mark.parametrize("layer", NNX, ids=IDS)
def test_a_subclass_that_only_sets_defaults(layer):
    class Slow(layer):
        def __init__(self, features, rngs):
            super().__init__(features, momentum=0.999, rngs=rngs)

    model = jaxbn.recalibrate(lambda model, x: model(x), Slow(3, nnx.Rngs(0)), CUT)
    assert_close({"a": of_nnx(model)}, {"a": population(CUT)})


# Modules that decide by what may be written


class ByMutability(nn.Module):
    layer: type

    @nn.compact
    def __call__(self, x):
        evaluate = not self.is_mutable_collection("batch_stats")
        x = self.layer(use_running_average=evaluate, name="a")(x)
        x = jax.nn.relu(nn.Dense(4, use_bias=False, name="dense")(x))
        return self.layer(use_running_average=evaluate, name="b")(x)


@pytest.mark.parametrize("layer", LINEN, ids=IDS)
def test_a_model_that_trains_where_its_statistics_may_be_written(layer):
    model, variables = ByMutability(layer), Linen().variables()
    got = jaxbn.recalibrate(lambda v, x: model.apply(v, x, mutable=BOTH), variables, CUT)
    assert_close(got["batch_stats"], in_training(CUT))
    with pytest.warns(UserWarning, match=r"do not fit each other.*{'a': '.*mutable=\['batch_moments', 'batch_stats'\]"):
        jaxbn.recalibrate(lambda v, x: model.apply(v, x, mutable=["batch_moments"]), variables, CUT)


def test_statistics_that_fit_are_not_told():
    model = ByMutability(nn.BatchNorm)
    forward = lambda v, x: model.apply(v, x, mutable=["batch_moments"])  # noqa: E731
    settled = jaxbn.recalibrate(forward, Linen().variables(), CUT, sequential=True)
    assert_close(jaxbn.recalibrate(forward, settled, CUT)["batch_stats"], settled["batch_stats"])


class ByPosition(nn.Module):
    """Two layers in evaluation, told by position."""

    layer: type
    names_an_axis: bool = False

    @nn.compact
    def __call__(self, x):
        x = self.layer(name="b")(jnp.tanh(self.layer(name="a")(x, True)), True)
        return jax.lax.psum(x, "devices") if self.names_an_axis else x


class NnxByPosition(nnx.Module):
    """The same."""

    def __init__(self, layer):
        self.a, self.b = (layer(3, rngs=nnx.Rngs(0)) for _ in range(2))

    def __call__(self, x):
        return self.b(jnp.tanh(self.a(x, True)), True)


def two_layers(a, b):
    """Variables of `ByPosition` with these statistics."""
    params, _ = jaxbn.init(3)
    return {"params": {"a": params, "b": params}, "batch_stats": {"a": a, "b": b}}


@pytest.mark.parametrize("layer", [*LINEN, *NNX], ids=["jaxbn.linen", "flax.linen", "jaxbn.nnx", "flax.nnx"])
def test_a_layer_that_is_told_by_position_to_evaluate_is_known_to(layer):
    if issubclass(layer, nnx.Module):
        model, forward = NnxByPosition(layer), lambda model, x: model(x)
    else:
        model = two_layers(jaxbn.init(3)[1], jaxbn.init(3)[1])
        forward = lambda v, x: ByPosition(layer).apply(v, x, mutable=["batch_moments"])  # noqa: E731
    with pytest.warns(UserWarning, match="do not fit each other.*{'a': '"):
        jaxbn.recalibrate(forward, model, CUT)


def test_a_forward_that_runs_again_for_an_axis_is_told_of_once():
    """Only the last layer moves, and no other comes after it."""
    settled = jax.tree.map(jnp.float32, population([DATA]))
    forward = lambda v, x: ByPosition(nn.BatchNorm, True).apply(v, x, mutable=["batch_moments"])  # noqa: E731
    got = jaxbn.recalibrate(forward, two_layers(settled, jaxbn.init(3)[1]), CUT)["batch_stats"]
    assert np.all(np.asarray(got["b"]["var"]) < 0.9)


# A choice that is an array


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("mutable", [BOTH, ["batch_moments"], ["batch_stats"]], ids="+".join)
def test_a_choice_that_is_part_of_the_batch_in_linen(mutable, train):
    model, (params, stats) = jaxbn.linen.BatchNorm(), jaxbn.init(3)
    forward = lambda v, b: model.apply(v, b[0], use_running_average=b[1], mutable=mutable)  # noqa: E731
    got = jaxbn.recalibrate(forward, {"params": params, "batch_stats": stats}, [(x, np.array(not train)) for x in CUT])[
        "batch_stats"
    ]
    assert_close({"a": got}, {"a": population(CUT)})


@pytest.mark.parametrize("train", [True, False])
def test_a_choice_that_is_part_of_the_batch_in_nnx(train):
    model = jaxbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    jaxbn.recalibrate(lambda m, b: m(*b), model, [(x, np.array(not train)) for x in CUT])
    assert_close({"a": of_nnx(model)}, {"a": population(CUT)})


@pytest.mark.parametrize("layer", LINEN, ids=IDS)
def test_a_choice_that_is_an_array_with_a_known_value(layer):
    assert_close({"a": of_linen(layer(jnp.array(False)))["batch_stats"]}, {"a": population(CUT)})


def test_a_choice_that_is_an_array_needs_statistics_that_can_be_written():
    """Whichever it is: the layer writes the statistics that the program chooses."""
    with pytest.raises(ValueError, match=r"The batch norm layers_0 cannot train here, got collections that it may not"):
        of_linen(nn.Sequential([jaxbn.linen.BatchNorm(jnp.array(True))]), mutable=["other"])


# Modules that call functions


class Norm(nn.Module):
    """A norm of its own, which normalizes with a function."""

    reports: bool = True

    @nn.compact
    def __call__(self, x, train=True):
        params, start = jaxbn.init(x.shape[-1], use_scale=False, use_bias=False)
        stats = {k: self.variable("batch_stats", k, lambda v=v: v) for k, v in start.items()}
        old, moments = {k: v.value for k, v in stats.items()}, jaxbn.batch_moments(x)
        taken = self.reports and report_moments(self, moments)
        if train and not taken and self.is_mutable_collection("batch_stats"):
            for k, v in jaxbn.update_batch_stats(old, moments, momentum=0.5).items():
                stats[k].value = v
        mean, var = (moments.mean, moments.var) if train else (old["mean"], old["var"])
        return jaxbn.normalize(params, x, mean, var)


@pytest.mark.parametrize("train", [True, False])
def test_a_linen_module_that_hands_in_its_moments(train):
    got = of_linen(nn.Sequential([Norm(), Norm()]), train) if train else of_linen(Norm(), train)
    first = got["batch_stats"]["layers_0"] if train else got["batch_stats"]
    assert_close({"a": first}, {"a": population(CUT)})


def test_handing_in_works_inside_a_scan_and_in_accumulation():
    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x, axes):
            scan = nn.scan(lambda m, x, _: (Norm(name="bn")(x) + 1, None), dict.fromkeys(axes, 0), length=2)
            return scan(self, x, None)[0]

    got = of_linen(Scanned(), ("batch_stats",))["batch_stats"]["bn"]
    np.testing.assert_allclose(got["mean"], [np.float64(DATA).mean(0), [1, 1, 1]], rtol=1e-5, atol=1e-5)
    _, stats = jaxbn.init(3)
    given = {"batch_stats": stats, "batch_moments": jaxbn.zero_moments(stats)}
    for x in CUT:
        _, updates = Norm().apply(given, x, mutable=BOTH)
        assert updates["batch_stats"] == stats
        given |= updates
    new = jaxbn.commit_moments(stats, given["batch_moments"], momentum=0.0)
    assert_close({"a": new}, {"a": population(CUT)})


def test_an_ordinary_step_moves_the_statistics_of_such_a_module():
    _, stats = jaxbn.init(3)
    _, updates = Norm().apply({"batch_stats": stats}, DATA, mutable=["batch_stats"])
    assert set(updates["batch_stats"]) == {"mean", "var"}
    np.testing.assert_allclose(updates["batch_stats"]["mean"], np.float64(DATA).mean(0) / 2, rtol=1e-5, atol=1e-5)


def test_a_linen_module_that_does_not_hand_them_in_is_named():
    with pytest.raises(ValueError, match=r"got none of layers_0: the Norm .*jaxbn.report_moments\(self, moments\)"):
        of_linen(nn.Sequential([Norm(reports=False), nn.BatchNorm(False)]))


class NnxNorm(nnx.Module):
    def __init__(self, reports=True):
        self.mean, self.var = nnx.BatchStat(jnp.zeros(3)), nnx.BatchStat(jnp.ones(3))
        self.reports = reports

    def __call__(self, x):
        moments = jaxbn.batch_moments(x)
        if self.reports:
            report_moments(self, moments)
        return jaxbn.normalize({}, x, moments.mean, moments.var)


def test_an_nnx_module_that_hands_in_its_moments_or_is_named():
    forward = lambda model, x: model(x)  # noqa: E731
    assert_close({"a": of_nnx(jaxbn.recalibrate(forward, NnxNorm(), CUT))}, {"a": population(CUT)})
    with pytest.raises(ValueError, match=r"got none of \.: the NnxNorm .*jaxbn.report_moments"):
        jaxbn.recalibrate(forward, NnxNorm(reports=False), CUT)
    assert report_moments(NnxNorm(), jaxbn.batch_moments(DATA)) is False


def test_handing_in_something_else_is_an_error():
    with pytest.raises(TypeError, match=r"`moments` must be jaxbn.Moments\(count, mean, var\), got dict"):
        report_moments(NnxNorm(), jaxbn.init(3)[1])
    with pytest.raises(TypeError, match=r"must be a flax.linen.Module or a flax.nnx.Module, got int"):
        report_moments(3, jaxbn.batch_moments(DATA))


# State that goes on


@pytest.mark.parametrize("ref", [False, True], ids=["values", "references"])
@pytest.mark.parametrize("layer", NNX, ids=IDS)
def test_dropout_goes_on_from_batch_to_batch_and_the_model_is_as_it_was(layer, ref):
    class Dropped(nnx.Module):
        def __init__(self):
            self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=1))
            self.norm = layer(1, rngs=nnx.Rngs(0))
            self.seen = nnx.Variable(jnp.zeros(()))

        def __call__(self, x):
            self.seen[...] += 1
            return self.norm(self.drop(x))

    with nnx.var_defaults(ref=ref):
        model, twin = Dropped(), Dropped()
    ones = [np.ones((4, 1), np.float32)] * 40
    expected = [np.asarray(twin.drop(x)) for x in ones]
    jaxbn.recalibrate(lambda model, x: model(x), model, ones)
    assert_close({"a": of_nnx(model.norm)}, {"a": population(expected)})
    assert (model.seen[...], model.drop.rngs.count[...]) == (0, 0)
    assert twin.drop.rngs.count[...] == 40


# Another mesh


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("layer", [*LINEN, *NNX], ids=["jaxbn.linen", "flax.linen", "jaxbn.nnx", "flax.nnx"])
def test_a_model_that_names_the_devices_of_its_training_on_one_device(layer, train):
    if issubclass(layer, nnx.Module):
        model = layer(3, axis_name="devices", rngs=nnx.Rngs(0))
        got = of_nnx(jaxbn.recalibrate(lambda m, x: m(x, use_running_average=not train), model, CUT))
    else:
        got = of_linen(layer(axis_name="devices"), not train)["batch_stats"]
    assert_close({"a": got}, {"a": population(CUT)})


def test_groups_of_devices_that_are_not_there_do_not_matter_in_evaluation():
    model = jaxbn.linen.BatchNorm(True, axis_name="devices", axis_index_groups=((0, 1), (2, 3)))
    assert_close({"a": of_linen(model)["batch_stats"]}, {"a": population(CUT)})


GROUPS = ((0, 1), (2, 3))


@pytest.mark.parametrize("name", ["devices", ("hosts", "devices")], ids=str)
@pytest.mark.parametrize("layer", [*LINEN, *NNX], ids=["jaxbn.linen", "flax.linen", "jaxbn.nnx", "flax.nnx"])
def test_the_whole_batch_is_one_group_of_devices_that_are_not_there(layer, name):
    if issubclass(layer, nnx.Module):
        model = layer(3, axis_name=name, axis_index_groups=GROUPS, rngs=nnx.Rngs(0))
        got = of_nnx(jaxbn.recalibrate(lambda m, x: m(x), model, CUT))
        assert model.axis_index_groups == GROUPS
    else:
        got = of_linen(layer(False, axis_name=name, axis_index_groups=GROUPS))["batch_stats"]
    assert_close({"a": got}, {"a": population(CUT)})


def test_the_whole_batch_is_one_group_for_a_function_too():
    def recalibrated(groups):
        def forward(v, x):
            options = {"axis_name": "devices", "axis_index_groups": groups}
            return jaxbn.normalize_batch(v["params"], v["batch_stats"], x, **options)

        params, stats = jaxbn.init(3)
        return jaxbn.recalibrate(forward, {"params": params, "batch_stats": stats}, CUT)["batch_stats"]

    assert_close({"a": recalibrated(GROUPS)}, {"a": population(CUT)})
    with pytest.raises(TypeError, match="`axis_index_groups` must be a sequence of sequences of integers, got 3"):
        recalibrated(3)


@pytest.mark.parametrize(("size", "groups", "stands_in"), [(1, GROUPS, "another"), (4, ((0,),), "devices")])
def test_groups_of_an_axis_that_is_there_are_checked(size, groups, stands_in):
    """Also while another axis, or one of the same name around it, stands in for one that is not."""

    def forward(_, x):
        parts = jax.lax.psum(x, stands_in).reshape(size, -1, 3)
        options = {"axis_name": "devices", "axis_index_groups": groups}
        of_part = jax.vmap(lambda x: jaxbn.batch_moments(x, **options), axis_name="devices")(parts)
        return None, jax.tree.map(lambda v: v[0], of_part)

    params, stats = jaxbn.init(3)
    with pytest.raises(ValueError, match=f"must be a partition of the {size} indices of "):
        jaxbn.collect_moments(forward, {"params": params, "batch_stats": stats}, DATA)


def test_an_axis_that_another_layer_needs_is_there_too():
    class Synced(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(False, axis_name="a", name="bn")(x)
            if self.is_initializing():
                return x
            return jax.lax.pmean(jax.lax.psum(x, "b"), "a")

    assert_close(of_linen(Synced())["batch_stats"], {"bn": population(CUT)})
