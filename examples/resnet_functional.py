"""A small residual network with jaxbn and JAX alone: parameters and statistics are nested dicts.

They have the same names as in the linen network, so each network can evaluate what the other has trained.
"""

import functools
import itertools

import jax
import jax.numpy as jnp

import jaxbn

WIDTHS = (32, 64, 128)


def init_conv_norm(key, channels: int, features: int, norm: str, kernel_size: int = 3) -> tuple[dict, dict]:
    """Parameters and statistics of a convolution with its norm."""
    he = jax.nn.initializers.he_normal()
    params = {"conv": {"kernel": he(key, (kernel_size, kernel_size, channels, features))}}
    scale_and_bias, batch_stats = jaxbn.init(features)
    if norm == "none":
        params["conv"]["bias"] = scale_and_bias["bias"]
        return params, {}
    params["norm"] = scale_and_bias
    return params, {"norm": batch_stats} if norm == "batch" else {}


def conv_norm(params, batch_stats, x, *, norm, train, stride=1, activation="relu", residual=None):
    """Convolution, norm, `residual` added if there is one, ReLU; and the new statistics."""
    kernel = params["conv"]["kernel"]
    x = jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    if norm == "batch":
        y, new = jaxbn.batch_norm(
            params["norm"], batch_stats["norm"], x,
            use_running_average=not train, momentum=0.9, activation=activation, residual=residual,
        )  # fmt: skip
        return y, {"norm": new}
    if norm == "none":
        x = x + params["conv"]["bias"]
    else:
        # Layer norm is group norm with one group, instance norm has one group per channel (Wu & He 2018).
        groups = {"layer": 1, "group": 8, "instance": x.shape[-1]}[norm]
        grouped = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
        x = jax.nn.standardize(grouped, axis=(1, 3), epsilon=1e-6).reshape(x.shape)
        x = x * params["norm"]["scale"] + params["norm"]["bias"]
    x = x if residual is None else x + residual
    return jax.nn.relu(x) if activation == "relu" else x, {}


def init_block(key, channels: int, features: int, norm: str) -> tuple[dict, dict]:
    """Parameters and statistics of a residual block."""
    keys = jax.random.split(key, 3)
    layers = {
        "first": init_conv_norm(keys[0], channels, features, norm),
        "second": init_conv_norm(keys[1], features, features, norm),
    }
    if channels != features:
        layers["shortcut"] = init_conv_norm(keys[2], channels, features, norm, kernel_size=1)
    return unzip(layers)


def block(params, batch_stats, x, *, stride, **options):
    """Two convolutions with a shortcut around them: the identity, or a 1x1 convolution if the shape changes."""

    def layer(name, x, **more):
        y, new[name] = conv_norm(params[name], batch_stats[name], x, **options, **more)
        return y

    new = {}
    y = layer("first", x, stride=stride)
    if "shortcut" in params:
        x = layer("shortcut", x, stride=stride, activation=None)
    return layer("second", y, residual=x), new


def init(key, channels: int, classes: int, norm: str = "batch") -> tuple[dict, dict]:
    """Parameters and statistics of the network."""
    keys = jax.random.split(key, 2 + len(WIDTHS))
    layers = {"stem": init_conv_norm(keys[0], channels, WIDTHS[0], norm)}
    for i, (before, width) in enumerate(itertools.pairwise((WIDTHS[0], *WIDTHS))):
        layers[f"block{i}"] = init_block(keys[1 + i], before, width, norm)
    params, batch_stats = unzip(layers)
    lecun = jax.nn.initializers.lecun_normal()
    params["head"] = {"kernel": lecun(keys[-1], (WIDTHS[-1], classes)), "bias": jnp.zeros(classes)}
    return params, batch_stats


def apply(params, batch_stats, x, train: bool, *, norm: str = "batch"):
    """[n, height, width, channels] images -> [n, classes] logits, and the new statistics."""
    new = {}
    x, new["stem"] = conv_norm(params["stem"], batch_stats["stem"], x, norm=norm, train=train)
    for i in range(len(WIDTHS)):
        name, stride = f"block{i}", 1 if i == 0 else 2
        x, new[name] = block(params[name], batch_stats[name], x, stride=stride, norm=norm, train=train)
    return x.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"], new


def unzip(layers: dict) -> tuple[dict, dict]:
    """{name: (params, batch_stats)} -> ({name: params}, {name: batch_stats})."""
    return {k: v[0] for k, v in layers.items()}, {k: v[1] for k, v in layers.items()}


def create(seed: int, channels: int, classes: int, norm: str):
    """Parameters, running statistics, and `apply(params, batch_stats, x, train) -> (logits, batch_stats)`."""
    params, batch_stats = init(jax.random.key(seed), channels, classes, norm)
    return params, batch_stats, functools.partial(apply, norm=norm)
