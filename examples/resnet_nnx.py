"""A small residual network with jaxbn, for `flax.nnx`."""

import itertools

from flax import nnx

from jaxbn.nnx import BatchNorm

WIDTHS = (32, 64, 128)
HE = nnx.initializers.he_normal()


class ConvNorm(nnx.Module):
    """Convolution, norm, `residual` added if there is one, ReLU."""

    def __init__(self, channels, features, norm, *, kernel_size=3, stride=1, activation: str | None = "relu", rngs):
        window, strides = (kernel_size, kernel_size), (stride, stride)
        # The norm has a bias, and batch norm subtracts any other.
        self.conv = nnx.Conv(channels, features, window, strides, use_bias=norm == "none", kernel_init=HE, rngs=rngs)
        self.activation = activation
        self.norm: BatchNorm | nnx.GroupNorm | None
        if norm == "batch":
            self.norm = BatchNorm(features, momentum=0.9, activation=activation, rngs=rngs)
        elif norm == "none":
            self.norm = None
        else:
            # Layer norm is group norm with one group, instance norm has one group per channel (Wu & He 2018).
            groups = {"layer": 1, "group": 8, "instance": features}[norm]
            self.norm = nnx.GroupNorm(features, groups, rngs=rngs)

    def __call__(self, x, residual=None):
        x = self.conv(x)
        if isinstance(self.norm, BatchNorm):
            return self.norm(x, residual=residual)  # one pass over memory for all three
        x = x if self.norm is None else self.norm(x)
        x = x if residual is None else x + residual
        return nnx.relu(x) if self.activation == "relu" else x


class Block(nnx.Module):
    """Two convolutions with a shortcut around them: the identity, or a 1x1 convolution if the shape changes."""

    def __init__(self, channels, features, norm, *, stride, rngs):
        self.first = ConvNorm(channels, features, norm, stride=stride, rngs=rngs)
        pointwise = {"kernel_size": 1, "stride": stride, "activation": None, "rngs": rngs}
        changes = stride != 1 or channels != features
        self.shortcut = ConvNorm(channels, features, norm, **pointwise) if changes else None
        self.second = ConvNorm(features, features, norm, rngs=rngs)

    def __call__(self, x):
        y = self.first(x)
        return self.second(y, residual=x if self.shortcut is None else self.shortcut(x))


class ResNet(nnx.Module):
    """[n, height, width, channels] images -> [n, classes] logits."""

    def __init__(self, channels: int, classes: int, norm: str = "batch", *, rngs: nnx.Rngs):
        self.stem = ConvNorm(channels, WIDTHS[0], norm, rngs=rngs)
        shapes = enumerate(itertools.pairwise((WIDTHS[0], *WIDTHS)))
        self.blocks = nnx.List([Block(m, n, norm, stride=1 if i == 0 else 2, rngs=rngs) for i, (m, n) in shapes])
        self.head = nnx.Linear(WIDTHS[-1], classes, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


def create(seed: int, channels: int, classes: int, norm: str):
    """Parameters, running statistics, and `apply(params, batch_stats, x, train) -> (logits, batch_stats)`."""
    graph, params, batch_stats = nnx.split(
        ResNet(channels, classes, norm, rngs=nnx.Rngs(seed)), nnx.Param, nnx.BatchStat
    )

    def apply(params, batch_stats, x, train: bool):
        model = nnx.merge(graph, params, batch_stats, copy=True)
        model.train() if train else model.eval()
        logits = model(x)
        return logits, nnx.state(model, nnx.BatchStat)

    return params, batch_stats, apply
