"""A small residual network with jaxbn, for `flax.linen`."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxbn.linen import BatchNorm

WIDTHS = (32, 64, 128)
HE = nn.initializers.he_normal()


class ConvNorm(nn.Module):
    """Convolution, norm, `residual` added if there is one, ReLU."""

    features: int
    norm: str
    train: bool
    kernel_size: int = 3
    stride: int = 1
    activation: str | None = "relu"

    @nn.compact
    def __call__(self, x, residual=None):
        window, strides = (self.kernel_size, self.kernel_size), (self.stride, self.stride)
        # The norm has a bias, and batch norm subtracts any other.
        x = nn.Conv(self.features, window, strides, use_bias=self.norm == "none", kernel_init=HE, name="conv")(x)
        if self.norm == "batch":
            norm = BatchNorm(not self.train, momentum=0.9, activation=self.activation, name="norm")
            return norm(x, residual=residual)  # one pass over memory for all three
        if self.norm != "none":
            # Layer norm is group norm with one group, instance norm has one group per channel (Wu & He 2018).
            groups = {"layer": 1, "group": 8, "instance": self.features}[self.norm]
            x = nn.GroupNorm(groups, name="norm")(x)
        x = x if residual is None else x + residual
        return nn.relu(x) if self.activation == "relu" else x


class Block(nn.Module):
    """Two convolutions with a shortcut around them: the identity, or a 1x1 convolution if the shape changes."""

    features: int
    norm: str
    train: bool
    stride: int

    @nn.compact
    def __call__(self, x):
        options = {"norm": self.norm, "train": self.train}
        y = ConvNorm(self.features, stride=self.stride, name="first", **options)(x)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = ConvNorm(self.features, kernel_size=1, stride=self.stride, activation=None, name="shortcut", **options)(
                x
            )
        return ConvNorm(self.features, name="second", **options)(y, residual=x)


class ResNet(nn.Module):
    """[n, height, width, channels] images -> [n, classes] logits."""

    classes: int
    norm: str = "batch"

    @nn.compact
    def __call__(self, x, train: bool):
        x = ConvNorm(WIDTHS[0], self.norm, train, name="stem")(x)
        for i, width in enumerate(WIDTHS):
            x = Block(width, self.norm, train, stride=1 if i == 0 else 2, name=f"block{i}")(x)
        return nn.Dense(self.classes, name="head")(x.mean((1, 2)))


def create(seed: int, channels: int, classes: int, norm: str):
    """Parameters, running statistics, and `apply(params, batch_stats, x, train) -> (logits, batch_stats)`."""
    model = ResNet(classes, norm)
    variables = model.init(jax.random.key(seed), jnp.zeros((1, 8, 8, channels)), train=False)

    def apply(params, batch_stats, x, train: bool):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updates = model.apply(variables, x, train, mutable=["batch_stats"])
        return logits, updates.get("batch_stats", {})

    return variables["params"], variables.get("batch_stats", {}), apply
