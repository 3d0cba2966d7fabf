"""Against the real PyTorch: weights there and back, the same evaluation, and the same training from there on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch_models
from flax import linen as nn
from flax import nnx
from torch_models import LAYOUTS, images, make_torch

from jaxbn import interop

torch = pytest.importorskip("torch")
torch.set_num_threads(1)


def nchw(x: np.ndarray):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def evaluate(model, x: np.ndarray) -> np.ndarray:
    model.eval()
    with torch.no_grad():
        return model(nchw(x)).numpy()


@pytest.fixture(scope="module")
def theirs():
    return make_torch(torch)


def close(a, b, tolerance):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


def test_linen_evaluates_as_pytorch_does(theirs):
    model, x = torch_models.Linen(), images(16)
    variables = interop.from_torch(theirs.state_dict(), torch_models.shapes(model), layouts=LAYOUTS)
    close(jax.jit(model.apply)(variables, x), evaluate(theirs, x), 1e-6)


def test_nnx_evaluates_as_pytorch_does(theirs):
    layouts = {"head": LAYOUTS["head"]}  # an nnx module shows its transposed convolutions itself
    model, x = nnx.eval_shape(lambda: torch_models.Nnx(nnx.Rngs(0))), images(16)
    imported = interop.from_torch(theirs.state_dict(), model, layouts=layouts)
    assert isinstance(model.conv.kernel.get_value(), jax.ShapeDtypeStruct)  # unchanged
    imported.eval()
    close(nnx.jit(lambda m, x: m(x))(imported, x), evaluate(theirs, x), 1e-6)
    back = interop.to_torch(imported, layouts=layouts)
    for name, value in theirs.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(back[name], value.numpy())


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_file_brings_the_weights_back_to_pytorch(theirs, tmp_path, suffix):
    variables = interop.from_torch(theirs.state_dict(), torch_models.shapes(torch_models.Linen()), layouts=LAYOUTS)
    interop.save(tmp_path / f"model{suffix}", interop.to_torch(variables, layouts=LAYOUTS))
    arrays = interop.load(tmp_path / f"model{suffix}")
    fresh = make_torch(torch)
    fresh.load_state_dict({k: torch.from_numpy(np.zeros_like(v)) for k, v in arrays.items()}, strict=False)
    fresh.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items()}, strict=False)
    assert set(theirs.state_dict()) - set(arrays) == {f"{n}.num_batches_tracked" for n in ("bn", "bare", "last")}
    np.testing.assert_array_equal(evaluate(fresh, images(2)), evaluate(theirs, images(2)))


@pytest.mark.parametrize(("momentum", "steps"), [(0.1, 100), (None, 10)])
def test_further_training_steps_are_those_of_pytorch_one_by_one(momentum, steps):
    lr = 0.01
    theirs = make_torch(torch, momentum)
    model = torch_models.Linen(None if momentum is None else 1 - momentum)
    variables = interop.from_torch(theirs.state_dict(), torch_models.shapes(model), layouts=LAYOUTS)
    x, labels = images(steps * 8, 1).reshape(steps, 8, 8, 8, 3), np.random.default_rng(2).integers(0, 5, (steps, 8))

    def step(variables, batch):
        def loss(params):
            logits, new = model.apply({**variables, "params": params}, batch[0], train=True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean(), new

        gradient, new = jax.grad(loss, has_aux=True)(variables["params"])
        params = jax.tree.map(lambda p, g: p - lr * g, variables["params"], gradient)
        variables = {"params": params, "batch_stats": new["batch_stats"]}
        return variables, variables["batch_stats"]

    variables, ours = jax.jit(lambda v, b: jax.lax.scan(step, v, b))(variables, (x, labels))
    ours = jax.tree.map(np.asarray, ours)
    optimizer = torch.optim.SGD(theirs.parameters(), lr)
    theirs.train()
    for i in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(theirs(nchw(x[i])), torch.from_numpy(labels[i])).backward()
        optimizer.step()
        for name in ("bn", "bare", "last"):
            norm = getattr(theirs, name)
            close(ours[name]["mean"][i], norm.running_mean.numpy(), 1e-5)
            close(ours[name]["var"][i], norm.running_var.numpy(), 1e-5)
            assert norm.num_batches_tracked.item() == i + 4
            assert momentum is not None or np.all(ours[name]["count"][i] == i + 4)
    close(jax.jit(model.apply)(variables, x[0]), evaluate(theirs, x[0]), 1e-5)


def test_the_count_crosses_both_ways():
    theirs = make_torch(torch, None)
    variables = interop.from_torch(theirs.state_dict(), torch_models.shapes(torch_models.Linen(None)), layouts=LAYOUTS)
    assert variables["batch_stats"]["bn"]["count"].dtype == jnp.int32
    assert np.all(variables["batch_stats"]["bn"]["count"] == 3)
    back = interop.to_torch(variables, layouts=LAYOUTS)
    assert back["bn.num_batches_tracked"].dtype == np.int64
    assert back["bn.num_batches_tracked"] == 3
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in back.items()})


def test_half_tensors_of_pytorch_are_cast_to_the_model(theirs):
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in theirs.state_dict().items()}
    variables = interop.from_torch(half, torch_models.shapes(torch_models.Linen()), layouts=LAYOUTS)
    bias = variables["params"]["head"]["bias"]
    assert bias.dtype == jnp.float32
    np.testing.assert_array_equal(bias, half["head.bias"].float().numpy())


def test_the_options_are_those_of_a_pytorch_module():
    for norm in (torch.nn.BatchNorm2d(2), torch.nn.BatchNorm1d(2, eps=1e-3, momentum=None, affine=False)):
        options = interop.from_torch_options(norm.momentum, norm.eps, norm.affine)
        again = torch.nn.BatchNorm2d(2, **interop.to_torch_options(**options))
        assert (again.momentum, again.eps, again.affine) == (norm.momentum, norm.eps, norm.affine)
    assert interop.from_torch_options() == {**interop.PYTORCH, "use_scale": True, "use_bias": True}


def test_the_layouts_are_found_in_the_program(theirs):
    model, x = torch_models.Linen(), images(4)
    shapes = torch_models.shapes(model)
    layouts = interop.find_layouts(model, shapes, x)
    assert layouts == {"conv": None, "grouped": None, **LAYOUTS}
    variables = interop.from_torch(theirs.state_dict(), shapes, layouts=layouts)
    close(jax.jit(model.apply)(variables, x), evaluate(theirs, x), 1e-6)
    nnx_model = nnx.eval_shape(lambda: torch_models.Nnx(nnx.Rngs(0)))
    of_nnx = interop.find_layouts(nnx_model, jax.ShapeDtypeStruct(x.shape, x.dtype))
    assert of_nnx == {**layouts, "up": interop.ConvTranspose(True)}


@pytest.mark.parametrize(
    ("shape", "between", "image"),
    [
        ((2, 5, 4, 3), lambda x: x.reshape(2, -1), interop.AfterFlatten(5, 4, 3)),
        ((2, 5, 4, 3), lambda x: nn.relu(x.reshape(-1, 60)) * 2.0, interop.AfterFlatten(5, 4, 3)),
        ((2, 7, 3), lambda x: x.reshape(2, -1), interop.AfterFlatten(7, 1, 3)),
        ((2, 2, 5, 4, 3), lambda x: x.reshape(2, -1), interop.AfterFlatten(40, 1, 3)),
        ((2, 5, 4, 3), lambda x: x.reshape(2, 20, 3), None),
        ((2, 5, 4, 3), lambda x: x.mean((1, 2)), None),
        ((2, 1, 1, 3), lambda x: x.reshape(2, -1), None),
    ],
)  # fmt: skip
def test_a_flattened_image_is_found_where_there_is_one(shape, between, image):
    model = nn.Sequential([between, nn.Dense(2)])
    x = jax.ShapeDtypeStruct(shape, np.float32)
    layouts = interop.find_layouts(model, jax.eval_shape(model.init, jax.random.key(0), x), x)
    assert layouts == ({"layers_1": image} if image else {})


def test_only_the_first_of_two_dense_layers_reads_the_image():
    model = nn.Sequential([lambda x: x.reshape(2, -1), nn.Dense(60), nn.relu, nn.Dense(2)])
    x = jax.ShapeDtypeStruct((2, 5, 4, 3), np.float32)
    layouts = interop.find_layouts(model, jax.eval_shape(model.init, jax.random.key(0), x), x)
    assert layouts == {"layers_1": interop.AfterFlatten(5, 4, 3)}
