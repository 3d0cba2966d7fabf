"""Checkpoints under the names of torchvision and timm: found by tables of patterns, or proposed by the error."""

import ast
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo_torch
from flax import linen as nn
from flax import nnx
from zoo_models import NETWORKS, images

from jaxbn import interop

torch = pytest.importorskip("torch")
torch.set_num_threads(1)


@pytest.fixture(scope="module", params=NETWORKS)
def zoo(request):
    model, table = NETWORKS[request.param]
    shapes = jax.eval_shape(model.init, jax.random.key(0), images(1))
    theirs = zoo_torch.make_torch(torch, request.param)
    return model, table, shapes, theirs


def evaluate(theirs, x):
    with torch.no_grad():
        return theirs(torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))).numpy()


def test_a_table_of_patterns_brings_the_whole_network(zoo):
    model, table, shapes, theirs = zoo
    state_dict = {f"module.{k}": v for k, v in theirs.state_dict().items()}
    variables = interop.from_torch(state_dict, shapes, names=table, prefix="module.")
    x = images(2)
    right = evaluate(theirs, x)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, x), right, rtol=0, atol=1e-5 * np.abs(right).max())
    names = interop.match_names(state_dict, shapes, table, prefix="module.")
    back = interop.to_torch(variables, names=names)
    for name, value in theirs.state_dict().items():
        assert name.endswith("num_batches_tracked") or np.array_equal(back[name], value.numpy()), name


def test_the_error_without_names_is_short_and_proposes_the_table(zoo):
    _, table, shapes, theirs = zoo
    with pytest.raises(ValueError, match="nothing was imported") as error:
        interop.from_torch({f"model.{k}": v for k, v in theirs.state_dict().items()}, shapes)
    text = str(error.value)
    assert len(text.splitlines()) <= 11
    missing, left = (int(re.search(rf"(\d+) {what}", text)[1]) for what in ("missing", "left over"))
    assert missing == left == len(jax.tree.leaves(shapes))
    assert f"... and {missing + left - 8} more" in text
    name = next(
        k
        for k in ("TORCHVISION_RESNET", "TORCHVISION_MOBILENET_V2", "TIMM_MOBILENET_V2")
        if getattr(interop, k) is table
    )
    assert text.splitlines()[-1] == f"  All of it fits with names=interop.{name}, prefix='model.'."


def test_a_prefix_is_proposed_and_two_are_left_to_choose():
    model = nn.Sequential([nn.Dense(2), nn.Dense(3)])
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 4)))
    arrays = interop.to_torch(model.init(jax.random.key(0), jnp.ones((1, 4))))
    with pytest.raises(ValueError, match=r"All of it fits with prefix='net\.'\.$"):
        interop.from_torch({f"net.{k}": v for k, v in arrays.items()}, shapes)
    two = {f"{p}.{k}": v for k, v in arrays.items() for p in ("ema", "model")}
    choice = (
        r"4 missing, 8 left over(.|\n)*The whole model is there with prefix='ema\.' or with prefix='model\.': leave out"
    )
    with pytest.raises(ValueError, match=choice):
        interop.from_torch(two, shapes)


def test_names_by_shape_are_proposed_where_no_table_fits_and_they_are_right():
    model = nn.Sequential([nn.Dense(2), nn.BatchNorm(use_running_average=True), nn.Dense(3)])
    variables = model.init(jax.random.key(0), jnp.ones((1, 4)))
    arrays = interop.to_torch(variables, names={"layers_0": "enc.0", "layers_1": "enc.1", "layers_2": "enc.10"})
    with pytest.raises(ValueError, match="By kind, shape and order") as error:
        interop.from_torch(arrays, variables)
    proposed = re.search(r"names=({.*})\. Then all of it fits; check it", str(error.value))[1]
    names = ast.literal_eval(proposed)
    assert names == {"layers_0": "enc.0", "layers_1": "enc.1", "layers_2": "enc.10"}
    jax.tree.map(np.testing.assert_array_equal, interop.from_torch(arrays, variables, names=names), variables)


def block(n: int):
    return {f"Conv_{i}": {"kernel": np.full((1, 1, 2, 2), float(i))} for i in range(n)}


