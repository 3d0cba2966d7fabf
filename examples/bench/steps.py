"""Whole training steps: networks whose every layer is batch norm after a convolution or a matrix product."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bench import peers
from bench.workloads import Workload

Norm = Callable[[int, jax.Array, jax.Array | None], jax.Array]
"""(number of the layer, x, residual) -> y, ReLU included"""


class Network(NamedTuple):
    """A stack of layers, one weight and one batch norm each."""

    input: tuple[int, ...]
    weights: list[tuple[int, ...]]
    outputs: list[tuple[int, ...]]
    """shape that each batch norm is given"""
    fused: list[str]
    apply: Callable[[list[jax.Array], jax.Array, Norm], jax.Array]


def _conv(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def dense_stack(depth: int, batch: int, features: int) -> Network:
    """Dense → batch norm → ReLU, `depth` times."""

    def apply(weights, x, norm):
        for i, w in enumerate(weights):
            x = norm(i, x @ w, None)
        return x

    shape = (batch, features)
    return Network(shape, [(features, features)] * depth, [shape] * depth, ["relu"] * depth, apply)


def conv_stack(depth: int, batch: int, size: int, channels: int) -> Network:
    """3x3 convolution → batch norm → ReLU, `depth` times."""

    def apply(weights, x, norm):
        for i, w in enumerate(weights):
            x = norm(i, _conv(x, w), None)
        return x

    shape = (batch, size, size, channels)
    return Network(shape, [(3, 3, channels, channels)] * depth, [shape] * depth, ["relu"] * depth, apply)


def bottleneck_stack(blocks: int, batch: int, size: int, channels: int) -> Network:
    """The bottleneck blocks of ResNet-50 (He et al. 2015, table 1): 1x1, 3x3, 1x1 to four times the channels."""
    wide = 4 * channels

    def apply(weights, x, norm):
        for i in range(0, len(weights), 3):
            y = norm(i, _conv(x, weights[i]), None)
            y = norm(i + 1, _conv(y, weights[i + 1]), None)
            x = norm(i + 2, _conv(y, weights[i + 2]), x)
        return x

    image = (batch, size, size)
    weights = [(1, 1, wide, channels), (3, 3, channels, channels), (1, 1, channels, wide)] * blocks
    outputs = [(*image, channels), (*image, channels), (*image, wide)] * blocks
    return Network((*image, wide), weights, outputs, ["relu", "relu", "residual"] * blocks, apply)


NETWORKS = {
    # as measured by time, on a CPU too; as compiled for a GPU or TPU
    "bottleneck-stack": (lambda: bottleneck_stack(2, 8, 28, 64), lambda: bottleneck_stack(3, 32, 28, 128)),
    "conv-stack": (lambda: conv_stack(4, 8, 28, 64), lambda: conv_stack(8, 32, 28, 128)),
    "dense-stack": (lambda: dense_stack(8, 2048, 256), lambda: dense_stack(8, 4096, 1024)),
}


class Step(NamedTuple):
    """A training step and what it is given."""

    run: Callable
    """(weights, params, states, x) -> the same three after the step, and the loss"""
    args: tuple[Any, ...]
    elements: int
    """of all activations that are normalized"""
    smallest: int
    """elements of the smallest of them"""


def training_step(network: Network, peer: str, dtype: str) -> Step:
    """Stochastic gradient descent on the mean square of the output; the weights are float32, the arithmetic `dtype`."""
    layers = [
        peers.layer(peer, Workload(f"layer {i}", dtype, fused, shape))
        for i, (fused, shape) in enumerate(zip(network.fused, network.outputs, strict=True))
    ]

    def loss_of(weights, params, states, x):
        new = [None] * len(layers)

        def norm(i, x, residual):
            y, new[i] = layers[i].apply(params[i], states[i], x, residual)
            return y

        y = network.apply([w.astype(dtype) for w in weights], x, norm)
        return jnp.mean(jnp.square(y.astype(jnp.float32))), new

    def run(weights, params, states, x):
        (loss, states), grads = jax.value_and_grad(loss_of, (0, 1), has_aux=True)(weights, params, states, x)
        weights, params = jax.tree.map(lambda p, g: p - jnp.asarray(0.1, p.dtype) * g, (weights, params), grads)
        return weights, params, states, loss

    keys = iter(jax.random.split(jax.random.key(0), len(layers) + 1))
    weights = [jax.random.normal(next(keys), s) / math.sqrt(math.prod(s[:-1])) for s in network.weights]
    x = jax.random.normal(next(keys), network.input).astype(dtype)
    sizes = [math.prod(s) for s in network.outputs]
    args = weights, [layer.params for layer in layers], [layer.state for layer in layers], x
    return Step(run, args, sum(sizes), min(sizes))
