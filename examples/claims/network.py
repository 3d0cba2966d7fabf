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
    """'dense': hidden layers on flattened images; 'conv': 3x3 convolutions, the first two with stride 2;
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
    noise: bool = False
    """dense: after each norm, noise of a new mean and deviation in each step (Santurkar et al. 2018, section 2.2)"""
    statistics: str = "both"
    """of batch norm: 'both', or 'mean' or 'variance' only, for the exercises"""
    affine: bool = True
    """the norm has a scale and a bias"""
    bias: bool = False
    """the layer before the norm has a bias too"""
    branches_from_zero: bool = False
    """dense: each layer after the first adds to its input, times a number that starts at 0 (De & Smith 2020)"""


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
    rng = np.random.default_rng([seed, 1])
    params, batch_stats = [], []
    features = math.prod(image) if network.kind == "dense" else image[-1]
    for i in range(network.depth):
        shape = (features, network.width) if network.kind == "dense" else (3, 3, features, network.width)
        own, stats = jax.tree.map(
            np.asarray, jaxbn.init(network.width, use_scale=network.affine, use_bias=network.affine)
        )
        layer = {"kernel": _normal(rng, shape)}
        layer |= {} if network.norm == "none" else {"norm": own}
        layer |= {"bias": np.zeros(network.width, np.float32)} if network.norm == "none" or network.bias else {}
        layer |= {"branch": np.zeros((), np.float32)} if network.branches_from_zero and i else {}
        params.append(layer)
        batch_stats.append(stats if network.norm == "batch" else {})
        features = network.width
    params.append({"kernel": _normal(rng, (features, classes)), "bias": np.zeros(classes, np.float32)})
    return params, batch_stats


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return (math.sqrt(2 / math.prod(shape[:-1])) * rng.normal(size=shape)).astype(np.float32)


def apply(network: Network, params, batch_stats, x, *, train: bool, momentum: float = 0.9, noise_key=None) -> Pass:
    """Images [n, height, width, channels] through the network; in training with the statistics of the batch.

    Args:
      network: what it looks like.
      params, batch_stats: as of `init`.
      x: [n, height, width, channels] float32.
      train: normalize with the statistics of the batch, and move the running ones.
      momentum: of the running statistics.
      noise_key: of a network with noise; without a key there is none.
    """
    if network.kind == "dense":
        x = x.reshape(len(x), -1)
    act = ACTIVATIONS[network.activation]
    new, before, outputs = [], [], []
    shortcut = x
    noise = _Noise.draw(noise_key, network.depth, len(x), network.width) if noise_key is not None else None
    for i, (layer, stats) in enumerate(zip(params[:-1], batch_stats, strict=True)):
        stride = 2 if network.kind != "dense" and i < 2 else 1
        opens, closes = (network.kind == "residual" and i > 1 and i % 2 == side for side in (0, 1))
        shortcut = x if opens else shortcut
        given = x
        z = _linear(network.kind, layer, x, stride)
        if not network.norm_last:
            z, stats = _norm(network, layer, stats, z, train, momentum)
        z = noise.on(i, z) if noise else z
        z = z + shortcut if closes else z
        before.append(z)
        x = act(z)
        if network.norm_last:
            x, stats = _norm(network, layer, stats, x, train, momentum)
        x = given + layer["branch"] * x if "branch" in layer else x
        new.append(stats)
        outputs.append(x)
    if network.kind != "dense":
        x = x.mean((1, 2))
    return Pass(x @ params[-1]["kernel"] + params[-1]["bias"], new, before, outputs)


def _linear(kind: str, layer: dict[str, Any], x: jax.Array, stride: int) -> jax.Array:
    kernel = layer["kernel"]
    if kind != "dense":
        # A convolution with another kernel for each run would be a grouped one, slow on a CPU; a product is not.
        patches = _patches(x, stride)
        y = patches.reshape(-1, patches.shape[-1]) @ kernel.reshape(-1, kernel.shape[-1])
        y = y.reshape(*patches.shape[:-1], -1)
    else:
        y = x @ kernel
    return y + layer["bias"] if "bias" in layer else y


def _patches(x: jax.Array, stride: int) -> jax.Array:
    """[n, height, width, c] -> [n, height / stride, width / stride, 9 c]: neighbourhoods of 3x3, zero outside."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    shifts = [(row, column) for row in range(3) for column in range(3)]
    return jnp.concatenate([padded[:, r : r + height : stride, c : c + width : stride] for r, c in shifts], -1)


def _norm(network: Network, layer, stats, x, train: bool, momentum: float):
    if network.norm == "none":
        return x, stats
    if network.statistics != "both":
        return _half(network, layer, stats, x, train, momentum)
    if network.norm == "batch":
        return jaxbn.batch_norm(
            layer["norm"], stats, x,
            use_running_average=not train, momentum=momentum,
            virtual_batch_size=network.virtual_batch_size if train else None,
        )  # fmt: skip
    if network.norm == "instance":
        x = jax.nn.standardize(x, axis=tuple(range(1, x.ndim - 1)), epsilon=1e-5)
    else:  # layer norm is group norm with one group (Wu & He 2018)
        groups = {"layer": 1, "group": 4}[network.norm]
        grouped = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
        x = jax.nn.standardize(grouped, axis=(1, 3), epsilon=1e-5).reshape(x.shape)
    return x * layer["norm"]["scale"] + layer["norm"]["bias"], stats


def _half(network: Network, layer, stats, x, train: bool, momentum: float):
    """Batch norm that only subtracts the mean, or only divides by the deviation."""
    moments = jaxbn.batch_moments(x)
    mean, var = (moments.mean, moments.var) if train else (stats["mean"], stats["var"])
    stats = jaxbn.update_batch_stats(stats, moments, momentum=momentum) if train else stats
    mean, var = (mean, jnp.ones_like(var)) if network.statistics == "mean" else (jnp.zeros_like(mean), var)
    return jaxbn.normalize(layer["norm"], x, mean, var, epsilon=1e-5), stats


class _Noise(NamedTuple):
    """The noise of all layers, uniform in [-1, 1), in one draw: random numbers compile slowly."""

    of_feature: jax.Array
    """[layers, 2, width], the same for all examples"""
    of_element: jax.Array
    """[layers, 2, n, width]"""

    @classmethod
    def draw(cls, key: jax.Array, layers: int, examples: int, width: int) -> "_Noise":
        numbers = jax.random.uniform(key, (layers, 2, examples + 1, width), minval=-1.0)
        return cls(numbers[:, :, -1], numbers[:, :, :-1])

    def on(self, layer: int, z: jax.Array) -> jax.Array:
        """Each feature times one number and plus another, those of the step, and of each element a little besides."""
        mean, deviation = 0.5 * self.of_feature[layer, 0], 1 + 0.25 * self.of_feature[layer, 1]
        own_mean, own_deviation = 0.1 * self.of_element[layer]
        return z * (deviation + own_deviation) + mean + own_mean


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
}