def convs(*names: str):
    return {f"{name}.weight": np.full((2, 2, 1, 1), float(i)) for i, name in enumerate(names)}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"Conv_*": "conv*"}, r"'Conv_\*' matches 12 \(convolution\) of the model, \['Conv_0', 'Conv_1', 'Conv_2', "
         r"'Conv_3'\] and 8 more, and 'conv\*' 3 of the checkpoint, \['conv1', 'conv2', 'conv10'\]\."),
        ({"Conv_0": "conv1", "Conv_1": "conv1"}, "params/Conv_0/kernel and params/Conv_1/kernel have one name in Py"),
        ({"Conv_77": "conv1", "Conv_*": "conv*"}, "must speak of layers of the model, .*, got 'Conv_77'"),
    ],
)  # fmt: skip
def test_names_that_match_two_places_or_none_are_refused(names, message):
    model = {"params": block(12)}
    with pytest.raises(ValueError, match=message):
        interop.from_torch(convs("conv10", "conv2", "conv1"), model, names=names)


def test_a_star_stays_within_one_part_of_a_name():
    state_dict = convs("conv1", "conv2.inner", "conv3")
    model = {"params": {**block(2), "Conv_9": block(1)}}
    found = interop.match_names(state_dict, model, {"Conv_*": "conv*"})
    assert found == {"Conv_0": "conv1", "Conv_1": "conv3"}


def test_patterns_pair_by_kind_and_in_the_order_of_numbers():
    state_dict = convs(*(f"b.{i}.0" for i in (10, 9, 0)))
    state_dict |= {f"b.{i}.1.running_mean": np.full(2, float(i)) for i in (10, 9, 0)}
    stats = {f"N_{i}": {"mean": np.zeros(2)} for i in (2, 11, 1)}
    model = {
        "params": {"Conv_5": block(1)["Conv_0"], "Conv_10": block(1)["Conv_0"], "last": block(1)["Conv_0"]},
        "batch_stats": stats,
    }
    found = interop.match_names(state_dict, model, {"last": "b.10.0", "**": "b.**"})
    assert found == {
        "last": "b.10.0",
        "Conv_5": "b.0.0",
        "Conv_10": "b.9.0",
        "N_1": "b.0.1",
        "N_2": "b.9.1",
        "N_11": "b.10.1",
    }
    with pytest.raises(ValueError, match="`names` must be without patterns where no checkpoint is there"):
        interop.to_torch(model, names={"**": "b.**"})


# Layers and dtypes that had no place.


def test_a_model_without_a_batch_norm_and_prelu():
    class Theirs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.act, self.b = torch.nn.Linear(3, 4), torch.nn.PReLU(), torch.nn.Linear(4, 2)

        def forward(self, x):
            return self.b(self.act(self.a(x)))

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name="b")(nn.PReLU(name="act")(nn.Dense(4, name="a")(x)))

    class Nnx(nnx.Module):
        def __init__(self, rngs):
            self.a, self.act, self.b = nnx.Linear(3, 4, rngs=rngs), nnx.PReLU(), nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            return self.b(self.act(self.a(x)))

    theirs, x = Theirs(), np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    with torch.no_grad():
        theirs.act.weight.fill_(0.7)
        right = theirs(torch.from_numpy(x)).numpy()
    variables = interop.from_torch(theirs.state_dict(), jax.eval_shape(Linen().init, jax.random.key(0), x))
    imported = interop.from_torch(theirs.state_dict(), Nnx(nnx.Rngs(0)))
    for y in (Linen().apply(variables, x), imported(x)):
        np.testing.assert_allclose(y, right, atol=1e-6)
    for back in (interop.to_torch(variables), interop.to_torch(imported)):
        assert {k: v.shape for k, v in back.items()} == {k: tuple(v.shape) for k, v in theirs.state_dict().items()}


def test_a_count_for_each_channel_crosses_both_ways():
    stats = {"mean": jnp.zeros(3), "var": jnp.ones(3), "count": jnp.array([4, 7, 6], jnp.int32)}
    model = {"params": {}, "batch_stats": {"bn": stats}}
    exported = interop.to_torch(model)
    assert exported["bn.num_batches_tracked"].shape == ()
    assert exported["bn.num_batches_tracked"] == 7
    exported["bn.num_batches_tracked"] = np.array(2**40)
    count = interop.from_torch(exported, model)["batch_stats"]["bn"]["count"]
    np.testing.assert_array_equal(count, np.full(3, 2**31 - 1))


