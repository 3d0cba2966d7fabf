"""The networks of the benchmark: batch norm after every convolution or matrix product, up to a whole ResNet-50."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Norm = Callable[[int, jax.Array, jax.Array | None], jax.Array]
"""(number of the layer, x, residual) -> y, ReLU included"""


class Network(NamedTuple):
    """Weights, and at most as many batch norms."""

    input: tuple[int, ...]
    weights: list[tuple[int, ...]]
    outputs: list[tuple[int, ...]]
    """shape of the input of each batch norm"""
    fused: list[str]
    apply: Callable[[list[jax.Array], jax.Array, Norm], jax.Array]


def conv(x: jax.Array, w: jax.Array, stride: int = 1) -> jax.Array:
    return jax.lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


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
            x = norm(i, conv(x, w), None)
        return x

    shape = (batch, size, size, channels)
    return Network(shape, [(3, 3, channels, channels)] * depth, [shape] * depth, ["relu"] * depth, apply)


def bottleneck_stack(blocks: int, batch: int, size: int, channels: int) -> Network:
    """The bottleneck blocks of ResNet-50 (He et al. 2015, table 1): 1x1, 3x3, 1x1 to four times the channels."""
    wide = 4 * channels

    def apply(weights, x, norm):
        for i in range(0, len(weights), 3):
            y = norm(i, conv(x, weights[i]), None)
            y = norm(i + 1, conv(y, weights[i + 1]), None)
            x = norm(i + 2, conv(y, weights[i + 2]), x)
        return x

    image = (batch, size, size)
    weights = [(1, 1, wide, channels), (3, 3, channels, channels), (1, 1, channels, wide)] * blocks
    outputs = [(*image, channels), (*image, channels), (*image, wide)] * blocks
    return Network((*image, wide), weights, outputs, ["relu", "relu", "residual"] * blocks, apply)


def resnet50(batch: int, size: int) -> Network:
    """All of ResNet-50 (He et al. 2015, table 1), the stride in the 3x3 convolutions, for images of size x size."""
    images = (batch, size, size, 3)
    weights, outputs, fused, strides = [], [], [], []

    def layer(kernel: int, channels: tuple[int, int], size: int, stride: int, after: str) -> None:
        weights.append((kernel, kernel, *channels))
        outputs.append((batch, size, size, channels[1]))
        fused.append(after)
        strides.append(stride)

    size = size // 2
    layer(7, (3, 64), size, 2, "relu")
    size, channels = size // 2, 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        narrow = 64 * 2**stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            layer(1, (channels, narrow), size, 1, "relu")
            size = size // stride
            layer(3, (narrow, narrow), size, stride, "relu")
            if not block:
                layer(1, (channels, 4 * narrow), size, stride, "")
            layer(1, (narrow, 4 * narrow), size, 1, "residual")
            channels = 4 * narrow
    weights.append((channels, 1000))

    def apply(weights, x, norm):
        x = norm(0, conv(x, weights[0], 2), None)
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
        y = shortcut = x
        for i in range(1, len(fused)):
            if fused[i] == "residual":
                x = y = shortcut = norm(i, conv(y, weights[i]), shortcut)
            elif fused[i] == "":
                shortcut = norm(i, conv(x, weights[i], strides[i]), None)
            else:
                y = norm(i, conv(y, weights[i], strides[i]), None)
        return x.mean((1, 2)) @ weights[-1]

    return Network(images, weights, outputs, fused, apply)


NETWORKS = {
    # as measured by time, on a CPU too; as compiled for a GPU or TPU
    "bottleneck-stack": (lambda: bottleneck_stack(2, 8, 28, 64), lambda: bottleneck_stack(3, 32, 28, 128)),
    "conv-stack": (lambda: conv_stack(4, 8, 28, 64), lambda: conv_stack(8, 32, 28, 128)),
    "dense-stack": (lambda: dense_stack(8, 2048, 256), lambda: dense_stack(8, 4096, 1024)),
    "resnet50": (lambda: resnet50(4, 64), lambda: resnet50(128, 224)),
}
