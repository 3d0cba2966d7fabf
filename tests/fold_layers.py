"""Layers for small linen networks in which a batch norm stands somewhere, some as other people write them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxbn.linen import BatchNorm

X = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 4, 3)), jnp.float32)


class Place(NamedTuple):
    """A network."""

    run: Callable[[nn.Module, jax.Array], Any]
    pairs: list[tuple[str, str]]
    """what folds"""
    left: dict[str, str]
    """why the rest does not"""


class Net(nn.Module):
    """The network of a place; evaluated with a positional flag."""

    run: Callable[[nn.Module, jax.Array], Any]

    @nn.compact
    def __call__(self, x, flag: bool):
        assert flag is False
        return self.run(self, x)


def norm(name: str = "norm", **fields):
    return BatchNorm(True, name=name, **fields)


def conv(name: str = "conv", features: int = 4, size: int = 2, padding: Any = "VALID", **fields):
    return nn.Conv(features, (size, size), padding=padding, name=name, **fields)


def dense(name: str = "dense", features: int = 5, **fields):
    return nn.Dense(features, name=name, **fields)


class FlagNorm(BatchNorm):
    """A call of its own, with another argument, and something of its own around it."""

    @nn.compact
    def __call__(self, x, training):  # type: ignore[override]
        return nn.relu(super().__call__(x, use_running_average=not training))


class FlaxFlagNorm(nn.BatchNorm):
    """The same of Flax's."""

    @nn.compact
    def __call__(self, x, training):  # type: ignore[override]
        return super().__call__(x, use_running_average=not training)


class OfKernel(nn.Conv):
    """A convolution that does something to its kernel first."""

    change: Callable[[jax.Array], jax.Array] | None = None

    def param(self, name, *args, **kwargs):
        value = super().param(name, *args, **kwargs)
        return self.change(value) if name == "kernel" and self.change else value


def centred(kernel):
    return kernel - kernel.mean((0, 1, 2), keepdims=True)


def standardized(kernel):
    return centred(kernel) / jnp.sqrt(kernel.var((0, 1, 2), keepdims=True) + 1e-4)


class Adapted(nn.Module):
    """A dense layer and, added to its kernel, a product of two small ones that is 0 at the start (LoRA)."""

    @nn.compact
    def __call__(self, x):
        a = self.param("a", nn.initializers.normal(), (3, 2))
        b = self.param("b", nn.initializers.zeros, (2, 4))

        def add(collections):
            if not collections:
                return collections
            return {"params": {**collections["params"], "kernel": collections["params"]["kernel"] + a @ b}}

        return nn.map_variables(nn.Dense, "params", add, init=self.is_initializing())(4, name="dense")(x)


def variable(module: nn.Module, collection: str, layer: str, name: str):
    """A variable of a layer that has been called."""
    return module.variables[collection][layer][name]


def variables_of(place: Place):
    """Random, with the second of the kernels that are added at 0."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        shapes = jax.eval_shape(lambda key: Net(place.run).init(key, X, False), jax.random.key(0))
    rng = np.random.default_rng(0)

    def fill(path, v):
        name = jax.tree_util.keystr(path)
        positive = any(word in name for word in ("var", "scale", "sigma"))
        values = rng.uniform(0.5, 2.0, v.shape) if positive else rng.normal(0.3, 0.5, v.shape)
        return jnp.asarray(values * ("'b'" not in name), v.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)