def test_what_the_dtype_of_the_model_cannot_hold_is_told():
    model = {"params": {"fc": {"kernel": jnp.zeros((1, 2), jnp.float16)}}}
    with pytest.raises(ValueError, match=r"1 out of range.*\n.*'fc.weight', float32 beyond what .*, float16, can hold"):
        interop.from_torch({"fc.weight": np.array([[1.0], [1e6]], np.float32)}, model)
    with pytest.raises(ValueError, match="complex64 beyond"):
        interop.from_torch({"fc.weight": np.ones((2, 1), np.complex64)}, model)
    weight = np.array([[np.inf], [np.nan]], np.float32)
    kernel = interop.from_torch({"fc.weight": weight}, model)["params"]["fc"]["kernel"]
    np.testing.assert_array_equal(kernel, weight.T)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float16", "float64", "int8", "int4"])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_checkpoint_of_any_dtype_is_cast_to_the_model(tmp_path, dtype, suffix):
    kernel = np.arange(-4, 4).reshape(2, 4).astype(jnp.dtype(dtype))
    interop.save(tmp_path / f"a{suffix}", {"fc.weight": kernel})
    model = {"params": {"fc": {"kernel": jnp.zeros((4, 2), jnp.float32)}}}
    got = interop.from_torch(interop.load(tmp_path / f"a{suffix}"), model)["params"]["fc"]["kernel"]
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, np.arange(-4, 4).reshape(2, 4).T)


# A transposed convolution with as many inputs as outputs.


@pytest.mark.parametrize(
    ("path", "window"), [("ConvTranspose_0", 3), ("up", 3), ("dec/up2", 3), ("deconv/0", 3), ("x", 2)]
)
def test_a_kernel_that_may_be_transposed_must_be_named(path, window):
    shape = (window, window, 4, 4)
    tree = {"kernel": np.arange(np.prod(shape), dtype=np.float32).reshape(shape)}
    for part in reversed(path.split("/")):
        tree = {part: tree}
    model = {"params": tree}
    with pytest.raises(
        ValueError, match=f"may be the kernel of a transposed convolution.*'{path}': interop.ConvTranspose"
    ):
        interop.to_torch(model)
    plain = interop.to_torch(model, layouts={path: None})
    with pytest.raises(ValueError, match=r"1 not clear\):\n.*may be the kernel of a transposed convolution"):
        interop.from_torch(plain, model)
    for layout in (None, interop.ConvTranspose(), interop.ConvTranspose(True)):
        arrays = interop.to_torch(model, layouts={path: layout})
        back = interop.from_torch(arrays, model, layouts={path: layout})
        jax.tree.map(np.testing.assert_array_equal, back, model)


def test_a_window_that_is_odd_along_one_axis_is_of_a_plain_convolution():
    model = {"params": {"x": {"kernel": np.zeros((2, 3, 4, 4), np.float32)}}}
    assert interop.to_torch(model)["x.weight"].shape == (4, 4, 2, 3)


@pytest.mark.parametrize("transpose_kernel", [False, True])
def test_a_square_transposed_convolution_evaluates_as_in_pytorch(transpose_kernel):
    theirs = torch.nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1)
    fields = {"strides": (2, 2), "padding": ((1, 1), (1, 1)), "transpose_kernel": transpose_kernel}
    model = nn.Sequential([nn.ConvTranspose(4, (3, 3), **fields)])
    x = np.random.default_rng(0).normal(size=(1, 5, 5, 4)).astype(np.float32)
    right = np.moveaxis(evaluate(theirs, x), 1, -1)
    state_dict = {f"layers.0.{k}": v for k, v in theirs.state_dict().items()}
    module = nnx.Sequential(nnx.ConvTranspose(4, 4, (3, 3), **fields, rngs=nnx.Rngs(0)))
    np.testing.assert_allclose(interop.from_torch(state_dict, module)(x), right, atol=1e-5)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    layouts = {"layers_0": interop.ConvTranspose(transpose_kernel)}
    variables = interop.from_torch(state_dict, shapes, names={"layers_0": "layers.0"}, layouts=layouts)
    np.testing.assert_allclose(model.apply(variables, x), right, atol=1e-5)
