"""One network with every kind of layer that interop knows, in PyTorch, linen and nnx, under the same names."""

import jax
import numpy as np
from flax import linen as nn
from flax import nnx

import jaxbn.linen
import jaxbn.nnx
from jaxbn import interop

LAYOUTS = {"up": interop.ConvTranspose(), "head": interop.AfterFlatten(8, 8, 6)}


class Linen(nn.Module):
    """Convolutions (plain, grouped, transposed), batch norms, a flattened dense layer."""

    momentum: float | None = 0.9

    @nn.compact
    def __call__(self, x, train: bool = False):
        fields = {**interop.PYTORCH, "momentum": self.momentum}
        x = nn.Conv(8, (3, 3), padding=1, use_bias=False, name="conv")(x)
        x = jaxbn.linen.BatchNorm(not train, name="bn", **fields)(x)
        x = nn.relu(x)
        x = nn.Conv(8, (3, 3), strides=2, padding=1, feature_group_count=4, name="grouped")(x)
        x = jaxbn.linen.BatchNorm(not train, use_scale=False, use_bias=False, name="bare", **fields)(x)
        x = nn.relu(x)
        # PyTorch's padding p is k - 1 - p here.
        x = nn.ConvTranspose(6, (4, 4), strides=(2, 2), padding=((2, 2), (2, 2)), name="up")(x)
        x = jaxbn.linen.BatchNorm(not train, name="last", **fields)(x)
        return nn.Dense(5, name="head")(x.reshape(len(x), -1))


class Nnx(nnx.Module):
    """The same."""

    def __init__(self, rngs: nnx.Rngs):
        fields = {**interop.PYTORCH, "rngs": rngs}
        self.conv = nnx.Conv(3, 8, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.bn = jaxbn.nnx.BatchNorm(8, **fields)
        self.grouped = nnx.Conv(8, 8, (3, 3), strides=2, padding=1, feature_group_count=4, rngs=rngs)
        self.bare = jaxbn.nnx.BatchNorm(8, use_scale=False, use_bias=False, **fields)
        self.up = nnx.ConvTranspose(
            8, 6, (4, 4), strides=(2, 2), padding=((2, 2), (2, 2)), transpose_kernel=True, rngs=rngs
        )
        self.last = jaxbn.nnx.BatchNorm(6, **fields)
        self.head = nnx.Linear(8 * 8 * 6, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.bn(self.conv(x)))
        x = nnx.relu(self.bare(self.grouped(x)))
        x = self.last(self.up(x))
        return self.head(x.reshape(len(x), -1))


def make_torch(torch, momentum: float | None = 0.1):
    """The same in PyTorch, with statistics that are not those of the start."""

    class Torch(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
            self.bn = torch.nn.BatchNorm2d(8, momentum=momentum)
            self.grouped = torch.nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4)
            self.bare = torch.nn.BatchNorm2d(8, affine=False, momentum=momentum)
            self.up = torch.nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1)
            self.last = torch.nn.BatchNorm2d(6, momentum=momentum)
            self.head = torch.nn.Linear(6 * 8 * 8, 5)

        def forward(self, x):
            x = torch.relu(self.bn(self.conv(x)))
            x = torch.relu(self.bare(self.grouped(x)))
            return self.head(torch.flatten(self.last(self.up(x)), 1))

    torch.manual_seed(0)
    model = Torch()
    with torch.no_grad():
        for norm in (model.bn, model.last):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_()
        for _ in range(3):
            model(2 + 3 * torch.randn(4, 3, 8, 8))
    return model


def images(n: int, seed: int = 0) -> np.ndarray:
    """[n, 8, 8, 3] float32, off centre."""
    return np.random.default_rng(seed).normal(1.0, 2.0, (n, 8, 8, 3)).astype(np.float32)


def shapes(model: nn.Module):
    """What `init` would make, without making it."""
    return jax.eval_shape(model.init, jax.random.key(0), images(1))
