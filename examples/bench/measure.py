"""The measurements, each a row of numbers for one peer on one workload."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench import peers
from bench.compilers import compile_for, forward_and_backward
from bench.networks import NETWORKS, conv
from bench.steps import training_step
from bench.traffic import cycles, traffic
from bench.workloads import Workload

Row = dict[str, Any]


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), tree)


def layer_traffic(device: str, peer: str, w: Workload) -> Row:
    """Bytes per element and kernels of the forward and of the backward pass, and what is kept between them."""
    layer = peers.layer(peer, w)
    x, _, residual = jax.eval_shape(lambda: peers.arrays(layer, w))

    def forward(given, x):
        params, residual = given
        return layer.apply(params, layer.state, x, residual)

    *programs, kept = forward_and_backward(device, forward, *_shapes(((layer.params, residual), x)))
    there, back = (traffic(p.as_text(), w.elements) for p in programs)
    return {
        "forward [B/element]": there.bytes / w.elements,
        "backward [B/element]": back.bytes / w.elements,
        "both [B/element]": (there.bytes + back.bytes) / w.elements,
        "limit": sum(w.limit),
        "kernels": there.kernels + back.kernels,
        "kept [B/element]": round(kept / w.elements, 2),
    }


def together(device: str, peer: str, w: Workload) -> Row:
    """Bytes an element and kernels of the forward and the backward pass in one program; `peer` may be an option."""
    layer = peers.layer(peer, w)
    x, dy, residual = jax.eval_shape(lambda: peers.arrays(layer, w))
    program = compile_for(device, peers.step(layer), *_shapes((layer.params, layer.state)), x, residual, dy)
    found = traffic(program.as_text(), w.elements)
    return {
        "together [B/element]": found.bytes / w.elements,
        "kernels together": found.kernels,
        "limit": sum(w.limit),
    }


def step_traffic(device: str, peer: str, network: str, dtype: str) -> Row:
    """Those of a whole training step: bytes per element that is normalized, and the memory that the step needs."""
    step = training_step(NETWORKS[network][device != "here"](), peer, dtype)
    program = compile_for(device, step.run, *_shapes(step.args))
    found = traffic(program.as_text(), step.smallest)
    activations = step.elements * jnp.dtype(dtype).itemsize
    estimate = cycles(program.as_text())
    return {
        **({"cycles [M]": estimate / 1e6} if estimate else {}),
        "outside products [B/element]": round(found.bytes_outside_products / step.elements, 2),
        "all [B/element]": round(found.bytes / step.elements, 2),
        "kernels": found.kernels,
        "memory [activations]": round(program.memory_analysis().temp_size_in_bytes / activations, 2),
    }


def checkpoint_memory(device: str, peer: str, *, policy: Callable | None = None, depth: int = 20) -> Row:
    """Temporary memory of a step of `depth` layers of convolution, batch norm and ReLU, in activations.

    Each batch norm with its ReLU and the next convolution is a checkpoint of that policy; no checkpoints where it is
    None.
    """
    w = Workload("layer", "float32", "relu", (32, 28, 28, 128))
    layer = peers.layer(peer, w)

    def block(params, state, weights, x):
        y, new = layer.apply(params, state, x, None)
        return y if weights is None else conv(y, weights), new

    block = block if policy is None else jax.checkpoint(block, policy=policy)

    def loss(params, weights, states, x):
        y, new = conv(x, weights[0]), []
        for given in zip(params, states, [*weights[1:], None], strict=True):
            y, state = block(*given, y)
            new.append(state)
        return jnp.mean(jnp.square(y)), new

    params, states = ([v] * depth for v in _shapes((layer.params, layer.state)))
    kernels = [jax.ShapeDtypeStruct((3, 3, 128, 128), jnp.float32)] * depth
    step = jax.value_and_grad(loss, (0, 1), has_aux=True)
    program = compile_for(device, step, params, kernels, states, jax.ShapeDtypeStruct(w.shape, jnp.float32))
    return {"memory [activations]": program.memory_analysis().temp_size_in_bytes / (4 * w.elements)}


def variance_error(peer: str, offset: float) -> float:
    """Relative error of the batch variance if the mean is `offset` standard deviations, in float32, from a cold start.

    It is read off the output, whose variance is that of the batch divided by the one that the layer computed.
    """
    w = Workload("accuracy", "float32", "", (4096, 64))
    layer = peers.layer(peer, w)
    # Times 100, so that epsilon does not show.
    x = (100 * (np.random.default_rng(0).normal(size=w.shape) + offset)).astype(np.float32)
    y, _ = jax.jit(functools.partial(layer.apply, layer.params, layer.state))(x, None)
    return float(np.abs(1 / np.asarray(y, np.float64).var(0) - 1).max())


def timed_layer(peer: str, w: Workload):
    """A function without arguments that runs the layer once, forward and backward in one program."""
    layer = peers.layer(peer, w)
    x, dy, residual = peers.arrays(layer, w)
    run = jax.jit(peers.step(layer))
    return lambda: jax.block_until_ready(run(layer.params, layer.state, x, residual, dy))


def timed_step(peer: str, network: str, dtype: str):
    """The same for a whole training step."""
    step = training_step(NETWORKS[network][jax.default_backend() != "cpu"](), peer, dtype)
    run = jax.jit(step.run)
    return lambda: jax.block_until_ready(run(*step.args))
