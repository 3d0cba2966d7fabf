"""The batch norms of JAX libraries, each used as its own documentation says, and at its fastest setting.

A peer makes a `Layer` for a workload. Peers that are not installed are left out.
"""

import functools
import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp

import jaxbn
from bench.workloads import Workload


class Layer(NamedTuple):
    """A batch norm layer in training."""

    params: Any
    state: Any
    apply: Callable
    """(params, state, x, residual) -> (y, new state); y includes what is fused"""
    channels_first: bool = False
    """whether it expects [batch, C, ...]"""


def _after(y, fused: str, residual):
    """What a library leaves to its user: the residual and the activation."""
    y = y if residual is None else y + residual
    return jax.nn.relu(y) if fused else y


def _jaxbn(w: Workload, **options) -> Layer:
    chosen = {"use_running_average": False, "activation": "relu" if w.fused else None} | options
    params, state = jaxbn.init(w.shape[-1], num_domains=2 if "domain" in options else None)

    def apply(params, state, x, residual):
        return jaxbn.batch_norm(params, state, x, residual=residual, **chosen)

    return Layer(params, state, apply)


def _jaxbn_traced_choice(w: Workload) -> Layer:
    params, state = jaxbn.init(w.shape[-1])

    def apply(params, state, x, residual):
        # Of the state, so that the program gets it as an argument.
        is_frozen = state["frozen"]
        y, new = _jaxbn(w, use_running_average=is_frozen).apply(params, state["stats"], x, residual)
        return y, {"stats": new, "frozen": is_frozen}

    return Layer(params, {"stats": state, "frozen": jnp.asarray(False)}, apply)


def _flax_linen(w: Workload) -> Layer:
    from flax import linen as nn

    norm = nn.BatchNorm(use_running_average=False, dtype=w.dtype)
    variables = norm.init(jax.random.key(0), jnp.zeros((1,) * (len(w.shape) - 1) + w.shape[-1:], w.dtype))

    def apply(params, state, x, residual):
        y, new = norm.apply({"params": params, "batch_stats": state}, x, mutable=["batch_stats"])
        return _after(y, w.fused, residual), new["batch_stats"]

    return Layer(variables["params"], variables["batch_stats"], apply)


def _flax_nnx(w: Workload) -> Layer:
    from flax import nnx

    norm = nnx.BatchNorm(w.shape[-1], dtype=jnp.dtype(w.dtype), rngs=nnx.Rngs(0))
    graph, params, state = nnx.split(norm, nnx.Param, ...)

    def apply(params, state, x, residual):
        norm = nnx.merge(graph, params, state, copy=True)
        y = norm(x)
        return _after(y, w.fused, residual), nnx.state(norm, nnx.Not(nnx.Param))

    return Layer(params, state, apply)


def _haiku(w: Workload) -> Layer:
    import haiku as hk  # pyright: ignore[reportMissingImports]

    norm = hk.transform_with_state(lambda x: hk.BatchNorm(True, True, 0.99)(x, is_training=True))
    params, state = norm.init(None, jnp.zeros((2, *w.shape[1:-1], w.shape[-1]), w.dtype))

    def apply(params, state, x, residual):
        y, new = norm.apply(params, state, None, x)
        return _after(y.astype(x.dtype), w.fused, residual), new

    return Layer(params, state, apply)


def _equinox(w: Workload) -> Layer:
    import equinox as eqx  # pyright: ignore[reportMissingImports]

    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(w.shape[-1], axis_name="batch", mode="batch")
    params, static = eqx.partition(norm, eqx.is_inexact_array)

    def apply(params, state, x, residual):
        norm = eqx.combine(params, static)
        over_batch = jax.vmap(norm, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        y, new = over_batch(x, state)
        return _after(y.astype(x.dtype), w.fused, residual), new

    return Layer(params, state, apply, channels_first=True)


def _keras(w: Workload) -> Layer:
    import keras  # pyright: ignore[reportMissingImports]

    if keras.backend.backend() != "jax":
        raise ImportError("keras runs on another backend")
    norm = keras.layers.BatchNormalization(dtype="float32" if w.dtype == "float32" else "mixed_bfloat16")
    norm.build((None, *w.shape[1:]))
    params = [v.value for v in norm.trainable_variables]
    state = [v.value for v in norm.non_trainable_variables]

    def apply(params, state, x, residual):
        y, new = norm.stateless_call(params, state, x, training=True)[:2]
        return _after(y, w.fused, residual), new

    return Layer(params, state, apply)


PEERS: dict[str, tuple[str, Callable[[Workload], Layer]]] = {
    # name: (its package, how to make it)
    "jaxbn": ("jaxbn", _jaxbn),
    "flax.linen": ("flax", _flax_linen),
    "flax.nnx": ("flax", _flax_nnx),
    "haiku": ("dm-haiku", _haiku),
    "equinox": ("equinox", _equinox),
    "keras": ("keras", _keras),
}


OPTIONS: dict[str, Callable[[Workload], Layer]] = {
    "jaxbn": _jaxbn,
    "renorm": functools.partial(_jaxbn, renorm=jaxbn.Renorm()),
    "traced choice": _jaxbn_traced_choice,
    "domain=0": functools.partial(_jaxbn, domain=0),
    "domain=(0, 1)": functools.partial(_jaxbn, domain=(0, 1)),
}
"""What an option costs: the layer of jaxbn without any, and with one each."""


def installed(names) -> dict[str, str]:
    """The versions of the peers that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = jaxbn.__version__ if name == "jaxbn" else version(PEERS[name][0])
        except ImportError:
            continue
    return found


def layer(name: str, w: Workload) -> Layer:
    """That of a peer, or of jaxbn with one of OPTIONS."""
    return (PEERS[name][1] if name in PEERS else OPTIONS[name])(w)


def arrays(layer: Layer, w: Workload) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """x, dy and the residual of a workload, in the layout that the layer expects."""
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (w.shape[0], w.shape[-1], *w.shape[1:-1]) if layer.channels_first else w.shape
    x, dy, residual = (jax.random.normal(key, shape).astype(w.dtype) for key in keys)
    return x, dy, residual if w.fused == "residual" else None


def step(layer: Layer) -> Callable:
    """(params, state, x, residual, dy) -> y, new state, gradients: forward and backward in one program."""

    def run(params, state, x, residual, dy):
        y, pullback, new = jax.vjp(
            lambda params, x, residual: layer.apply(params, state, x, residual), params, x, residual, has_aux=True
        )
        return y, new, pullback(dy)

    return run
