"""Where a batch norm folds: small linen networks and the pairs that they have."""

import jax.numpy as jnp
from flax import linen as nn
from fold_layers import FlagNorm, FlaxFlagNorm, OfKernel, Place, centred, conv, dense, norm


def attention(m, x):
    x = norm()(x.reshape(2, 8, 6))
    return nn.MultiHeadDotProductAttention(2, qkv_features=6, out_features=6, name="attention")(x, x, x)


def after_attention(m, x):
    x = x.reshape(2, 16, 3)
    return norm()(nn.MultiHeadDotProductAttention(1, name="attention")(x, x, x))


def two_readers(m, x):
    y = norm()(x)
    return dense("a")(y), dense("b")(y)


def constant_shared(m, x):
    c = 1 + jnp.arange(4.0)
    return norm()(OfKernel(4, (2, 2), change=lambda kernel: kernel * c, name="layer")(x)), 2 * c


QKV = [("norm", f"attention/{name}") for name in ("query", "key", "value")]
MASK = jnp.eye(2)[:, :, None, None] * jnp.ones((1, 1, 3, 4))
BEFORE, AFTER = [("layer", "norm")], [("norm", "layer")]
RUN = {
    # Between the two, channels are moved or averaged, and each stays as it is.
    "flatten": (lambda m, x: dense("layer")(norm()(x).reshape(2, -1)), AFTER),
    "mean": (lambda m, x: dense("layer")(norm()(x).mean((1, 2))), AFTER),
    "mean before": (lambda m, x: norm()(conv("layer")(x).mean((1, 2))), BEFORE),
    "average pool": (lambda m, x: norm()(nn.avg_pool(conv("layer")(x), (2, 2))), BEFORE),
    "average pool of what is there": (
        lambda m, x: norm()(nn.avg_pool(conv("layer")(x), (2, 2), padding="SAME", count_include_pad=False)),
        BEFORE,
    ),
    "pool, slice, turn": (
        lambda m, x: dense("layer")(nn.avg_pool(norm()(x), (2, 2))[:, 0, ::-1].swapaxes(0, 1)),
        AFTER,
    ),
    "tokens": (lambda m, x: norm()(conv("layer")(x).reshape(2, 9, 4)), BEFORE),
    "heads": (lambda m, x: norm()(dense("layer", 6)(x).reshape(2, 16, 2, 3)), BEFORE),
    "heads, no bias": (lambda m, x: norm()(dense("layer", 6, use_bias=False)(x).reshape(2, 16, 2, 3)), BEFORE),
    "half": (lambda m, x: norm(dtype=jnp.bfloat16)(dense("layer", dtype=jnp.bfloat16)(x)), BEFORE),
    # Matrix products of other names.
    "general": (lambda m, x: norm()(nn.DenseGeneral((2, 4), name="layer")(x)), BEFORE),
    "general, no bias": (
        lambda m, x: norm()(nn.DenseGeneral((2, 4), axis=(-1, 2), use_bias=False, name="layer")(x)),
        BEFORE,
    ),
    "general, weights of each part": (
        lambda m, x: norm()(nn.DenseGeneral((2, 4), batch_dims=(0,), name="layer")(x)),
        BEFORE,
    ),
    "general after": (lambda m, x: nn.DenseGeneral((2, 4), axis=(1, -1), name="layer")(norm()(x)), AFTER),
    "einsum": (lambda m, x: norm()(nn.Einsum((5, 4, 3), "bhwc,dwc->bhd", name="layer")(x)), BEFORE),
    "attention": (attention, QKV),
    "after attention": (after_attention, [("attention/out", "norm")]),
    # Convolutions.
    "depthwise": (lambda m, x: conv("layer", 6, feature_group_count=3)(norm()(x)), AFTER),
    "strides without padding": (lambda m, x: conv("layer", strides=2, padding="SAME")(norm()(x)), AFTER),
    "kernel dilation": (lambda m, x: conv("layer", kernel_dilation=2)(norm()(x)), AFTER),
    "masked before": (lambda m, x: norm()(conv("layer", mask=MASK)(x)), BEFORE),
    "causal of one": (lambda m, x: nn.Conv(4, (1,), padding="CAUSAL", name="layer")(norm()(x)), AFTER),
    "transposed before": (lambda m, x: norm()(nn.ConvTranspose(4, (2, 3), (2, 1), name="layer")(x)), BEFORE),
    "centred kernel": (lambda m, x: norm()(OfKernel(4, (2, 2), change=centred, name="layer")(x)), BEFORE),
    "a constant that others read": (constant_shared, BEFORE),
    # More than one.
    "two readers": (two_readers, [("norm", "a"), ("norm", "b")]),
    "before and after": (lambda m, x: norm("b")(dense()(norm("a")(x))), [("a", "dense"), ("dense", "b")]),
    "relu after": (lambda m, x: dense()(nn.relu(norm()(conv("layer")(x)))), BEFORE),
    "relu before": (lambda m, x: dense("layer")(norm()(nn.relu(conv()(x)))), AFTER),
    # Batch norms as other people call them.
    "own call": (lambda m, x: FlagNorm(name="norm")(conv("layer")(x), False), BEFORE),
    "own call, Flax": (lambda m, x: FlaxFlagNorm(name="norm")(conv("layer")(x), training=False), BEFORE),
    "axis from the front": (lambda m, x: norm(axis=3)(conv("layer")(x)), BEFORE),
    "keywords": (lambda m, x: norm()(x=dense("layer")(inputs=x)), BEFORE),
    "epsilon 0": (lambda m, x: nn.BatchNorm(True, epsilon=0.0, name="norm")(conv("layer")(x)), BEFORE),
}
PLACES = {name: Place(run, pairs, {}) for name, (run, pairs) in RUN.items()}
