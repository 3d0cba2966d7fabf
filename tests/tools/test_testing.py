"""`jaxbn.testing`: it passes models that are invariant to the split, and names the layer that is not."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import jaxbn.linen
import jaxbn.nnx
from jaxbn.testing import assert_split_invariant

X = (
    np.random.default_rng(0).normal(size=(8, 5, 3)).astype(np.float32)
    + np.repeat(np.arange(4, dtype=np.float32), 2)[:, None, None]
)


class Block(linen.Module):
    axis_name: str | None

    @linen.compact
    def __call__(self, x):
        x = linen.Dense(4)(x)
        return jaxbn.linen.BatchNorm(False, axis_name=self.axis_name, activation="relu")(x)


class Linen(linen.Module):
    second: str | None = "batch"

    wrap: Callable = staticmethod(lambda module: module)

    @linen.compact
    def __call__(self, x):
        x = Block("batch")(x)
        x = self.wrap(Block)(self.second)(x)
        return linen.Dense(2)(x.mean(1))


class Nnx(nnx.Module):
    def __init__(self, norm=jaxbn.nnx.BatchNorm):
        rngs = nnx.Rngs(0)
        self.zeroth = nnx.Linear(3, 4, rngs=rngs)
        self.norms = nnx.List([norm(4, axis_name="batch", rngs=rngs), norm(4, axis_name="batch", rngs=rngs)])
        self.last = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x, mask=None):
        x = self.norms[0](self.zeroth(x), mask=mask)
        return self.last(self.norms[1](jnp.tanh(x), mask=mask))


def test_a_synchronized_model_is_invariant():
    assert_split_invariant(Linen(), X, parts=4)


def test_masks_with_different_counts_are_invariant_and_flax_is_not():
    mask = np.arange(8)[:, None, None] < 3
    assert_split_invariant(Nnx(), X, mask, loss=lambda y, x, mask: jnp.where(mask, y, 0).mean())
    with pytest.raises(AssertionError, match="the output of norms/0 is the first that changes"):
        assert_split_invariant(Nnx(norm=nnx.BatchNorm), X, mask)


def test_the_first_local_layer_is_named():
    with pytest.raises(
        AssertionError, match=r"the output of Block_1/BatchNorm_0 is the first .* split into 2: by .*axis_name='batch'"
    ):
        assert_split_invariant(Linen(second=None), X)


def test_a_statistic_that_differs_is_named():
    class Counts(linen.Module):
        @linen.compact
        def __call__(self, x):
            self.variable("state", "largest", lambda: jnp.zeros(())).value = jnp.max(x)
            return jaxbn.linen.BatchNorm(False, axis_name="batch")(x)

    with pytest.raises(AssertionError, match=r"the state largest \(state\) is the first"):
        assert_split_invariant(Counts(), X)


def test_a_gradient_that_differs_is_named():
    class Hidden(linen.Module):
        """The identity, with a gradient through the mean of the examples that it sees."""

        @linen.compact
        def __call__(self, x):
            x = linen.Dense(2)(x)
            mean = x.mean((0, 1))
            return x + (mean - jax.lax.stop_gradient(mean))[None, None] * x

    with pytest.raises(AssertionError, match="the gradient of Dense_0/kernel is the first"):
        assert_split_invariant(Hidden(), X)


def test_layers_inside_a_checkpoint_are_mentioned():
    with pytest.raises(AssertionError, match=r"the output of Dense_0 is .* scan: .*CheckpointBlock_0/BatchNorm_0"):
        assert_split_invariant(Linen(None, linen.remat), X)


def test_a_batch_that_cannot_be_split_is_an_error():
    with pytest.raises(
        ValueError, match=r"divide the batch, the first axis of all inputs, got 3 and \['float32\[8, 5, 3\]'\]"
    ):
        assert_split_invariant(Linen(), X, parts=3)
    with pytest.raises(TypeError, match=r"must be a flax.linen.Module or a flax.nnx.Module, got function"):
        assert_split_invariant(lambda x: x, X)
