"""What cannot be folded says why, and what was given stays as it was."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict
from fold_models import filled
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxbn
import jaxbn.linen
import jaxbn.nnx

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 5, 3)), jnp.float32)


class Net(nn.Module):
    """Batch norms of every kind that does not fold."""

    train: bool = False

    @nn.compact
    def __call__(self, x):
        def norm(name, **fields):
            return jaxbn.linen.BatchNorm(not self.train, name=name, **fields)

        behind_activation = norm("relu_norm")(nn.relu(nn.Conv(4, (3, 3), name="relu_conv")(x)))
        y = nn.Conv(4, (3, 3), name="shared_output")(x)
        residual = norm("residual_norm")(y) + y
        twice = nn.Dense(4, name="twice")
        called_twice = norm("twice_norm")(twice(x)) + twice(x[::-1])
        before_padding = nn.Conv(4, (3, 3), name="padded")(norm("padded_norm")(x[..., :2]))
        other_axis = norm("axis_norm", axis=1)(nn.Conv(4, (3, 3), name="axis_conv")(x))
        before_no_bias = nn.Dense(4, use_bias=False, name="no_bias")(norm("no_bias_norm")(x[..., :2]))
        own_relu = nn.Dense(4, name="after_relu")(norm("own_relu_norm", activation="relu")(x[..., :2]))
        return behind_activation + residual + called_twice + before_padding + other_axis + before_no_bias + own_relu


@pytest.fixture(scope="module")
def variables():
    return filled(jax.eval_shape(Net().init, jax.random.key(0), X))


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("relu_conv", "relu_norm"), "the input of relu_norm is not the output of relu_conv, it is made by `relu`"),
        (("shared_output", "residual_norm"), "the output of shared_output is read by others than residual_norm too"),
        (("twice", "twice_norm"), "twice: it is called 2 times"),
        (("padded_norm", "padded"), "padded: it pads its input with zeros \\(padding 'SAME'\\)"),
        (("axis_conv", "axis_norm"), "axis_norm: its feature axis is 1 and not the last"),
        (("no_bias_norm", "no_bias"), "no_bias: it has no bias to take up the mean"),
        (("own_relu_norm", "after_relu"), "own_relu_norm: its own activation or residual stands between"),
        (("relu_conv", "padded"), "one of them must be a batch norm, the other a convolution or dense layer"),
        (("relu_conv", "relu_morm"), "'relu_morm' is no convolution, dense layer or batch norm that the model calls"),
    ],
)
def test_a_pair_that_cannot_be_folded_says_why(variables, pair, message):
    copy = jax.tree.map(jnp.copy, variables)
    with pytest.raises(ValueError, match=f"{message}.*nothing was changed"):
        jaxbn.fold(Net(), variables, X, pairs=[pair])
    jax.tree.map(np.testing.assert_array_equal, variables, copy)


def test_a_model_without_a_pair_lists_every_reason(variables):
    assert jaxbn.foldable_pairs(Net(), variables, X) == []
    with pytest.raises(ValueError, match="no batch norm that can be folded") as error:
        jaxbn.fold(Net(), variables, X)
    assert all(name in str(error.value) for name in variables["batch_stats"])


def test_training_arguments_are_refused(variables):
    with pytest.raises(ValueError, match="must be called with use_running_average=True, got False"):
        jaxbn.fold(Net(train=True), variables, X)


class Chosen(nn.Module):
    """The first evaluates, the second as the argument says, a flag or an array."""

    layer: type

    @nn.compact
    def __call__(self, x, evaluate):
        x = nn.relu(self.layer(True, name="a")(nn.Dense(4, name="first")(x)))
        return self.layer(name="b")(nn.Dense(4, name="second")(x), evaluate)


class NnxChosen(nnx.Module):
    """The same."""

    def __init__(self, layer):
        rngs = nnx.Rngs(0)
        self.first, self.second = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)
        self.a, self.b = (layer(4, rngs=rngs) for _ in range(2))

    def __call__(self, x, evaluate):
        return self.b(self.second(nnx.relu(self.a(self.first(x), True))), evaluate)


UNDECIDED = r"the program decides .*must be called with use_running_average=True, got an array, bool\[\]"


def chosen(layer):
    """A model and its variables, if it is one of linen."""
    if issubclass(layer, nnx.Module):
        return (NnxChosen(layer),)
    return Chosen(layer), filled(jax.eval_shape(lambda: Chosen(layer).init(jax.random.key(0), X, True)))


@pytest.mark.parametrize("layer", [jaxbn.linen.BatchNorm, jaxbn.nnx.BatchNorm], ids=["linen", "nnx"])
@pytest.mark.parametrize("choice", [jnp.array(True), np.array(False)], ids=repr)
def test_a_choice_that_is_an_array_is_an_obstacle(layer, choice):
    mutable = {} if issubclass(layer, nnx.Module) else {"mutable": ["batch_stats"]}
    pairs = jaxbn.foldable_pairs(*chosen(layer), X, choice, **mutable)
    assert pairs == [("first", "a")]
    assert re.search(UNDECIDED, pairs.left["b"])
    with pytest.raises(ValueError, match=f"b: {UNDECIDED}"):
        jaxbn.fold(*chosen(layer), X, choice, pairs=[("second", "b")], **mutable)


@pytest.mark.parametrize("layer", [jaxbn.linen.BatchNorm, nn.BatchNorm, nnx.BatchNorm], ids=lambda c: c.__module__)
@pytest.mark.parametrize("choice", [jnp.array(True), np.array(False)], ids=repr)
def test_a_choice_that_is_an_array_where_the_model_cannot_run_with_one(layer, choice):
    """Flax's layers need to know it, and linen's would write their statistics."""
    with pytest.raises(ValueError, match=f"Folding is about evaluation: b: {UNDECIDED}"):
        jaxbn.foldable_pairs(*chosen(layer), X, choice)


def test_weights_that_are_normalized_themselves_are_refused():
    model = nn.Sequential([nn.WeightNorm(nn.Dense(3)), nn.BatchNorm(use_running_average=True)])
    variables = filled(model.init(jax.random.key(0), X))
    with pytest.raises(ValueError, match="weights are computed from others"):
        jaxbn.fold(model, variables, X)


def test_weights_that_nnx_shares_are_refused():
    rngs = nnx.Rngs(0)
    tied, twin = nnx.Linear(3, 3, rngs=rngs), nnx.Linear(3, 3, rngs=rngs)
    twin.kernel = tied.kernel
    model = nnx.Sequential(tied, nnx.BatchNorm(3, rngs=rngs), nnx.relu, twin)
    nnx.update(model, filled(nnx.state(model)))
    before = model.layers[0].kernel[...]
    with pytest.raises(ValueError, match="used in another place"):
        jaxbn.fold(model, X)
    np.testing.assert_array_equal(model.layers[0].kernel[...], before)


def test_a_layer_under_scan_is_refused():
    class Body(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.BatchNorm(use_running_average=True, name="norm")(nn.Dense(3, name="dense")(x)), None

    stack = nn.scan(Body, {"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=2)
    model = stack()
    variables = model.init(jax.random.key(0), X, None)
    with pytest.raises(ValueError, match="norm: it stands inside a `scan`, where its variables may be stacked"):
        jaxbn.fold(model, variables, X, None)


def test_a_kernel_that_overflows_its_dtype_is_refused():
    layer = {"kernel": jnp.full((2, 2), 1000.0, jnp.float16)}
    with pytest.raises(ValueError, match="not finite in float16"):
        jaxbn.fold_into_previous(layer, {}, {"mean": jnp.zeros(2), "var": jnp.zeros(2)})


def test_another_number_of_features_is_refused():
    stats = {"mean": jnp.zeros(3), "var": jnp.ones(3)}
    with pytest.raises(
        ValueError, match=r"has 2 output features \(axis 1 of float32\[4, 2\]\), the batch norm has \[3\]"
    ):
        jaxbn.fold_into_previous({"kernel": jnp.ones((4, 2))}, {}, stats)
    with pytest.raises(
        ValueError, match=r"has 4 input features \(axis 0, groups: 1 of float32\[4, 2\]\), .* has \[3\]"
    ):
        jaxbn.fold_into_next({}, stats, {"kernel": jnp.ones((4, 2))})


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="must be a linen or nnx module, got dict"):
        jaxbn.fold({}, X)
    with pytest.raises(TypeError, match="needs the variables of a linen model"):
        jaxbn.fold(nn.Dense(2))


class Two(nn.Module):
    """Two batch norms that fold."""

    second_in_training: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(True, name="a")(nn.Dense(4, name="first")(x)))
        y = nn.BatchNorm(not self.second_in_training, name="b")(nn.Dense(4, name="second")(x))
        return [nn.Dense(3, name=n)(z) for z in [nn.BatchNorm(True, name="c")(nn.relu(y))] for n in ("left", "right")]


def two():
    return filled(jax.eval_shape(Two().init, jax.random.key(0), X))


ALL = [("first", "a"), ("second", "b"), ("c", "left"), ("c", "right")]


def test_a_layer_that_overflows_stays_and_the_rest_is_folded():
    variables = two()
    variables["batch_stats"]["a"]["var"] = variables["batch_stats"]["a"]["var"].at[1].set(jnp.nan)
    pairs = jaxbn.foldable_pairs(Two(), variables, X)
    assert pairs == ALL[1:]
    assert "not finite in float32" in pairs.left["a"]
    folded = jaxbn.fold(Two(), variables, X)
    np.testing.assert_array_equal(folded["params"]["first"]["kernel"], variables["params"]["first"]["kernel"])
    assert np.all(folded["params"]["b"]["scale"] == 1)
    with pytest.raises(ValueError, match=r"not finite in float32.*nothing was changed"):
        jaxbn.fold(Two(), variables, X, pairs=ALL[:1])


def test_a_batch_norm_stays_if_the_first_of_its_readers_overflows():
    variables = two()
    variables["params"]["left"]["kernel"] += 3e38
    variables["batch_stats"]["c"]["var"] *= 1e-4
    pairs = jaxbn.foldable_pairs(Two(), variables, X)
    assert pairs == ALL[:2]
    assert "not finite in float32" in pairs.left["c"]


def test_a_layer_that_was_not_finite_is_folded_as_it_is():
    variables = two()
    variables["params"]["first"]["kernel"] = variables["params"]["first"]["kernel"].at[0, 0].set(jnp.inf)
    assert jaxbn.foldable_pairs(Two(), variables, X) == ALL


def test_a_batch_norm_that_always_trains_stays_and_the_rest_is_folded():
    model, variables = Two(second_in_training=True), two()
    pairs = jaxbn.foldable_pairs(model, variables, X, mutable=["batch_stats"])
    assert pairs == [ALL[0], *ALL[2:]]
    assert "must be called with use_running_average=True, got False" in pairs.left["b"]


def test_all_that_read_a_batch_norm_are_folded_or_none():
    variables = two()
    with pytest.raises(ValueError, match=r"the output of c is read by others than left too: \[\('c', 'right'\)\]"):
        jaxbn.fold(Two(), variables, X, pairs=[("c", "left")])
    folded = jaxbn.fold(Two(), variables, X, pairs=ALL[2:])
    assert np.all(folded["params"]["c"]["scale"] == 1)
    assert not np.any(folded["params"]["b"]["scale"] == 1)
    for before, after in zip(Two().apply(variables, X), Two().apply(folded, X), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-5)


def test_flags_are_as_they_are_and_tensors_are_arrays():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train, mode, options):
            assert train is False
            assert options["depth"] == 2
            assert options["none"] is None
            x = nn.BatchNorm(not train)(nn.Dense(3)(x))
            return {"flat": x.reshape(len(x), -1), "deep": x}[mode]

    options = {"depth": 2, "none": None, "name": "text"}
    variables = filled(jax.eval_shape(lambda: Net().init(jax.random.key(0), X, False, "flat", options)))
    right = jaxbn.fold(Net(), variables, X, False, "flat", options)
    torch = pytest.importorskip("torch")
    for x in [np.asarray(X), torch.from_numpy(np.array(X)), jax.ShapeDtypeStruct(X.shape, X.dtype)]:
        folded = jaxbn.fold(Net(), FrozenDict(variables), x, False, "flat", options)
        assert isinstance(folded, FrozenDict)
        jax.tree.map(np.testing.assert_array_equal, folded.unfreeze(), right)


def test_a_flag_of_numpy_is_a_flag():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.relu(nn.BatchNorm(not train)(nn.Dense(3)(x))) if not train else x

    variables = filled(jax.eval_shape(lambda: Net().init(jax.random.key(0), X, False)))
    assert jaxbn.foldable_pairs(Net(), variables, X, np.False_) == [("Dense_0", "BatchNorm_0")]


def test_nothing_is_moved_behind_the_back_of_a_transfer_guard():
    variables, x = two(), X
    with jax.transfer_guard("disallow"):
        folded = jaxbn.fold(Two(), variables, x)
    assert np.all(folded["params"]["a"]["scale"] == 1)


@pytest.mark.parametrize("kind", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
@pytest.mark.parametrize("spec", [P(), P("d")])
def test_arrays_that_are_split_over_devices_are_folded_where_they_are(kind, spec):
    variables = two()
    right = jaxbn.fold(Two(), variables, X)
    mesh = jax.make_mesh((2,), ("d",), axis_types=(kind,))
    split = jax.device_put(variables, NamedSharding(mesh, P()))
    split["params"]["first"]["bias"] = jax.device_put(split["params"]["first"]["bias"], NamedSharding(mesh, spec))
    folded = jaxbn.fold(Two(), split, jax.device_put(X, NamedSharding(mesh, spec)))
    assert len(folded["params"]["first"]["bias"].sharding.device_set) == 2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), folded, right)
