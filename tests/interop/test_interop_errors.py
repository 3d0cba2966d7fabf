"""Weights that do not fit: every entry is named, on both sides, and nothing is imported."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxbn import interop


def model():
    return {
        "params": {
            "conv": {"kernel": jnp.zeros((3, 3, 1, 4))},
            "bn": {"scale": jnp.zeros(4), "bias": jnp.zeros(4)},
            "fc": {"kernel": jnp.zeros((4, 2)), "bias": jnp.zeros(2)},
        },
        "batch_stats": {"bn": {"mean": jnp.zeros(4), "var": jnp.ones(4)}},
    }


def checkpoint():
    return {
        "conv.weight": np.ones((4, 1, 3, 3), np.float32),
        "bn.weight": np.ones(4, np.float32),
        "bn.bias": np.ones(4, np.float32),
        "bn.running_mean": np.ones(4, np.float32),
        "bn.running_var": np.ones(4, np.float32),
        "bn.num_batches_tracked": np.array(3),
        "fc.weight": np.ones((2, 4), np.float32),
        "fc.bias": np.ones(2, np.float32),
    }


def test_what_is_missing_left_over_or_of_another_shape_is_listed_at_once():
    arrays = checkpoint()
    del arrays["bn.running_var"], arrays["fc.bias"]
    arrays["fc.weight"] = np.ones((10, 4), np.float32)
    arrays["conv.weight"] = np.ones(7, np.float32)
    arrays["fc2.weight"] = np.ones((3, 3), np.float32)
    with pytest.raises(ValueError, match="nothing was imported") as error:
        interop.from_torch(arrays, model())
    assert sorted(str(error.value).splitlines()[1:]) == [
        "  left over: 'fc2.weight' [3, 3], for which the model has no variable",
        "  missing: 'bn.running_var', for batch_stats/bn/var [4]",
        "  missing: 'fc.bias', for params/fc/bias [2]",
        "  of another shape: 'conv.weight' [7], for params/conv/kernel [3, 3, 1, 4]",
        "  of another shape: 'fc.weight' [10, 4], here [4, 10], for params/fc/kernel [4, 2]",
    ]


def test_a_count_must_come_where_the_model_has_one():
    like, arrays = model(), checkpoint()
    like["batch_stats"]["bn"]["count"] = jnp.zeros((), jnp.int32)
    assert interop.from_torch(arrays, like)["batch_stats"]["bn"]["count"] == 3
    del arrays["bn.num_batches_tracked"]
    with pytest.raises(ValueError, match=r"missing: 'bn.num_batches_tracked', for batch_stats/bn/count \[\]"):
        interop.from_torch(arrays, like)


def test_names_and_prefixes():
    arrays = {f"module.{k.replace('conv', 'stem.0')}": v for k, v in checkpoint().items()}
    variables = interop.from_torch(arrays, model(), names={"conv": "stem.0"}, prefix="module.")
    assert variables["params"]["conv"]["kernel"].sum() == 36
    back = interop.to_torch(variables, names={"conv": "stem.0"}, prefix="module.")
    assert set(back) == {k for k in arrays if not k.endswith("tracked")}
    with pytest.raises(ValueError, match=r"`names` must speak of layers .*\['bn', 'conv', 'fc'\], got \['c'\]"):
        interop.from_torch(arrays, model(), names={"c": "stem.0"})
    with pytest.raises(ValueError, match=r"params/bn/bias and params/fc/bias have one name in PyTorch, 'bn.bias'"):
        interop.to_torch(model(), names={"fc": "bn"})


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"epoch": 3, "state_dict": checkpoint()}, "got dict at 'state_dict'.*one level deeper"),
        ([checkpoint()], "must map names to arrays or tensors, got list"),
        ({"a": np.array([object()])}, "got ndarray at 'a'"),
    ],
)
def test_what_is_no_state_dict_is_refused(arrays, message):
    with pytest.raises(TypeError, match=message):
        interop.from_torch(arrays, model())


def test_what_is_no_layout_is_refused():
    with pytest.raises(TypeError, match=r"`layouts\['fc'\]` must be ConvTranspose, AfterFlatten or Depthwise, got 3"):
        interop.from_torch(checkpoint(), model(), layouts={"fc": 3})
    with pytest.raises(ValueError, match=r"params/fc/kernel \[4, 2\] does not have the layout AfterFlatten"):
        interop.to_torch(model(), layouts={"fc": interop.AfterFlatten(2, 2, 2)})


def test_options_that_pytorch_does_not_have_are_refused():
    with pytest.raises(ValueError, match=r"must be in \[0, 1\] or None, got 1.5"):
        interop.from_torch_options(1.5)
    with pytest.raises(ValueError, match="divided by n - 1, got False"):
        interop.to_torch_options(momentum=0.9)
    with pytest.raises(ValueError, match="both or neither, got True and False"):
        interop.to_torch_options(unbiased=True, use_bias=False)
    with pytest.raises(ValueError, match="PyTorch has no schedule"):
        interop.to_torch_options(lambda n: n, unbiased=True)
