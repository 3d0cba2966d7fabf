"""The layouts of a model's kernels, found in its program."""

import math
from typing import Any

from jaxbn.interop.layout import AfterFlatten, ConvTranspose, Layout


def find_layouts(model: Any, *args: Any, **kwargs: Any) -> dict[str, Layout]:
    """The `layouts` of `from_torch` and `to_torch` for a model, read off its program.

    Variables alone do not tell a transposed convolution from a plain one, or a dense layer that reads a flattened image
    from any other: the shapes of PyTorch's weights fit all the same, but the outputs would differ.

    Args:
      model: a linen or nnx module.
      *args, **kwargs: for linen the variables (or their shapes) and then the arguments with which the model evaluates,
        for nnx those of its call; arrays, or `jax.ShapeDtypeStruct`.

    Returns:
      path of a layer -> `ConvTranspose`, `AfterFlatten`, or None for a plain convolution.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from jaxbn import interop
      >>> model = nn.Sequential([nn.ConvTranspose(3, (2, 2)), lambda x: x.reshape(len(x), -1), nn.Dense(2)])
      >>> x = jnp.ones((1, 4, 4, 3))
      >>> interop.find_layouts(model, jax.eval_shape(model.init, jax.random.key(0), x), x)
      {'layers_0': ConvTranspose(transpose_kernel=False), 'layers_2': AfterFlatten(height=4, width=4, channels=3)}
    """
    from jaxbn._tools.folding.model import side_of

    flow = side_of(model, args, kwargs).flow()[0]
    found: dict[str, Layout] = {}
    for path, call in flow.calls.items():
        if call.kind == "transposed convolution":
            found[path] = ConvTranspose(call.out_axis == -2)
        elif call.kind == "convolution":
            found[path] = None
        elif call.kind == "dense" and path in flow.ends:
            image = _flattened(flow.program, flow.ends[path].given)
            found |= {path: image} if image else {}
    return found


def _flattened(program, value) -> AfterFlatten | None:
    """The image that was flattened into the last axis of a value, passing over elementwise operations."""
    while value in program.maker:
        equation, shape = program.equations[program.maker[value]], program.avals[value].shape
        if equation.primitive == "reshape":
            return _image(program.avals[equation.reads()[0]].shape, shape)
        alike = [v for v in equation.reads() if program.avals[v].shape == shape and v not in program.fixed]
        if len(alike) != 1 or equation.primitive == "dot_general":
            return None
        value = alike[0]
    return None


def _image(before: tuple[int, ...], after: tuple[int, ...]) -> AfterFlatten | None:
    """[..., height, width, channels] -> [..., features]; with more or fewer axes, one after another."""
    for rank in range(2, len(before) + 1):
        *spatial, channels = before[-rank:]
        if math.prod(before[-rank:]) == after[-1] and math.prod(spatial) > 1:
            height, width = spatial if len(spatial) == 2 else (math.prod(spatial), 1)
            return AfterFlatten(height, width, channels)
    return None
