"""The activations that batch norm can apply in its own pass, by name."""

from collections.abc import Callable

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


MIXES = ("reduce", "arg", "cum", "dot_general", "sort", "conv_", "scan", "while", "gather", "scatter", "rev", "fft")
"""How the operations begin that make one element out of several."""


def check_activation(activation: Activation | None, dtype) -> Callable[[jax.Array], jax.Array] | None:
    """The function of that name, or the callable itself, which is elementwise and works on that dtype.

    Raises:
      ValueError: no activation has that name, or the callable is not elementwise.
      TypeError: it is neither a name nor a callable of arrays.
    """
    if activation is None:
        return None
    if isinstance(activation, str):
        if activation not in BY_NAME:
            raise ValueError(f"`activation` must be one of {', '.join(BY_NAME)} or a callable, got {activation!r}.")
        return BY_NAME[activation]
    if not callable(activation):
        raise TypeError(f"`activation` must be None, a name or an elementwise callable, got {activation!r}.")
    if activation not in BY_NAME.values():
        _check_elementwise(activation, jnp.dtype(dtype))
    return activation


def _check_elementwise(activation: Callable, dtype) -> None:
    x = jax.ShapeDtypeStruct((2, 3), dtype)
    try:
        jaxpr, result = jax.make_jaxpr(lambda x: activation(x), return_shape=True)(
            x
        )  # a NumPy ufunc itself would end the process
    except Exception as error:
        raise TypeError(
            f"`activation` must be a function of a jax array, got {activation!r}, which fails on "
            f"{jnp.dtype(dtype).name}: {type(error).__name__}: {str(error)[:200]}"
        ) from error
    if getattr(result, "shape", None) != x.shape:
        raise ValueError(
            f"`activation` must be elementwise, giving the shape that it is given, {list(x.shape)}, got {result}."
        )
    if not jnp.issubdtype(result.dtype, jnp.inexact):
        raise TypeError(
            f"`activation` must give floating or complex values, got {result.dtype.name} from {activation!r}."
        )
    mixing = sorted(name for name in _primitives(jaxpr.jaxpr) if name.startswith(MIXES) and name != "reduce_precision")
    if mixing:
        raise ValueError(
            f"`activation` must be elementwise, each value from one value, got {activation!r}, which uses {mixing}."
        )


def _primitives(jaxpr) -> set[str]:
    names = {equation.primitive.name for equation in jaxpr.eqns}
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                names |= _primitives(inner)
    return names
