"""The activations that batch norm can apply in its own pass, by name."""

import jax
import jax.numpy as jnp

from jaxbn._core.types import Activation

BY_NAME = {
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "relu6": jax.nn.relu6,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
}


def check_activation(activation: Activation | None, x: jax.Array, dtype):
    """The function of that name, or the callable itself, for an output of the shape of `x` and that dtype.

    Raises:
      ValueError: no activation has that name, or the callable changes the shape.
      TypeError: it is neither a name nor a callable.
    """
    if activation is None:
        return None
    if callable(activation):
        result = jax.eval_shape(activation, jax.ShapeDtypeStruct(x.shape, dtype))
        if getattr(result, "shape", None) != x.shape:
            raise ValueError(
                f"`activation` must be elementwise, giving the shape that it is given, {list(x.shape)}, got {result}."
            )
        return activation
    if not isinstance(activation, str):
        raise TypeError(f"`activation` must be None, a name or an elementwise callable, got {activation!r}.")
    if activation not in BY_NAME:
        raise ValueError(f"`activation` must be one of {', '.join(BY_NAME)} or a callable, got {activation!r}.")
    return BY_NAME[activation]
