"""Small versions of networks as people write them, each beside itself in float64 NumPy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxbn
import jaxbn.linen
import jaxbn.nnx

_RANDOM = np.random.default_rng(0)
BOTH = ("batch_moments", "batch_stats")
STACKED = ("params", "batch_stats")
"""the entries of `variable_axes` that training needs, and no others"""


class Network(NamedTuple):
    """A network, data, and what enters its batch norms in training."""

    model: Any
    """linen variables, or an nnx module"""
    forward: Callable[[Any, Any], Any]
    """(model, batch), in training, as the tools take it"""
    batches: list[Any]
    entering: Callable[[Any], dict]
    """batch -> {path: [n, C] float64, rows without paddings}; of a stack [L, n, C]"""
    module: Any = None
    """of linen"""
    call: tuple = ()
    """further arguments of its call"""


def draw(*shape):
    return _RANDOM.normal(size=shape).astype(np.float32)


def normalized(x):
    """[n, C], by its own statistics."""
    return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)


def of_linen(module, batches, entering, *call):
    variables = module.init(jax.random.key(0), *jax.tree.leaves(batches[0]), *call)

    def forward(variables, batch):
        return module.apply(variables, *jax.tree.leaves(batch), *call, mutable=BOTH)

    return Network(variables, forward, batches, lambda batch: entering(variables["params"], batch), module, call)


def classifier(axis_name=None):
    """Trains where its statistics may be written, as jax-resnet and its like decide."""

    class Classifier(nn.Module):
        @nn.compact
        def __call__(self, x):
            evaluate = not self.is_mutable_collection("batch_stats")
            norm = lambda name: jaxbn.linen.BatchNorm(evaluate, momentum=0.9, axis_name=axis_name, name=name)  # noqa: E731
            x = nn.relu(norm("stem")(x))
            x = x + nn.relu(norm("block")(nn.Conv(3, (1, 1), use_bias=False, name="conv")(x)))
            return nn.Dense(2, name="head")(x.mean((1, 2)))

    def entering(params, x):
        x = np.float64(x).reshape(-1, 3)
        inner = np.maximum(normalized(x), 0) @ np.float64(params["conv"]["kernel"])[0, 0]
        return {("stem",): x, ("block",): inner}

    return of_linen(Classifier(), [5 + draw(n, 4, 4, 3) for n in (2, 3)], entering)


def critics(axis_name=None):
    """An ensemble of two critics of observations and actions, by nn.vmap with the entries that training needs."""

    class Critic(nn.Module):
        @nn.compact
        def __call__(self, observation, action, train):
            x = jnp.concatenate([observation, action], -1)
            x = jaxbn.linen.BatchNorm(not train, axis_name=axis_name, name="first")(x)
            x = nn.relu(nn.Dense(4, use_bias=False, name="hidden")(x))
            return nn.Dense(1)(jaxbn.linen.BatchNorm(not train, axis_name=axis_name, name="second")(x))

    class Critics(nn.Module):
        stacked: tuple[str, ...] = STACKED

        @nn.compact
        def __call__(self, observation, action, train):
            axes = dict.fromkeys(self.stacked, 0)
            ensemble = nn.vmap(Critic, axes, {"params": True}, in_axes=(None, None, None), axis_size=2)
            return ensemble(name="ensemble")(observation, action, train)

    def entering(params, batch):
        x = np.float64(np.concatenate(batch, -1))
        inner = [np.maximum(normalized(x) @ np.float64(k), 0) for k in params["ensemble"]["hidden"]["kernel"]]
        return {("ensemble", "first"): np.stack([x, x]), ("ensemble", "second"): np.stack(inner)}

    return of_linen(Critics(), [(3 + draw(n, 4), draw(n, 2)) for n in (8, 6)], entering, True)


def speech(axis_name=None):
    """Padded batches through a subclass that makes the mask from paddings."""

    class PaddedNorm(jaxbn.linen.BatchNorm):
        @nn.compact
        def __call__(self, x, paddings, train):
            return super().__call__(x, not train, mask=(paddings == 0)[:, :, None])

    class Speech(nn.Module):
        @nn.compact
        def __call__(self, x, paddings, train):
            x = nn.silu(PaddedNorm(axis_name=axis_name, name="first")(x, paddings, train))
            return PaddedNorm(axis_name=axis_name, name="second")(
                nn.Dense(4, use_bias=False, name="dense")(x), paddings, train
            )

    def entering(params, batch):
        x = np.float64(batch[0])[batch[1] == 0]
        y = normalized(x)
        inner = y / (1 + np.exp(-y)) @ np.float64(params["dense"]["kernel"])
        return {("first",): x, ("second",): inner}

    def batch(*lengths):
        paddings = (np.arange(6) >= np.array(lengths)[:, None]).astype(np.float32)
        return np.where(paddings[:, :, None] == 1, np.float32(1e6), 2 + draw(len(lengths), 6, 3)), paddings

    return of_linen(Speech(), [batch(6, 2, 4, 1), batch(1, 5)], entering, True)


def scanned_blocks(axis_name=None):
    """Blocks in nn.scan over nn.remat."""

    class Block(nn.Module):
        train: bool

        @nn.compact
        def __call__(self, x, _):
            return jnp.tanh(jaxbn.linen.BatchNorm(not self.train, axis_name=axis_name, name="bn")(x)) + x, None

    class Blocks(nn.Module):
        stacked: tuple[str, ...] = STACKED

        @nn.compact
        def __call__(self, x, train):
            axes = dict.fromkeys(self.stacked, 0)
            blocks = nn.scan(nn.remat(Block), axes, split_rngs={"params": True}, length=3)
            return blocks(train, name="blocks")(x, None)[0]

    def entering(params, x):
        x, inputs = np.float64(x), []
        for _ in range(3):
            inputs.append(x)
            x = np.tanh(normalized(x)) + x
        return {("blocks", "bn"): np.stack(inputs)}

    return of_linen(Blocks(), [1 + draw(n, 3) for n in (8, 6)], entering, True)


def nnx_with_dropout(axis_name=None):
    """Dropout before a norm: another mask for each batch."""

    class Dropped(nnx.Module):
        def __init__(self):
            self.first = jaxbn.nnx.BatchNorm(3, axis_name=axis_name, rngs=nnx.Rngs(0))
            self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=1))
            self.second = jaxbn.nnx.BatchNorm(3, axis_name=axis_name, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.second(self.drop(self.first(x)))

    batches = [2 + draw(n, 3) for n in (8, 6)]
    twin = Dropped()
    kept = {id(x): np.asarray(twin.drop(jnp.ones(x.shape))) for x in batches}

    def entering(x):
        return {("first",): np.float64(x), ("second",): normalized(np.float64(x)) * kept[id(x)]}

    return Network(Dropped(), lambda model, x: model(x), batches, entering)


def clean_and_adversarial(axis_name=None):
    """Half of each batch is clean, half is attacked, and each half has running statistics of its own."""

    class Halves(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            norm = lambda name: jaxbn.linen.BatchNorm(not train, num_domains=2, axis_name=axis_name, name=name)  # noqa: E731
            x = nn.relu(norm("first")(x, domain=(0, 1)))
            return norm("second")(nn.Dense(3, use_bias=False, name="hidden")(x), domain=(0, 1))

    def entering(params, x):
        halves = np.float64(np.stack(np.split(x, 2)))
        inner = [np.maximum(normalized(half), 0) @ np.float64(params["hidden"]["kernel"]) for half in halves]
        return {("first",): halves, ("second",): np.stack(inner)}

    batches = [np.concatenate([draw(n, 3), 3 + 2 * draw(n, 3)]) for n in (8, 6)]
    return of_linen(Halves(), batches, entering, True)


def nnx_stack(axis_name=None):
    """Layers made by nnx.vmap, called by nnx.scan over nnx.remat."""

    class Stack(nnx.Module):
        def __init__(self):
            make = nnx.vmap(lambda rngs: jaxbn.nnx.BatchNorm(3, axis_name=axis_name, rngs=rngs), in_axes=0)
            self.bn = make(nnx.Rngs(0).split(2))

        def __call__(self, x):
            body = nnx.remat(lambda bn, x: 2 * jnp.tanh(bn(x)))
            return nnx.scan(body, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(self.bn, x)

    def entering(x):
        x = np.float64(x)
        return {("bn",): np.stack([x, 2 * np.tanh(normalized(x))])}

    return Network(Stack(), lambda model, x: model(x), [1 + draw(n, 3) for n in (8, 6)], entering)


NETWORKS = {
    "a train flag by mutability": classifier,
    "an ensemble of critics": critics,
    "padded speech": speech,
    "scanned blocks": scanned_blocks,
    "clean and adversarial halves": clean_and_adversarial,
    "nnx with dropout": nnx_with_dropout,
    "an nnx stack": nnx_stack,
}
