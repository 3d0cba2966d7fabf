"""Gradient accumulation: microbatches in a scan's carry, committed once, are the whole batch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxbn
import jaxbn.linen
import jaxbn.nnx
from jaxbn._core.merge import Accumulated, merge_into
from jaxbn._models import linen_scopes
from jaxbn._tools.layer_options import layer_options

MOMENTUM = 0.9
STEP = 100 + 3 * np.random.default_rng(0).normal(size=(4, 6, 3))  # [microbatches, examples, C]
MICROBATCHES = jnp.asarray(STEP, jnp.float32)


def assert_committed_whole(mean, var):
    """Running statistics after one step from 0 and 1, unbiased over all 24 examples."""
    whole = np.asarray(MICROBATCHES, np.float64).reshape(-1, 3)
    np.testing.assert_allclose(mean, (1 - MOMENTUM) * whole.mean(0), rtol=1e-5)
    np.testing.assert_allclose(var, MOMENTUM + (1 - MOMENTUM) * whole.var(0, ddof=1), rtol=1e-5)


def test_functional_microbatches_are_the_whole_batch():
    params, batch_stats = jaxbn.init(3)

    @jax.jit
    def step(batch_stats, microbatches):
        def body(moments, x):
            y, new = jaxbn.normalize_batch(params, batch_stats, x)
            return jaxbn.merge_moments(moments, new), y

        moments, _ = lax.scan(body, jaxbn.batch_moments(microbatches[0, :0]), microbatches)
        return jaxbn.update_batch_stats(batch_stats, moments, momentum=MOMENTUM, unbiased=True)

    new = step(batch_stats, MICROBATCHES)
    assert_committed_whole(new["mean"], new["var"])


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = jaxbn.linen.BatchNorm(use_running_average=False, name="first")(x)
        return nn.Sequential([jaxbn.linen.BatchNorm(use_running_average=False), nn.relu])(x)


def test_linen_microbatches_are_the_whole_batch():
    model = Network()
    variables = model.init(jax.random.key(0), MICROBATCHES[0])
    assert set(variables) == {"params", "batch_stats"}

    @jax.jit
    def step(variables, microbatches):
        def body(batch_moments, x):
            given = {**variables, "batch_moments": batch_moments}
            y, written = model.apply(given, x, mutable=["batch_stats", "batch_moments"])
            return written["batch_moments"], (y, written["batch_stats"])

        stats = variables["batch_stats"]
        batch_moments, (_, written) = lax.scan(body, jaxbn.zero_moments(stats), microbatches)
        return jaxbn.commit_moments(stats, batch_moments, momentum=MOMENTUM, unbiased=True), written

    new, meanwhile = step(variables, MICROBATCHES)
    np.testing.assert_array_equal(meanwhile["first"]["mean"], np.zeros((4, 3)))
    assert jax.tree.structure(new) == jax.tree.structure(variables["batch_stats"])
    assert_committed_whole(**new["first"])


def test_linen_moments_start_by_themselves_where_only_they_may_be_written():
    model = Network()
    variables = model.init(jax.random.key(0), MICROBATCHES[0])
    _, written = model.apply(variables, MICROBATCHES[0], mutable=["batch_moments"])
    np.testing.assert_array_equal(written["batch_moments"]["first"]["count"], [6.0, 6.0, 6.0])
    _, written = model.apply(variables, MICROBATCHES[0], mutable=True)
    assert "batch_moments" not in written
    assert (np.asarray(written["batch_stats"]["first"]["mean"]) != 0).all()


def test_nnx_microbatches_are_the_whole_batch():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.norm = jaxbn.nnx.BatchNorm(3, momentum=MOMENTUM, unbiased=True, rngs=rngs)

        def __call__(self, x):
            return self.norm(x)

    model = Model(nnx.Rngs(0))
    before = jax.tree.structure(nnx.state(model))

    @nnx.jit
    def step(model, microbatches):
        jaxbn.nnx.zero_moments(model)

        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
        def body(model, x):
            loss, grads = nnx.value_and_grad(lambda model: jnp.sum(model(x) ** 3))(model)
            return model, (loss, grads)

        body(model, microbatches)
        jaxbn.nnx.commit_moments(model)

    step(model, MICROBATCHES)
    assert_committed_whole(model.norm.mean[...], model.norm.var[...])
    assert jax.tree.structure(nnx.state(model)) == before
    jaxbn.nnx.zero_moments(model)
    jaxbn.nnx.commit_moments(model)  # a step without an example changes nothing
    assert_committed_whole(model.norm.mean[...], model.norm.var[...])


def test_stacked_layers_with_a_count_each_are_committed_each_by_itself():
    _, batch_stats = jaxbn.init(3, use_count=True)
    stacked = jax.tree.map(lambda v: jnp.stack([v, v]), batch_stats)
    moments = jaxbn.zero_moments({"bn": stacked})
    moments["bn"] = {"count": moments["bn"]["count"].at[0].set(4.0), "mean": jnp.ones((2, 3)), "var": jnp.ones((2, 3))}
    of_layers = {**stacked, "count": jnp.zeros(2, jnp.int32)}  # as older checkpoints have it
    old = jaxbn.commit_moments({"bn": of_layers}, moments, momentum=None)["bn"]
    np.testing.assert_array_equal(old["count"], [1, 0])
    new = jaxbn.commit_moments({"bn": stacked}, moments, momentum=None)["bn"]
    np.testing.assert_array_equal(old["mean"], new["mean"])
    np.testing.assert_array_equal(new["count"], [[1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(new["mean"], [[1, 1, 1], [0, 0, 0]])


def test_layers_stacked_twice_with_a_count_each_are_committed_each_by_itself():
    stats = {"mean": jnp.zeros((2, 2, 3)), "var": jnp.ones((2, 2, 3)), "count": jnp.array([[0, 1], [2, 3]], jnp.int32)}
    moments = {"count": jnp.full((2, 2, 3), 4.0).at[1, 0].set(0), "mean": stats["var"], "var": stats["var"]}
    new = jaxbn.commit_moments({"bn": stats}, {"bn": moments}, momentum=None)["bn"]
    np.testing.assert_array_equal(new["count"], [[1, 2], [2, 4]])
    np.testing.assert_allclose(new["mean"][..., 0], [[1, 1 / 2], [0, 1 / 4]], rtol=1e-6)
    with pytest.raises(ValueError, match=r"the mean, \[2, 2, 3\], or its first axes, got \[3\] at bn"):
        jaxbn.commit_moments({"bn": stats | {"count": jnp.zeros(3, jnp.int32)}}, {"bn": moments}, momentum=None)


def test_complex_moments_make_the_mean_complex():
    _, stats = jaxbn.init(3)
    x = STEP[0] + 2j * STEP[1]
    new = jaxbn.commit_moments(stats, jaxbn.batch_moments(x.astype(np.complex64))._asdict(), momentum=0.5)
    np.testing.assert_allclose(new["mean"], x.mean(0) / 2, rtol=1e-5)
    np.testing.assert_allclose(new["var"], (1 + x.var(0)) / 2, rtol=1e-5)


def test_other_statistics_and_absent_layers_stay():
    _, layer = jaxbn.init(2)
    tree = {"bn": layer, "frozen": layer, "spectral": {"sigma": jnp.ones(())}}
    moments = jaxbn.zero_moments(tree)
    assert set(moments) == {"bn", "frozen"}
    del moments["frozen"]
    moments["bn"] = jaxbn.batch_moments(jnp.array([[1.0, 2.0]]))._asdict()
    new = jaxbn.commit_moments(tree, moments, momentum=0.5)
    np.testing.assert_array_equal(new["bn"]["mean"], [0.5, 1.0])
    assert (new["frozen"], new["spectral"]) == (tree["frozen"], tree["spectral"])


def test_wider_microbatches_leave_the_shapes_and_dtypes_of_the_carry():
    _, batch_stats = jaxbn.init(3, param_dtype=jnp.complex64)
    old = Accumulated(**jaxbn.zero_moments(batch_stats))
    assert [v.dtype for v in old] == [jnp.float32, jnp.complex64, jnp.float32, jnp.float32, jnp.complex64]
    with jax.enable_x64(True):
        x = STEP[0] + 2j * STEP[1]
        new = merge_into(
            merge_into(old, jaxbn.batch_moments(jnp.asarray(x[:2]))), jaxbn.batch_moments(jnp.asarray(x[2:]))
        )
    assert [(v.shape, v.dtype) for v in new] == [(v.shape, v.dtype) for v in old]
    np.testing.assert_allclose(new.mean, x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(new.var, x.var(0), rtol=1e-5)


class OwnNorm(nnx.Module):
    """A batch norm of somebody else, out of functions, with statistics of its own."""

    momentum, unbiased = MOMENTUM, True

    def __init__(self):
        self.mean, self.var = nnx.BatchStat(jnp.zeros(3)), nnx.BatchStat(jnp.ones(3))

    def __call__(self, x):
        moments = jaxbn.batch_moments(x)
        if not jaxbn.report_moments(self, moments):
            stats = {"mean": self.mean[...], "var": self.var[...]}
            stats = jaxbn.update_batch_stats(stats, moments, momentum=self.momentum, unbiased=self.unbiased)
            self.mean[...], self.var[...] = stats["mean"], stats["var"]
        return jaxbn.normalize({}, x, moments.mean, moments.var)


def test_an_nnx_module_that_hands_its_moments_in_accumulates_too():
    model = nnx.Sequential(OwnNorm(), jaxbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    call = nnx.jit(lambda model, x: model(x))
    for _ in range(2):  # the second time as the first
        norm = model.layers[0]
        norm.mean[...], norm.var[...] = jnp.zeros(3), jnp.ones(3)
        jaxbn.nnx.zero_moments(model)
        for x in MICROBATCHES:
            call(model, x)
        jaxbn.nnx.commit_moments(model)
        assert_committed_whole(norm.mean[...], norm.var[...])
    before = norm.mean[...]
    call(model, MICROBATCHES[0])
    assert not np.array_equal(norm.mean[...], before)


def test_no_gradient_flows_through_moments_that_are_handed_in():
    graphdef, state = nnx.split(OwnNorm())

    def loss(x):
        model = nnx.merge(graphdef, state)
        jaxbn.nnx.zero_moments(model)
        model(x)
        return sum(jnp.sum(v[...]) for v in model.batch_moments.values())

    np.testing.assert_array_equal(jax.grad(loss)(MICROBATCHES[0]), np.zeros((6, 3)))


def test_a_module_of_ones_own_is_after_a_step_what_it_was():
    model = OwnNorm()
    before = nnx.graphdef(model)
    jaxbn.nnx.zero_moments(model)
    model(MICROBATCHES[0])
    jaxbn.nnx.commit_moments(model)
    assert nnx.graphdef(model) == before


def test_moments_that_are_handed_in_keep_the_dtypes_of_those_so_far():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        model = OwnNorm()
        for name in ("mean", "var"):
            getattr(model, name).set_value(getattr(model, name)[...].astype(jnp.float32))
        jaxbn.nnx.zero_moments(model)
        jaxbn.report_moments(model, jaxbn.batch_moments(jnp.asarray(MICROBATCHES[0], jnp.float64)))
        assert {v[...].dtype for v in model.batch_moments.values()} == {jnp.dtype(jnp.float32)}
        jaxbn.report_moments(model, jaxbn.batch_moments(jnp.asarray(MICROBATCHES[0], jnp.complex128)))
        assert jnp.iscomplexobj(model.batch_moments["mean"][...])


def test_array_references_hold_the_moments_of_an_nnx_module():
    with nnx.var_defaults(ref=True):
        layer = jaxbn.nnx.BatchNorm(3, momentum=MOMENTUM, unbiased=True, rngs=nnx.Rngs(0))
        jaxbn.nnx.zero_moments(layer)
    step = jax.jit(lambda layer, x: layer(x))
    for x in MICROBATCHES:
        step(layer, x)
    jaxbn.nnx.commit_moments(layer)
    assert_committed_whole(layer.mean[...], layer.var[...])


def test_zero_moments_can_be_donated():
    _, batch_stats = jaxbn.init(3)
    donated = jax.jit(lambda moments: jax.tree.map(lambda v: v + 1, moments), donate_argnums=0)
    new = donated(jaxbn.zero_moments({"a": batch_stats, "b": [batch_stats]}))
    np.testing.assert_array_equal(new["b"][0]["var"], np.ones(3))


def test_lists_and_tuples_hold_layers_as_dicts_do():
    _, layer = jaxbn.init(2)
    tree = {"blocks": [layer, {"sigma": jnp.ones(())}, ({"bn": layer}, layer)], "plain": [jnp.ones(2)]}
    moments = jaxbn.zero_moments(tree)
    zeros = {name: [0, 0] for name in Accumulated._fields}
    assert jax.tree.map(lambda v: v.tolist(), moments) == {"blocks": [zeros, {}, ({"bn": zeros}, zeros)]}
    moments["blocks"][2][0]["bn"] = jaxbn.batch_moments(jnp.array([[1.0, 2.0]]))
    new = jaxbn.commit_moments(tree, moments, momentum=0.5)
    assert jax.tree.structure(new) == jax.tree.structure(tree)
    np.testing.assert_array_equal(new["blocks"][2][0]["bn"]["mean"], [0.5, 1.0])
    np.testing.assert_array_equal(new["blocks"][0]["mean"], [0, 0])
    assert new["plain"][0] is tree["plain"][0]


def test_each_layer_has_the_momentum_that_its_path_says():
    _, layer = jaxbn.init(3)
    stats = {"encoder": [layer, layer], "head": layer}
    moments = jax.tree.map(lambda _: jaxbn.batch_moments(STEP[0])._asdict(), stats, is_leaf=lambda n: "mean" in n)
    new = jaxbn.commit_moments(
        stats, moments, momentum={"encoder/1": 0.9, "encoder/*": 0.5, "*": 0.0}, unbiased={"head": True, "*": False}
    )
    for layer, momentum, ddof in ((new["encoder"][0], 0.5, 0), (new["encoder"][1], 0.9, 0), (new["head"], 0.0, 1)):
        np.testing.assert_allclose(layer["mean"], (1 - momentum) * STEP[0].mean(0), rtol=1e-5)
        np.testing.assert_allclose(layer["var"], momentum + (1 - momentum) * STEP[0].var(0, ddof=ddof), rtol=1e-5)


def test_the_modules_of_linen_say_their_momentum():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = jaxbn.linen.BatchNorm(not train, momentum=0.5, unbiased=True, name="first")(x)
            x = nn.Dropout(0.5, deterministic=not train)(x)
            last = nn.remat(jaxbn.linen.BatchNorm)
            return last(not train, momentum=jaxbn.debiased(0.9), axis_name="devices", name="last")(x)

    model = Net()
    variables = model.init(jax.random.key(0), MICROBATCHES[0], False)

    def forward(variables, x):
        return model.apply(variables, x, True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})

    options = layer_options(forward, variables, MICROBATCHES[0])
    assert options["momentum"] == {"first": 0.5, "last": jaxbn.debiased(0.9)}
    assert options["unbiased"] == {"first": True, "last": False}
    moments = jax.tree.map(
        lambda _: jaxbn.batch_moments(STEP[0])._asdict(), variables["batch_stats"], is_leaf=lambda n: "mean" in n
    )
    new = jaxbn.commit_moments(variables["batch_stats"], moments, **options)
    np.testing.assert_allclose(new["first"]["var"], 0.5 + 0.5 * STEP[0].var(0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(new["last"]["mean"], STEP[0].mean(0), rtol=1e-5)
    with pytest.raises(ValueError, match="must call a batch norm"):
        layer_options(lambda v, x: x, variables, MICROBATCHES[0])


def test_a_rule_that_does_not_fit_the_model_is_an_error():
    _, layer = jaxbn.init(2)
    stats = {"a": layer, "b": layer}
    moments = jaxbn.zero_moments(stats)
    with pytest.raises(ValueError, match=r"`momentum` by path .*\['a', 'b'\].*got \['a'\]: nothing for \['b'\]"):
        jaxbn.commit_moments(stats, moments, momentum={"a": 0.9})
    with pytest.raises(ValueError, match=r"`unbiased` by path .* nowhere \['c'\]"):
        jaxbn.commit_moments(stats, moments, momentum=0.9, unbiased={"c": True, "*": False})


class Stack(nn.Module):
    """Two layers in one array, in training."""

    axes: tuple = ("params", "batch_stats", "batch_moments")

    @nn.compact
    def __call__(self, x):
        def body(module, x, _):
            return jaxbn.linen.BatchNorm(use_running_average=False, name="bn")(x) * 2, None

        return nn.scan(body, dict.fromkeys(self.axes, 0), split_rngs={"params": True}, length=2)(self, x, None)[0]


def test_a_stack_accumulates_layer_by_layer():
    variables = Stack().init(jax.random.key(0), MICROBATCHES[0])
    given = {**variables, "batch_moments": jaxbn.zero_moments(variables["batch_stats"])}
    for x in MICROBATCHES:
        _, written = Stack().apply(given, x, mutable=["batch_stats", "batch_moments"])
        given |= written
    new = jaxbn.commit_moments(variables["batch_stats"], given["batch_moments"], momentum=MOMENTUM, unbiased=True)
    assert_committed_whole(new["bn"]["mean"][0], new["bn"]["var"][0])
    np.testing.assert_allclose(new["bn"]["mean"][1], np.zeros(3), atol=1e-5)
    np.testing.assert_allclose(new["bn"]["var"][1], MOMENTUM + (1 - MOMENTUM) * 4 * np.ones(3) * 24 / 23, rtol=1e-4)


def test_a_stack_without_the_entry_can_be_told():
    class Telling(nn.Module):
        @nn.compact
        def __call__(self, x):
            linen_scopes.check_moments_reach(self)
            return x

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            scan = nn.scan(lambda m, x, _: (Telling(name="bn")(x), None), {"batch_stats": 0}, length=2)
            return scan(self, x, None)[0]

    x, given = MICROBATCHES[0], {"batch_moments": {"bn": jaxbn.zero_moments(jaxbn.init(3)[1])}}
    Outer().apply({}, x, mutable=["batch_stats", "batch_moments"])
    Outer().apply({}, x, mutable=["batch_stats"])
    Outer().apply({}, x)
    for variables, mutable in ((given, ["batch_stats", "batch_moments"]), ({}, ["batch_moments"])):
        with pytest.raises(ValueError, match=r"bn must be able .*`variable_axes` must have an entry 'batch_moments'"):
            Outer().apply(variables, x, mutable=mutable)


def test_a_batch_norm_in_a_stack_without_the_entry_tells():
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            def body(module, x, _):
                return jaxbn.linen.BatchNorm(use_running_average=False, name="bn")(x), None

            axes = {"params": 0, "batch_stats": 0}
            return nn.scan(body, axes, split_rngs={"params": True}, length=2)(self, x, None)[0]

    x = MICROBATCHES[0]
    variables = Outer().init(jax.random.key(0), x)
    given = {**variables, "batch_moments": jaxbn.zero_moments(variables["batch_stats"])}
    with pytest.raises(ValueError, match=r"bn must be able .*`variable_axes` must have an entry 'batch_moments'"):
        Outer().apply(given, x, mutable=["batch_stats", "batch_moments"])
    Outer().apply(variables, x, mutable=["batch_stats"])


class Norm(nn.Module):
    """Takes and returns what the body of a scan does."""

    @nn.compact
    def __call__(self, x, _=None):
        return jaxbn.linen.BatchNorm(use_running_average=False, name="bn")(x), None


class Loop(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        def body(module, carry):
            return carry[0] + 1, Norm(name="norm")(carry[1])[0]

        if self.is_initializing():
            return body(self, (0, x))[1], None
        loop = nn.while_loop(lambda _, carry: carry[0] < 2, body, self, (0, x), carry_variables=["batch_stats"])
        return loop[1], None


AXES = {"params": 0, "batch_stats": 0}
PASSED = ["params", "batch_stats"]
SPLIT = {"split_rngs": {"params": True}, "length": 2}
AS_STATS = "must have an entry 'batch_moments' like that of 'batch_stats'"
ENTRIES = {
    "scan": (nn.scan(Norm, AXES, **SPLIT), f"(nn.scan) that does not hand it on: `variable_axes` {AS_STATS}"),
    "vmap": (
        nn.vmap(Norm, AXES, split_rngs={"params": True}, in_axes=None, axis_size=2),
        f"(nn.vmap) that does not hand it on: `variable_axes` {AS_STATS}",
    ),
    "while_loop": (Loop, f"inside Loop (nn.while_loop) that does not hand it on: `carry_variables` {AS_STATS}"),
    "while_loop in a scan that hands it on": (
        nn.scan(Loop, {**AXES, "batch_moments": 0}, **SPLIT),
        f"inside Loop (nn.while_loop) that does not hand it on: `carry_variables` {AS_STATS}",
    ),
    "remat": (nn.remat(Norm, variables=PASSED), f"(nn.remat) that does not hand it on: `variables` {AS_STATS}"),
    "jit": (nn.jit(Norm, variables=PASSED), f"(nn.jit) that does not hand it on: `variables` {AS_STATS}"),
    "remat of a scan": (
        nn.remat(nn.scan(Norm, AXES, **SPLIT)),
        f"`variable_axes` {AS_STATS}, or `variables` {AS_STATS}",
    ),
    "map_variables": (
        nn.map_variables(Norm, "batch_moments", mutable=False),
        "(nn.map_variables) that does not hand it on: `mutable` must be True where 'batch_moments' is mapped",
    ),
}


def what_is_missing(inside):
    """The error of a step that accumulates, with this module inside another."""

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return inside(name="inside")(x, None)[0]

    x = MICROBATCHES[0]
    variables = Outer().init(jax.random.key(0), x)
    given = {**variables, "batch_moments": jaxbn.zero_moments(variables["batch_stats"])}
    with pytest.raises(ValueError, match="bn must be able to write 'batch_moments'") as error:
        Outer().apply(given, x, mutable=["batch_stats", "batch_moments"])
    return str(error.value).splitlines()[0]


@pytest.mark.parametrize("name", ENTRIES)
def test_the_entry_that_is_missing_is_that_of_the_transformation(name):
    inside, message = ENTRIES[name]
    assert what_is_missing(inside).endswith(message)


def test_where_flax_does_not_tell_the_transformation_both_entries_are_named(monkeypatch):
    monkeypatch.setattr(linen_scopes, "_between", lambda *_: [])
    message = what_is_missing(Loop)
    assert "(nn.scan, nn.vmap, nn.while_loop)" in message
    assert message.endswith(f"`variable_axes` {AS_STATS}, or `carry_variables` {AS_STATS}")


@pytest.mark.parametrize("layer", [jaxbn.linen.BatchNorm, nn.BatchNorm], ids=["jaxbn", "flax"])
def test_the_options_of_a_layer_with_groups_of_devices_that_are_not_there(layer):
    model = layer(False, momentum=0.5, axis_name="devices", axis_index_groups=[[0, 1], [2, 3]])
    variables = model.init(jax.random.key(0), MICROBATCHES[0])
    options = layer_options(lambda v, x: model.apply(v, x, mutable=["batch_stats"]), variables, MICROBATCHES[0])
    assert options["momentum"] == {".": 0.5}


def test_wrong_trees_say_what_is_wrong():
    _, layer = jaxbn.init(2)
    with pytest.raises(TypeError, match="`batch_stats` must be a dict"):
        jaxbn.zero_moments(jnp.ones(2))
    for name in layer:
        with pytest.raises(
            TypeError, match=rf"`batch_stats` must hold arrays of numbers, got key<\w+>\[\] at bn/{name}"
        ):
            jaxbn.zero_moments({"bn": {**layer, name: jax.random.key(0)}})
    with pytest.raises(TypeError, match=r"`batch_stats` must hold arrays of numbers, got key<\w+>\[2\] at mean"):
        jax.jit(lambda keys: jaxbn.zero_moments({**layer, "mean": keys}))(jax.random.split(jax.random.key(0)))
    with pytest.raises(ValueError, match=r"layers of `batch_stats` only, \['bn'\], got \['other'\]"):
        jaxbn.commit_moments({"bn": layer}, {"other": jaxbn.zero_moments(layer)}, momentum=0.5)
    with pytest.raises(ValueError, match="'count', 'mean' and 'var'"):
        jaxbn.commit_moments(layer, layer, momentum=0.5)
    with pytest.raises(ValueError, match="zero_moments"):
        jaxbn.nnx.commit_moments(jaxbn.nnx.BatchNorm(2, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="`model` must have a"):
        jaxbn.nnx.zero_moments(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
