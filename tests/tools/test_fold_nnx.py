"""Folding in nnx: layers of other people's classes, shared and computed weights, transforms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from fold_models import filled

import jaxbn
import jaxbn.nnx

X = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 4, 3)), jnp.float32)


class FlagNorm(jaxbn.nnx.BatchNorm):
    """A call of its own, with another argument, and something of its own around it."""

    def __call__(self, x, training):  # type: ignore[override]
        return nnx.relu(super().__call__(x, use_running_average=not training))


class FlaxFlagNorm(nnx.BatchNorm):
    """The same of Flax's."""

    def __call__(self, x, training):  # type: ignore[override]
        return super().__call__(x, use_running_average=not training)


class Net(nnx.Module):
    """Layers by name, and what runs them."""

    def __init__(self, run, **layers):
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def __call__(self, x, flag):
        assert flag is False
        return self.run(self, x)


def rngs():
    return nnx.Rngs(0)


def norm(features: int = 4, cls=jaxbn.nnx.BatchNorm, **fields):
    return cls(features, **fields, rngs=rngs())


def linear(inputs: int = 3, outputs: int = 4, **fields):
    return nnx.Linear(inputs, outputs, **fields, rngs=rngs())


def conv(**fields):
    return nnx.Conv(3, 4, (2, 2), padding="VALID", **fields, rngs=rngs())


def chain(*layers):
    """A network of layers and functions one after the other."""

    def run(m, x):
        for i, layer in enumerate(layers):
            x = getattr(m, f"l{i}")(x) if isinstance(layer, nnx.Module) else layer(x)
        return x

    return Net(run, **{f"l{i}": layer for i, layer in enumerate(layers) if isinstance(layer, nnx.Module)})


def tied():
    a, b = linear(3, 3), linear(3, 3)
    b.kernel = a.kernel
    return chain(a, norm(3), nnx.relu, b, nnx.relu, linear(), norm())


def attention():
    net = Net(lambda m, x: m.attention(m.norm(x.reshape(2, 16, 3)), decode=False))
    net.norm = norm(3)
    net.attention = nnx.MultiHeadAttention(2, 3, 6, 6, rngs=rngs())
    return net


def adapted():
    layer = nnx.LoRALinear(3, 4, lora_rank=2, rngs=rngs())
    return Net(lambda m, x: m.norm(m.layer(x)), layer=layer, norm=norm())


BOTH = [("l0", "l1")]
CASES = {
    "own call": (lambda: Net(lambda m, x: m.l1(m.l0(x), False), l0=conv(), l1=norm(cls=FlagNorm)), BOTH, {}),
    "own call, Flax": (
        lambda: Net(lambda m, x: m.l1(m.l0(x), training=False), l0=conv(), l1=norm(cls=FlaxFlagNorm)),
        BOTH,
        {},
    ),
    "keywords": (lambda: Net(lambda m, x: m.l1(x=m.l0(inputs=x)), l0=conv(), l1=norm()), BOTH, {}),
    "flatten": (lambda: chain(norm(3), lambda x: x.reshape(2, -1), linear(48)), [("l0", "l2")], {}),
    "general": (lambda: chain(nnx.LinearGeneral(3, (2, 4), rngs=rngs()), norm()), BOTH, {}),
    "general, weights of each part": (
        lambda: chain(nnx.LinearGeneral(3, 4, batch_axis={0: 2}, rngs=rngs()), norm()),
        BOTH,
        {},
    ),
    "general after, weights of each part": (
        lambda: chain(norm(3), nnx.LinearGeneral(3, 4, batch_axis={0: 2}, rngs=rngs())),
        [],
        {"l0": "it has other weights for each part of the batch"},
    ),
    "general after": (lambda: chain(norm(3), nnx.LinearGeneral((4, 3), (2, 4), axis=(1, 3), rngs=rngs())), BOTH, {}),
    "einsum": (lambda: chain(nnx.Einsum("bhwc,dwc->bhd", (4, 4, 3), rngs=rngs()), norm()), BOTH, {}),
    "attention": (attention, [("norm", f"attention/{name}") for name in ("query", "key", "value")], {}),
    "epsilon 0": (lambda: chain(conv(), norm(cls=nnx.BatchNorm, epsilon=0.0)), BOTH, {}),
    "a block under remat": (
        lambda: Net(lambda m, x: nnx.remat(lambda m, x: m.l1(m.l0(x)))(m, x), l0=conv(), l1=norm()),
        BOTH,
        {},
    ),
    "a block under jit": (
        lambda: Net(lambda m, x: nnx.jit(lambda m, x: m.l1(m.l0(x)))(m, x), l0=conv(), l1=norm(cls=nnx.BatchNorm)),
        BOTH,
        {},
    ),
    "tied, and one that is not": (tied, [("l5", "l6")], {"l1": "kernel is used in another place too"}),
    "adapted": (adapted, [], {"norm": "its input is made by `add`"}),
    "spectral norm": (
        lambda: Net(lambda m, x: m.n(m.s(x, update_stats=False)), s=nnx.SpectralNorm(linear(), rngs=rngs()), n=norm()),
        [],
        {"n": "the outputs would change"},
    ),
    "idle": (lambda: Net(lambda m, x: m.l1(m.l0(x)), l0=conv(), l1=norm(), l2=norm()), BOTH, {"l2": "does not call"}),
    "a stack": (
        lambda: Net(
            lambda m, x: nnx.vmap(lambda b, x: b(x), in_axes=(0, None))(m.blocks, x),
            blocks=nnx.vmap(lambda key: nnx.Sequential(linear(), norm()), axis_size=2, in_axes=None)(0),
        ),
        [],
        {"blocks/layers/1": "its variables are stacked"},
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def promoting():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("name", CASES)
def test_what_folds_keeps_the_outputs_and_what_stays_says_why(name):
    make, right, left = CASES[name]
    model = make()
    nnx.update(model, filled(nnx.state(model, nnx.Param, nnx.BatchStat)[0]))
    nnx.update(model, filled(nnx.state(model, nnx.BatchStat)))
    before = jax.tree.map(jnp.copy, nnx.state(model))
    pairs = jaxbn.foldable_pairs(model, jnp.zeros_like(X), False)
    assert pairs == right
    assert set(pairs.left) == set(left)
    assert all(reason in pairs.left[path] for path, reason in left.items()), pairs.left
    if not right:
        with pytest.raises(ValueError, match="no batch norm that can be folded"):
            jaxbn.fold(model, X, False)
        return
    folded = jaxbn.fold(model, X, False)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), before)
    model.eval(), folded.eval()
    y, right = folded(X, False), model(X, False)
    np.testing.assert_allclose(y, right, rtol=0, atol=1e-5 * np.abs(right).max())
