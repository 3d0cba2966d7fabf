"""Where a batch norm does not fold: small linen networks, each with the reason."""

import jax.numpy as jnp
from flax import linen as nn
from fold_layers import Adapted, OfKernel, Place, conv, dense, norm, standardized, variable
from fold_places import MASK


def kernel_read_twice(m, x):
    y = norm()(dense(features=3)(x))
    return y @ (jnp.ones((3, 3)) if m.is_initializing() else variable(m, "params", "dense", "kernel"))


def kernel_read_before(m, x):
    y = x @ (jnp.ones((3, 3)) if m.is_initializing() else variable(m, "params", "dense", "kernel"))
    return norm()(dense(features=3)(y))


def double_kernel_returned(m, x):
    made = []

    def double(kernel):
        made.append(2.0 * kernel)
        return made[-1]

    return norm()(OfKernel(4, (2, 2), change=double, name="conv")(x)), made[-1]


def returned_too(collection: str, layer: str, name: str):
    def run(m, x):
        return norm()(dense()(x)), 0 if m.is_initializing() else variable(m, collection, layer, name)

    return run


def residual(m, x):
    y = conv()(x)
    return dense()(norm()(y) + y)


def own_residual(m, x):
    y = conv()(x)
    return norm()(y, residual=y)


def output_returned(m, x):
    y = conv()(x)
    return norm()(y), y


def normalized_returned(m, x):
    y = norm()(x)
    return dense()(y), y


def called_twice(m, x):
    layer = dense(features=3)
    return norm()(layer(layer(x)))


def one_without_bias(m, x):
    y = norm()(x)
    return dense("a")(y), dense("b", use_bias=False)(y)


PADDED = "pads its input with zeros"
CHANGE = "the outputs would change: weights are computed from others"
USED = "is used in another place too"
READ = "is read by others than norm too"
RUN = {
    # Weights that are computed from others, whatever these are now, or read elsewhere.
    "weight norm": (lambda m, x: norm()(nn.WeightNorm(nn.Dense(4))(x)), CHANGE),
    "spectral norm": (lambda m, x: norm()(nn.SpectralNorm(nn.Dense(4))(x, update_stats=False)), CHANGE),
    "standardized": (lambda m, x: norm()(OfKernel(4, (2, 2), change=standardized, name="layer")(x)), CHANGE),
    "mixed a little": (
        lambda m, x: norm()(OfKernel(4, (2, 2), change=lambda k: k + 0.03 * k.mean(-1, keepdims=True))(x)),
        CHANGE,
    ),
    "adapted, by 0 now": (lambda m, x: norm()(Adapted()(x)), CHANGE),
    "kernel read twice": (kernel_read_twice, f"dense: its kernel {USED}"),
    "kernel read before": (kernel_read_before, f"dense: its kernel {USED}"),
    "kernel returned": (returned_too("params", "dense", "kernel"), f"dense: its kernel {USED}"),
    "double kernel returned": (double_kernel_returned, f"what is made of the weights of conv and norm {USED}"),
    "mean returned": (returned_too("batch_stats", "norm", "mean"), f"norm: its mean {USED}"),
    # What stands between bends, scales or mixes channels.
    "relu": (lambda m, x: dense()(nn.relu(norm()(nn.relu(x)))), "is made by `relu`, and its output goes to `relu`"),
    "max pool": (lambda m, x: norm()(nn.max_pool(conv()(x), (2, 2))), "its input is made by `reduce_window_max`"),
    "sum": (lambda m, x: dense()(norm()(x).sum((1, 2))), CHANGE),
    "twice": (lambda m, x: dense()(norm()(x) * 2.0), CHANGE),
    "channels moved": (lambda m, x: dense()(norm()(x).swapaxes(1, 3).reshape(2, -1)), CHANGE),
    "padded pool": (lambda m, x: dense()(nn.avg_pool(norm()(x), (3, 3), padding="SAME")), CHANGE),
    "flatten before": (lambda m, x: norm()(conv()(x).reshape(2, -1)), "the kernel has 4 output features"),
    "another axis summed": (
        lambda m, x: nn.DenseGeneral(4, axis=1, name="dense")(norm()(x)),
        "dense: it does not sum over the features of its input",
    ),
    "weights of each part": (
        lambda m, x: nn.DenseGeneral(4, batch_dims=0, name="dense")(norm()(x)),
        "dense: it has other weights for each part of the batch",
    ),
    "another axis": (lambda m, x: norm(axis=1)(conv()(x)), "its feature axis is 1 and not the last"),
    # Outputs that others read.
    "residual": (residual, f"the output of conv {READ}"),
    "own residual": (own_residual, f"the output of conv {READ}"),
    "output returned": (output_returned, f"the output of conv {READ}"),
    "normalized returned": (normalized_returned, "its input is made by an input of the model"),
    "called twice": (called_twice, "dense: it is called 2 times"),
    "own residual before a layer": (
        lambda m, x: dense()(norm()(x, residual=x)),
        "norm: its own activation or residual stands",
    ),
    "own activation": (lambda m, x: dense()(norm(activation="relu")(x)), "norm: its own activation or residual stands"),
    # Convolutions that put something between or around what they read.
    "padded": (lambda m, x: conv(padding="SAME")(norm()(x)), PADDED),
    "padded by numbers": (lambda m, x: conv(padding=((0, 0), (0, 1)))(norm()(x)), PADDED),
    "causal": (lambda m, x: nn.Conv(4, (2,), padding="CAUSAL", name="conv")(norm()(x)), PADDED),
    "dilated and padded": (lambda m, x: conv(kernel_dilation=2, padding="SAME")(norm()(x)), PADDED),
    "dilated, strided and padded": (
        lambda m, x: conv(kernel_dilation=2, strides=2, padding="SAME")(norm()(x)),
        PADDED,
    ),
    "input dilation": (lambda m, x: conv(input_dilation=2, padding=0)(norm()(x)), "puts zeros between its inputs"),
    "masked": (lambda m, x: conv(mask=MASK)(norm()(x)), "its kernel is masked"),
    "transposed": (lambda m, x: nn.ConvTranspose(4, (2, 2))(norm()(x)), "puts zeros around its input"),
    "no bias": (lambda m, x: dense(use_bias=False)(norm()(x)), "it has no bias to take up the mean"),
    "one without a bias": (one_without_bias, "b: it has no bias to take up the mean"),
}
OBSTACLES = {name: Place(run, [], {"norm": reason}) for name, (run, reason) in RUN.items()}


def some(m, x):
    """Two that fold among three that do not."""
    x = nn.relu(norm("a")(conv("first")(x)))
    x = conv("second", padding="SAME")(norm("b")(x))
    x = norm("d")(nn.relu(norm("c")(x)))
    return nn.relu(x) + norm("e")(x)


def turned(m, x):
    """Two that differ in nothing but which axes change places."""
    x = nn.relu(conv("first")(x)[:, :3, :3, :3])
    return dense("b")(norm("a")(x).swapaxes(1, 2)), dense("d")(norm("c")(x).swapaxes(1, 3))


SOME = {
    "turned": Place(turned, [("a", "b")], {"c": CHANGE}),
    "some": Place(
        some,
        [("first", "a"), ("second", "c")],
        {
            "b": f"second: it {PADDED}",
            "d": "its input is made by `relu`",
            "e": "its input is made by d, a batch norm too",
        },
    ),
}
