"""Small networks with the names of Flax's examples, for the checkpoints of `zoo_torch`."""

import functools

import numpy as np
from flax import linen as nn

import jaxbn.linen
from jaxbn import interop

Norm = functools.partial(jaxbn.linen.BatchNorm, use_running_average=True, **interop.PYTORCH)
Conv = functools.partial(nn.Conv, use_bias=False)


def max_pool(x):
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


class ResNetBlock(nn.Module):
    """Two convolutions and a shortcut."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x):
        y = Conv(self.features, (3, 3), self.stride, 1)(x)
        y = Conv(self.features, (3, 3), padding=1)(nn.relu(Norm()(y)))
        return nn.relu(Norm()(y) + shortcut(x, self.features, self.stride))


class BottleneckResNetBlock(nn.Module):
    """Three convolutions, the middle one grouped, and a shortcut."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x):
        y = nn.relu(Norm()(Conv(self.features, (1, 1))(x)))
        y = nn.relu(Norm()(Conv(self.features, (3, 3), self.stride, 1, feature_group_count=2)(y)))
        y = Norm()(Conv(self.features * 4, (1, 1))(y))
        return nn.relu(y + shortcut(x, self.features * 4, self.stride))


def shortcut(x, features: int, stride: int):
    if x.shape[-1] == features and stride == 1:
        return x
    x = Conv(features, (1, 1), stride, name="conv_proj")(x)
    return Norm(name="norm_proj")(x)


class ResNet(nn.Module):
    """As Flax's ImageNet example, with the padding of PyTorch."""

    block: type[nn.Module]
    sizes: tuple[int, ...] = (2, 1, 2)

    @nn.compact
    def __call__(self, x):
        x = max_pool(nn.relu(Norm(name="bn_init")(Conv(4, (7, 7), 2, 3, name="conv_init")(x))))
        for stage, size in enumerate(self.sizes):
            for i in range(size):
                x = self.block(4 * 2**stage, 2 if stage and not i else 1)(x)
        return nn.Dense(7)(x.mean((1, 2)))


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection."""

    features: int
    stride: int
    expansion: int

    @nn.compact
    def __call__(self, x):
        hidden, y = x.shape[-1] * self.expansion, x
        if self.expansion > 1:
            y = nn.relu6(Norm()(Conv(hidden, (1, 1))(y)))
        y = nn.relu6(Norm()(Conv(hidden, (3, 3), self.stride, 1, feature_group_count=hidden)(y)))
        y = Norm()(Conv(self.features, (1, 1))(y))
        return x + y if y.shape == x.shape else y


BLOCKS = ((4, 1, 1), (6, 2, 6), (6, 1, 6), (8, 2, 6), (8, 1, 6), (8, 1, 6))
"""(features, stride, expansion) of each block"""
STAGES = ((0,), (1, 2), (3, 4, 5))
"""the blocks of each stage, as timm counts them"""


class MobileNetV2(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu6(Norm()(Conv(8, (3, 3), 2, 1)(x)))
        for block in BLOCKS:
            x = InvertedResidual(*block)(x)
        x = nn.relu6(Norm()(Conv(16, (1, 1))(x)))
        return nn.Dense(7)(x.mean((1, 2)))


NETWORKS = {
    "resnet": (ResNet(ResNetBlock), interop.TORCHVISION_RESNET),
    "bottleneck resnet": (ResNet(BottleneckResNetBlock), interop.TORCHVISION_RESNET),
    "mobilenet_v2": (MobileNetV2(), interop.TORCHVISION_MOBILENET_V2),
    "mobilenet_v2 of timm": (MobileNetV2(), interop.TIMM_MOBILENET_V2),
}


def images(n: int) -> np.ndarray:
    """[n, 32, 32, 3] float32, off centre."""
    return np.random.default_rng(0).normal(0.5, 1.0, (n, 32, 32, 3)).astype(np.float32)
