"""Against the real Keras 3, on its JAX backend: weights there and back, and one training step."""

import contextlib
import os

import jax
import numpy as np
import pytest
from flax import linen as nn

import jaxbn.linen
from jaxbn import interop

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras")

LAYOUTS = {"depthwise": interop.Depthwise(4), "up": interop.ConvTranspose()}


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(4, (3, 3), padding="VALID", name="conv")(x)
        x = jaxbn.linen.BatchNorm(not train, name="norm", **interop.KERAS)(x)
        x = nn.Conv(8, (3, 3), padding="VALID", feature_group_count=4, name="depthwise")(x)
        x = nn.ConvTranspose(5, (3, 3), padding="VALID", name="up")(x)
        return nn.Dense(3, name="head")(x.reshape(len(x), -1))


@contextlib.contextmanager
def as_usual():
    """JAX as Keras expects it: it promotes, and makes keys of two numbers itself."""
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.default_prng_impl("threefry2x32"),
    ):
        yield


@pytest.fixture(scope="module")
def theirs():
    layers = keras.layers
    with as_usual():
        model = keras.Sequential(
            [
                keras.Input((8, 8, 2)),
                layers.Conv2D(4, 3, name="conv"),
                layers.BatchNormalization(name="norm"),
                layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise"),
                layers.Conv2DTranspose(5, 3, name="up"),
                layers.Dropout(0.5),
                layers.Flatten(),
                layers.Dense(3, name="head"),
            ],
            name="net",
        )
    rng = np.random.default_rng(0)
    for w in model.weights:
        w.assign(rng.uniform(0.5, 1.5, w.shape) if "norm" in w.path else rng.normal(0, 0.3, w.shape))
    return model


def run_keras(model, x, training=False):
    with as_usual():
        return np.asarray(model(x, training=training))


def test_keras_weights_there_and_back(theirs):
    x = np.random.default_rng(1).normal(size=(4, 8, 8, 2)).astype(np.float32)
    model = Linen()
    like = jax.eval_shape(model.init, jax.random.key(0), x)
    variables = interop.from_keras(theirs.variables, like, prefix="net/", layouts=LAYOUTS)
    right = run_keras(theirs, x)
    np.testing.assert_allclose(model.apply(variables, x), right, rtol=0, atol=2e-6 * np.abs(right).max())

    back = interop.to_keras(variables, prefix="net/", layouts=LAYOUTS)
    assert set(back) == {w.path for w in theirs.weights}
    for w in theirs.weights:
        np.testing.assert_array_equal(back[w.path], np.asarray(w))

    _, new = model.apply(variables, x, train=True, mutable=["batch_stats"])
    run_keras(theirs, x, training=True)
    trained = interop.from_keras(theirs.variables, like, prefix="net/", layouts=LAYOUTS)["batch_stats"]
    for name in ("mean", "var"):
        np.testing.assert_allclose(new["batch_stats"]["norm"][name], trained["norm"][name], rtol=1e-5, atol=1e-6)
