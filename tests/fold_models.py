"""Models whose outputs are one branch for each way in which a batch norm stands beside a layer."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

import jaxbn.linen
import jaxbn.nnx

F16, BF16, F32 = jnp.float16, jnp.bfloat16, jnp.float32
NO_AFFINE = {"use_scale": False, "use_bias": False}
# name -> (layer, fields of the layer, fields of the batch norm); 4 features in, 8 out
BEFORE = {
    "dense": ("Dense", {}, {}),
    "dense, no bias": ("Dense", {"use_bias": False}, {"epsilon": 1e-3}),
    "dense, no bias, no affine": ("Dense", {"use_bias": False}, NO_AFFINE),
    "conv": ("Conv", {"kernel_size": (3, 3)}, {"use_scale": False}),
    "conv, no bias": ("Conv", {"kernel_size": (3, 3), "use_bias": False}, {}),
    "conv, strided, dilated": (
        "Conv",
        {"kernel_size": (2, 3), "strides": 2, "kernel_dilation": 2},
        {"use_bias": False},
    ),
    "grouped": ("Conv", {"kernel_size": (3, 3), "feature_group_count": 2}, NO_AFFINE),
    "depthwise": ("Conv", {"kernel_size": (3, 3), "feature_group_count": 4, "use_bias": False}, {}),
    "transposed": ("ConvTranspose", {"kernel_size": (3, 2), "strides": (2, 2)}, {}),
    "transposed kernel": ("ConvTranspose", {"kernel_size": (3, 2), "strides": (2, 2), "transpose_kernel": True}, {}),
    "float16": ("Conv", {"kernel_size": (3, 3), "dtype": F16, "param_dtype": F16}, {"dtype": F32}),
    "bfloat16": (
        "Dense",
        {"dtype": BF16, "param_dtype": BF16, "use_bias": False},
        {"dtype": BF16, "param_dtype": BF16},
    ),
}
AFTER = {
    "dense after": ("Dense", {}, {}),
    "conv after": ("Conv", {"kernel_size": (3, 3), "padding": "VALID"}, {"epsilon": 1e-3}),
    "pointwise after": ("Conv", {"kernel_size": (1, 1), "padding": "SAME"}, {"use_bias": False}),
    "grouped after": ("Conv", {"kernel_size": (2, 2), "padding": 0, "feature_group_count": 2}, NO_AFFINE),
    "circular after": ("Conv", {"kernel_size": (3, 3), "padding": "CIRCULAR", "strides": 2}, {"use_scale": False}),
}


class Linen(nn.Module):
    """Every branch by itself, from the same input."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        outputs = {}
        for i, (name, (layer, fields, norm_fields)) in enumerate((BEFORE | AFTER).items()):
            norm = (nn.BatchNorm if i % 2 else jaxbn.linen.BatchNorm)(use_running_average=not train, **norm_fields)
            layer = getattr(nn, layer)(8, **fields)
            outputs[name] = norm(layer(x)) if name in BEFORE else layer(norm(x))
        return outputs


class Nnx(nnx.Module):
    """The same."""

    def __init__(self, rngs: nnx.Rngs):
        self.layers, self.norms = nnx.List(), nnx.List()
        for i, (name, (layer, fields, norm_fields)) in enumerate((BEFORE | AFTER).items()):
            layer = {"Dense": "Linear"}.get(layer, layer)
            self.layers.append(getattr(nnx, layer)(4, 8, **fields, rngs=rngs))
            norm = nnx.BatchNorm if i % 2 else jaxbn.nnx.BatchNorm
            self.norms.append(norm(8 if name in BEFORE else 4, **norm_fields, rngs=rngs))

    def __call__(self, x):
        outputs = {}
        for name, layer, norm in zip(BEFORE | AFTER, self.layers, self.norms, strict=True):
            outputs[name] = norm(layer(x)) if name in BEFORE else layer(norm(x))
        return outputs


def filled(tree, seed: int = 0):
    """The tree with random values, positive where they are a variance or a scale."""
    rng = np.random.default_rng(seed)

    def fill(path, v):
        positive = any(word in jax.tree_util.keystr(path) for word in ("var", "scale"))
        values = rng.uniform(0.5, 2.0, v.shape) if positive else rng.normal(0.3, 0.5, v.shape)
        return jnp.asarray(values, v.dtype)

    return jax.tree_util.tree_map_with_path(fill, tree)
