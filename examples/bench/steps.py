"""Whole training steps of the networks, with the batch norm of a peer."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bench import peers
from bench.networks import Network
from bench.workloads import Workload


class Step(NamedTuple):
    """A training step and its arguments."""

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

    keys = iter(jax.random.split(jax.random.key(0), len(network.weights) + 1))
    weights = [jax.random.normal(next(keys), s) / math.sqrt(math.prod(s[:-1])) for s in network.weights]
    x = jax.random.normal(next(keys), network.input).astype(dtype)
    sizes = [math.prod(s) for s in network.outputs]
    args = weights, [layer.params for layer in layers], [layer.state for layer in layers], x
    return Step(run, args, sum(sizes), min(sizes))
