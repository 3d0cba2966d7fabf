"""Any size: none, one, prime, large; on any axis, in rows and in features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
import jaxbn.linen
import jaxbn.nnx
from tests.oracle import check_step

SIZES = [0, 1, 2, 127, 257, 4099]
PLACES = {
    "rows": ((None, 3), -1),
    "rows before the features": ((2, None, 3), -1),
    "rows behind the features": ((2, 3, None), 1),
    "features": ((4, None), -1),
    "features in front": ((None, 5), 0),
    "one of two feature axes": ((3, 2, None), (2, 0)),
    "all axes are features": ((None,), 0),
}


def batch(shape, offset=0.0, order="random"):
    x = np.random.default_rng(0).normal(size=shape) + offset
    if order == "sorted":
        x = np.sort(x, 0)
    if order == "outliers first":
        x[: max(1, len(x) // 16)] *= 30
    return x.astype(np.float32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("place", PLACES)
def test_a_step_is_right_for_any_size_on_any_axis(place, size):
    shape, axis = PLACES[place]
    check_step(batch([size if n is None else n for n in shape]), axis=axis, epsilon=0.1)


@pytest.mark.parametrize("size", [0, 1, 127])
@pytest.mark.parametrize("options", [{"use_fast_variance": False}, {"unbiased": True}, {"momentum": 0.0}], ids=str)
def test_a_step_with_other_options_is_right_for_any_size(size, options):
    x = batch((2, size, 3), offset=7)
    check_step(x, epsilon=0.1, **options)
    check_step(x, epsilon=0.1, mask=np.ones((2, size, 1), bool), **options)


@pytest.mark.parametrize("size", [0, 1, 5])
def test_virtual_batches_may_have_examples_of_any_size(size):
    check_step(batch((6, size, 3)), virtual_batch_size=2, epsilon=0.1, batches=[[0, 1], [2, 3], [4, 5]])


@pytest.mark.parametrize("order", ["random", "sorted", "outliers first"])
@pytest.mark.parametrize("rows", [127, 257, 4099])
def test_odd_sizes_keep_five_digits_at_1000_deviations_in_any_order_of_the_rows(rows, order):
    cold = {"mean": np.zeros(3, np.float32), "var": np.ones(3, np.float32)}
    check_step(batch((rows, 3), 1000, order), stats=cold, momentum=0.0)


@pytest.mark.parametrize("empty", ["no rows", "mask", "mask of one channel"])
def test_an_empty_batch_has_gradients_of_0_where_epsilon_is_0(empty):
    x = batch((0 if empty == "no rows" else 5, 3))
    mask = {"no rows": None, "mask": np.zeros((5, 1), bool), "mask of one channel": np.arange(3) > 0}[empty]
    check_step(x, mask=mask, epsilon=0.0)


def test_no_rows_leave_the_statistics_alone():
    params, stats = jaxbn.init(3)
    y, new = jaxbn.batch_norm(params, stats, jnp.zeros((0, 3)), use_running_average=False)
    assert y.shape == (0, 3)
    for name in ("mean", "var"):
        np.testing.assert_array_equal(new[name], stats[name])


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (4, 0)])
def test_moments_and_evaluation_take_empty_batches(shape):
    features = shape[-1]
    params, stats = jaxbn.init(features)
    x = jnp.zeros(shape)
    count, mean, var = jaxbn.batch_moments(x)
    rows = int(np.prod(shape[:-1]))
    np.testing.assert_array_equal(jnp.broadcast_to(count, (features,)), np.full(features, rows))
    np.testing.assert_array_equal(mean, np.zeros(features))
    np.testing.assert_array_equal(var, np.zeros(features))
    assert jaxbn.normalize(params, x, stats["mean"], stats["var"]).shape == shape
    gradient = jax.grad(lambda x: jaxbn.batch_norm(params, stats, x, use_running_average=True)[0].sum())(x)
    assert gradient.shape == shape


@pytest.mark.parametrize("shape", [(0, 3), (4, 0)])
def test_the_layers_take_empty_batches(shape):
    x = jnp.zeros(shape)
    linen = jaxbn.linen.BatchNorm()
    variables = linen.init(jax.random.key(0), x, use_running_average=False)
    y, _ = linen.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    assert y.shape == shape
    assert linen.apply(variables, x, use_running_average=True).shape == shape
    assert jaxbn.nnx.BatchNorm(shape[-1], rngs=nnx.Rngs(0))(x).shape == shape
