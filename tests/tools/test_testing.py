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


def test_small_values_beside_large_ones_are_compared_by_their_own_size():
    class Scaled(linen.Module):
        @linen.compact
        def __call__(self, x):
            large = linen.Dense(3, kernel_init=linen.initializers.constant(2e4))(x)
            return Block(None)(large)

    with pytest.raises(AssertionError, match="the output of Block_0/BatchNorm_0 is the first"):
        assert_split_invariant(Scaled(), X)


def test_a_model_may_return_its_loss():
    class Loss(linen.Module):
        @linen.compact
        def __call__(self, x):
            return jnp.square(jnp.sin(Block("batch")(x))).mean()

    assert_split_invariant(Loss(), X, parts=4, loss=lambda loss, x: loss)


def test_a_statistic_that_differs_is_named():
    class Counts(linen.Module):
        @linen.compact
        def __call__(self, x):
            self.variable("state", "largest", lambda: jnp.zeros(())).value = jnp.max(x)
            return jaxbn.linen.BatchNorm(False, axis_name="batch")(x)

    for x in (X, X[::-1]):  # the largest value in the second part, and in the first
        with pytest.raises(AssertionError, match=r"the state largest \(state\) is the first"):
            assert_split_invariant(Counts(), x)


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


def test_a_gradient_of_an_input_that_differs_is_named():
    class Hidden(linen.Module):
        """The identity, with a gradient through the mean of the examples that it sees, and no parameter before it."""

        @linen.compact
        def __call__(self, x):
            mean = x.mean((0, 1))
            return x + (mean - jax.lax.stop_gradient(mean))[None, None] * x

    with pytest.raises(AssertionError, match="the gradient of input 0 is the first"):
        assert_split_invariant(Hidden(), X)


def test_a_layer_inside_a_linen_checkpoint_is_named():
    with pytest.raises(AssertionError, match="the output of CheckpointBlock_0/BatchNorm_0 is the first"):
        assert_split_invariant(Linen(None, linen.remat), X)


class Stack(linen.Module):
    """The second norm of each step is local."""

    @linen.compact
    def __call__(self, x):
        def body(module, x, _):
            x = jaxbn.linen.BatchNorm(False, axis_name="batch", name="good")(linen.Dense(3, name="dense")(x))
            return jaxbn.linen.BatchNorm(False, name="bad")(x), None

        axes = {"params": 0, "batch_stats": 0}
        return linen.scan(body, variable_axes=axes, split_rngs={"params": True}, length=2)(self, x, None)[0]


def test_the_layer_and_the_step_inside_a_linen_scan_are_named():
    with pytest.raises(AssertionError, match="the output of bad, step 1 is the first"):
        assert_split_invariant(Stack(), X)


class Wrapped(nnx.Module):
    """The second norm is local, inside a transformation of nnx; `last` follows it outside."""

    def __init__(self, wrap):
        rngs = nnx.Rngs(0)
        self.good = jaxbn.nnx.BatchNorm(3, axis_name="batch", rngs=rngs)
        self.bad = jaxbn.nnx.BatchNorm(3, rngs=rngs)
        self.last = nnx.Linear(3, 2, rngs=rngs)
        self.wrap = wrap

    def __call__(self, x):
        return self.last(self.wrap(lambda self, x: self.bad(jnp.tanh(self.good(x))))(self, x))


@pytest.mark.parametrize("wrap", [nnx.remat, nnx.jit, lambda f: f], ids=["remat", "jit", "plain"])
def test_a_layer_inside_a_transformation_of_nnx_is_named(wrap):
    with pytest.raises(AssertionError, match=r"the output of bad is the first"):
        assert_split_invariant(Wrapped(wrap), X)


