"""The small networks of the study: dense, convolutional and residual, with any norm, on either side of the activation.

Parameters and statistics are lists of dicts, a dict a layer, so that many runs stack into one tree with a leading axis.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxbn

NORMS = ("none", "batch", "layer", "group", "instance")


class Network(NamedTuple):
    """What a network looks like; hashable, so that each is one compiled program."""

    kind: str = "dense"
    """'dense': hidden layers on flattened images; 'conv': 3x3 convolutions, the first at full size, the others at half;
    'residual': the same with a shortcut around each pair of layers after the first two"""
    depth: int = 6
    """hidden layers, each with a norm"""
    width: int = 64
    """features of each hidden layer"""
    norm: str = "batch"
    """one of NORMS"""
    norm_last: bool = False
    """the norm stands after the activation instead of before it"""
    activation: str = "relu"
    virtual_batch_size: int | None = None


class Pass(NamedTuple):
    """One pass through a network."""

    logits: jax.Array
    """[n, classes]"""
    batch_stats: list[dict]
    pre_activations: list[jax.Array]
    """what each hidden layer's activation is given, [n, ..., width]"""
    outputs: list[jax.Array]
    """of each hidden layer, which the next one is given"""


def init(seed: int, network: Network, image: tuple[int, ...], classes: int) -> tuple[list, list]:
    """Parameters and statistics, in NumPy; kernels are normal with variance 2 / fan_in (He et al. 2015)."""
    rng = np.random.default_rng(seed)
    params, batch_stats = [], []
    features = math.prod(image) if network.kind == "dense" else image[-1]
    for _ in range(network.depth):
        shape = (features, network.width) if network.kind == "dense" else (3, 3, features, network.width)
        own, stats = jax.tree.map(np.asarray, jaxbn.init(network.width))
        layer = {"kernel": _normal(rng, shape)}
        layer |= {"bias": own["bias"]} if network.norm == "none" else {"norm": own}
        params.append(layer)
        batch_stats.append(stats if network.norm == "batch" else {})
        features = network.width
    params.append({"kernel": _normal(rng, (features, classes)), "bias": np.zeros(classes, np.float32)})
    return params, batch_stats


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return (math.sqrt(2 / math.prod(shape[:-1])) * rng.normal(size=shape)).astype(np.float32)


def apply(network: Network, params, batch_stats, x, *, train: bool, momentum: float = 0.9) -> Pass:
    """Images [n, height, width, channels] through the network; in training with the statistics of the batch."""
    if network.kind == "dense":
        x = x.reshape(len(x), -1)
    act = ACTIVATIONS[network.activation]
    new, before, outputs = [], [], []
    shortcut = x
    for i, (layer, stats) in enumerate(zip(params[:-1], batch_stats, strict=True)):
        stride = 2 if network.kind != "dense" and i == 1 else 1
        opens, closes = (network.kind == "residual" and i > 1 and i % 2 == side for side in (0, 1))
        shortcut = x if opens else shortcut
        z = _linear(network.kind, layer, x, stride)
        if not network.norm_last:
            z, stats = _norm(network, layer, stats, z, train, momentum)
        z = z + shortcut if closes else z
        before.append(z)
        x = act(z)
        if network.norm_last:
            x, stats = _norm(network, layer, stats, x, train, momentum)
        new.append(stats)
        outputs.append(x)
    if network.kind != "dense":
        x = x.mean((1, 2))
    return Pass(x @ params[-1]["kernel"] + params[-1]["bias"], new, before, outputs)


def _linear(kind: str, layer: dict[str, Any], x: jax.Array, stride: int) -> jax.Array:
    kernel = layer["kernel"]
    if kind != "dense":
        # A convolution with another kernel for each run would be a grouped one, slow on a CPU; a product is not.
        x = _patches(x)[:, ::stride, ::stride]
        kernel = kernel.reshape(-1, kernel.shape[-1])
    y = x @ kernel
    return y + layer["bias"] if "bias" in layer else y


def _patches(x: jax.Array) -> jax.Array:
    """[n, height, width, c] -> [n, height, width, 9 c]: the 3x3 neighbourhood of each pixel, zero outside."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    shifts = [(row, column) for row in range(3) for column in range(3)]
    return jnp.concatenate([padded[:, r : r + height, c : c + width] for r, c in shifts], -1)


def _norm(network: Network, layer, stats, x, train: bool, momentum: float):
    if network.norm == "none":
        return x, stats
    if network.norm == "batch":
        return jaxbn.batch_norm(
            layer["norm"], stats, x,
            use_running_average=not train, momentum=momentum,
            virtual_batch_size=network.virtual_batch_size if train else None,
        )  # fmt: skip
    # Layer norm is group norm with one group, instance norm has one group a feature (Wu & He 2018).
    groups = {"layer": 1, "group": 4, "instance": x.shape[-1]}[network.norm]
    grouped = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    x = jax.nn.standardize(grouped, axis=(1, 3), epsilon=1e-5).reshape(x.shape)
    return x * layer["norm"]["scale"] + layer["norm"]["bias"], stats


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
}
