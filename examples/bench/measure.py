"""The measurements, each a row of numbers for one peer on one workload."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench import peers
from bench.compilers import compile_for, forward_and_backward
from bench.networks import NETWORKS
from bench.steps import training_step
from bench.traffic import cycles, traffic
from bench.workloads import Workload

Row = dict[str, Any]


def layer_traffic(device: str, peer: str, w: Workload) -> Row:
    """Bytes per element and kernels of the forward and of the backward pass, and what is kept between them."""
    layer = peers.layer(peer, w)
    x, _, residual = peers.arrays(layer, w)

    def forward(given, x):
        params, residual = given
        return layer.apply(params, layer.state, x, residual)

    shapes = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), ((layer.params, residual), x))
    *programs, kept = forward_and_backward(device, forward, *shapes)
    there, back = (traffic(p.as_text(), w.elements) for p in programs)
    return {
        "forward [B/element]": there.bytes / w.elements,
        "backward [B/element]": back.bytes / w.elements,
        "both [B/element]": (there.bytes + back.bytes) / w.elements,
        "limit": sum(w.limit),
        "kernels": there.kernels + back.kernels,
        "kept [B/element]": round(kept / w.elements, 2),
    }


def step_traffic(device: str, peer: str, network: str, dtype: str) -> Row:
    """Those of a whole training step: bytes per element that is normalized, and the memory that the step needs."""
    step = training_step(NETWORKS[network][device != "here"](), peer, dtype)
    shapes = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), step.args)
    program = compile_for(device, step.run, *shapes)
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