def test_the_layer_and_the_step_inside_an_nnx_scan_are_named():
    class Scanned(nnx.Module):
        def __init__(self):
            make = nnx.vmap(lambda rngs: jaxbn.nnx.BatchNorm(3, rngs=rngs), in_axes=0)
            self.bn = make(nnx.Rngs(0).split(2))

        def __call__(self, x):
            return nnx.scan(lambda bn, x: bn(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(self.bn, x)

    with pytest.raises(AssertionError, match="the output of bn, step 1 is the first"):
        assert_split_invariant(Scanned(), X)


@pytest.mark.parametrize("policy", [None, jax.checkpoint_policies.dots_saveable], ids=["no policy", "a policy"])
@pytest.mark.parametrize("place", ["first", "between", "last"])
def test_the_layer_inside_a_checkpoint_is_named_wherever_it_stands(place, policy):
    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            def body(module, x):
                for name in ("first", "between", "last"):
                    x = linen.Dense(3, name=f"dense_{name}")(x)
                    x = jaxbn.linen.BatchNorm(False, axis_name=None if name == place else "batch", name=name)(x)
                return x

            return linen.Dense(2, name="after")(linen.remat(body, policy=policy)(self, x))

    with pytest.raises(AssertionError, match=f"the output of {place} is the first"):
        assert_split_invariant(Model(), X)


def test_the_layer_inside_checkpoints_inside_a_scan_is_named():
    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            def body(module, x, _):
                x = linen.remat(Block)("batch", name="good")(x)
                return linen.Dense(3, name="back")(linen.remat(Block)(None, name="bad")(x)), None

            axes = {"params": 0, "batch_stats": 0}
            return linen.scan(body, variable_axes=axes, split_rngs={"params": True}, length=3)(self, x, None)[0]

    with pytest.raises(AssertionError, match="the output of bad/BatchNorm_0, step 1 is the first"):
        assert_split_invariant(Model(), X)


def test_the_layer_inside_an_nnx_checkpoint_inside_a_scan_is_named():
    class Model(nnx.Module):
        def __init__(self):
            @nnx.vmap(in_axes=0)
            def make(rngs):
                return nnx.List([jaxbn.nnx.BatchNorm(3, axis_name=name, rngs=rngs) for name in ("batch", None)])

            self.norms = make(nnx.Rngs(0).split(2))

        def __call__(self, x):
            def body(norms, x):
                return nnx.remat(lambda norms, x: norms[1](jnp.tanh(norms[0](x))))(norms, x)

            return nnx.scan(body, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(self.norms, x)

    with pytest.raises(AssertionError, match="the output of norms/1, step 1 is the first"):
        assert_split_invariant(Model(), X)


def test_an_ensemble_inside_is_compared_along_the_axis_of_the_examples():
    def ensemble(axis_name):
        norm = linen.vmap(
            jaxbn.linen.BatchNorm, in_axes=None, axis_size=3, variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
        )  # fmt: skip
        return linen.Sequential([norm(False, axis_name=axis_name, name="norm")])

    x = X.mean(1)
    assert_split_invariant(ensemble("batch"), x)
    with pytest.raises(AssertionError, match="the output of layers_0 is the first"):
        assert_split_invariant(ensemble(None), x)


def test_layers_that_cannot_be_looked_into_are_mentioned():
    class Chosen(nnx.Module):
        def __init__(self):
            self.bad = jaxbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))
            self.last = nnx.Linear(3, 2, rngs=nnx.Rngs(0))

        def __call__(self, x):
            true = jnp.sum(x) > -jnp.inf
            return self.last(nnx.cond(true, lambda self, x: self.bad(x), lambda self, x: x, self, x))

    with pytest.raises(AssertionError, match=r"the output of last is .* inside a cond, while or shard_map: bad"):
        assert_split_invariant(Chosen(), X)


def test_a_layer_that_is_called_twice_says_which_call():
    class Twice(linen.Module):
        @linen.compact
        def __call__(self, x):
            dense = linen.Dense(3, name="dense")
            x = dense(dense(x))
            return dense(x + x.mean((0, 1), keepdims=True))

    with pytest.raises(AssertionError, match="the output of dense, call 3 is the first"):
        assert_split_invariant(Twice(), X)


def test_flags_are_passed_and_paddings_have_no_gradients():
    class Padded(linen.Module):
        @linen.compact
        def __call__(self, x, paddings, train, unused=None):
            # A loop that stops when it wants has no reverse mode.
            longest = jax.lax.while_loop(lambda s: s < paddings.min(), lambda s: s + paddings.max(), jnp.zeros(()))
            mask = (paddings == longest)[:, :, None]
            return jaxbn.linen.BatchNorm(axis_name="batch")(x + longest, not train, mask=mask)

    paddings = np.zeros(X.shape[:2], np.float32)
    paddings[:, 3:] = 1
    assert_split_invariant(Padded(), X, paddings, True)
    assert_split_invariant(Padded(), X, paddings, True, None)


def test_a_batch_that_cannot_be_split_is_an_error():
    with pytest.raises(
        ValueError, match=r"divide the batch, the first axis of all inputs, got 3 and \['float32\[8, 5, 3\]'\]"
    ):
        assert_split_invariant(Linen(), X, parts=3)
    with pytest.raises(TypeError, match=r"must be a flax.linen.Module or a flax.nnx.Module, got function"):
        assert_split_invariant(lambda x: x, X)
