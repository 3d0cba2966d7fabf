"""The activations that batch norm can apply in its own pass, by name."""

import jax
import jax.numpy as jnp

from jaxbn.types import Activation

BY_NAME = {
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "relu6": jax.nn.relu6,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
}


def check_activation(activation: Activation | None):
    """The function of that name, or the callable itself.

    Raises:
      ValueError: no activation has that name.
      TypeError: it is neither a name nor a callable.
    """
    if activation is None or callable(activation):
        return activation
    if not isinstance(activation, str):
        raise TypeError(f"`activation` must be None, a name or an elementwise callable, got {activation!r}.")
    if activation not in BY_NAME:
        raise ValueError(f"`activation` must be one of {', '.join(BY_NAME)} or a callable, got {activation!r}.")
    return BY_NAME[activation]
