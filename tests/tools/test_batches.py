"""Batches come as other libraries make them."""

from collections import UserDict
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
import jaxbn.nnx
from jaxbn._tools.batches import as_arrays
from tests.recalibrate_models import DATA, assert_close, batches, population

CUT = batches([16, 32])


class Tensor:
    """What JAX knows nothing of, and what converts."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


class Pair(NamedTuple):
    x: object
    label: object


def recalibrated(batches, x_of=lambda batch: batch):
    model = jaxbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    jaxbn.recalibrate(lambda model, batch: model(x_of(batch)), model, batches)
    return {"a": {"mean": model.mean[...], "var": model.var[...]}}


def test_what_converts_to_an_array_is_a_batch_in_whatever_containers():
    expected = {"a": population(CUT)}
    assert_close(recalibrated(map(Tensor, CUT)), expected)
    assert_close(recalibrated([Pair(Tensor(x), [1, "no"][:1]) for x in CUT], lambda b: b.x), expected)
    assert_close(recalibrated([UserDict(x={"y": [Tensor(x)]}) for x in CUT], lambda b: b["x"]["y"][0]), expected)
    named = [{"x": x, "id": np.arange(len(x)), "scale": 1.0} for x in CUT]
    assert_close(recalibrated(named, lambda batch: batch["x"]), expected)


def test_tensors_of_torch_are_batches():
    torch = pytest.importorskip("torch")
    expected = {"a": population(CUT)}
    tensors = [torch.from_numpy(x) for x in CUT]
    assert_close(recalibrated(tensors), expected)
    nested = [{"x": (t.clone().requires_grad_(), t > 0)} for t in tensors]
    assert_close(recalibrated(nested, lambda batch: batch["x"][0]), expected)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.from_numpy(DATA)), batch_size=16)
    assert_close(recalibrated(loader, lambda batch: batch[0]), expected)
    half = as_arrays(tensors[0].to(torch.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(half), CUT[0].astype(jnp.bfloat16))


def test_a_converted_batch_is_on_no_device_in_particular():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    params, stats = jaxbn.init(3)
    everywhere = jax.device_put({"params": params, "batch_stats": stats}, jax.NamedSharding(mesh, jax.P()))
    got = jaxbn.recalibrate(lambda v, x: (None, jaxbn.batch_moments(x)), everywhere, map(Tensor, CUT))
    assert_close({"a": got["batch_stats"]}, {"a": population(CUT)})


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": CUT[0], "name": "cat"}, r"of arrays, .* got str at \['name'\]"),
        ([CUT[0], object()], r"got object at \[1\]"),
        (np.array(["a"]), r"got ndarray.* at the top"),
        (UserDict(x={"y": "cat"}), r"got str at \['x'\]\['y'\]"),
    ],
)
def test_what_is_no_array_is_named(batch, message):
    with pytest.raises(TypeError, match=message):
        recalibrated([batch])


def test_a_batch_of_another_structure_is_an_error_where_forward_does_not_take_it():
    mixed = [{"x": CUT[0]}, (CUT[1],)]
    with pytest.raises(ValueError, match=r"failed on number 1, .* where the first was PyTreeDef\({'x': \*}\)"):
        recalibrated(mixed, lambda batch: batch["x"])
    assert_close(recalibrated(mixed, lambda batch: jax.tree.leaves(batch)[0]), {"a": population(CUT)})
