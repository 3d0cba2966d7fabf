"""How PyTorch and Keras lay out and name the weights of a layer, next to how Flax does."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class ConvTranspose(NamedTuple):
    """A kernel of a transposed convolution. PyTorch and Keras compute the gradient of a convolution, which reads the
    kernel backwards; Flax does so only with `transpose_kernel=True`."""

    transpose_kernel: bool = False
    """the field of that name of the Flax layer"""


class AfterFlatten(NamedTuple):
    """A dense kernel that reads a flattened image: PyTorch flattens channels first, Flax channels last."""

    height: int
    width: int
    channels: int


class Depthwise(NamedTuple):
    """A kernel of Keras' `DepthwiseConv2D`, [height, width, features, multiplier]; in Flax, a `Conv` with
    `feature_group_count=features`."""

    features: int


Layout = ConvTranspose | AfterFlatten | Depthwise | None


class Framework(NamedTuple):
    """The conventions of another framework."""

    name: str
    weights: str
    """the argument that holds its weights"""
    separator: str
    """between the parts of a name"""
    leaves: dict[str, str]
    """our name of a variable of a layer -> theirs"""
    norm_leaves: dict[str, str]
    """the same, where it differs in a normalization layer"""
    ignored: tuple[str, ...]
    """suffixes of entries that we have no use for"""
    kernel: Callable[[np.ndarray, Layout, bool], np.ndarray]
    """their kernel in the layout of Flax, or the other way round if the flag is True"""


def torch_kernel(kernel: np.ndarray, layout: Layout, export: bool) -> np.ndarray:
    """[O, I, *window] <-> [*window, I, O]; a linear layer is a convolution without a window."""
    if isinstance(layout, AfterFlatten):
        height, width, channels = layout
        if export:
            image = kernel.reshape(height, width, channels, kernel.shape[-1])
            return image.transpose(3, 2, 0, 1).reshape(kernel.shape[::-1])
        image = kernel.reshape(kernel.shape[0], channels, height, width)
        return image.transpose(2, 3, 1, 0).reshape(kernel.shape[::-1])
    spatial = tuple(range(kernel.ndim - 2))
    if isinstance(layout, ConvTranspose) and not layout.transpose_kernel:  # [I, O, *window] <-> [*window, I, O]
        if export:
            return np.transpose(np.flip(kernel, spatial), (kernel.ndim - 2, kernel.ndim - 1, *spatial))
        return np.flip(np.moveaxis(kernel, (0, 1), (-2, -1)), spatial)
    if export:
        return np.transpose(kernel, (kernel.ndim - 1, kernel.ndim - 2, *spatial))
    return np.moveaxis(kernel, (0, 1), (-1, -2))


def keras_kernel(kernel: np.ndarray, layout: Layout, export: bool) -> np.ndarray:
    """[*window, I, O] in both, but for transposed ([*window, O, I]) and depthwise convolutions."""
    if isinstance(layout, Depthwise):
        window = kernel.shape[:-2]
        return kernel.reshape(*window, layout.features, -1) if export else kernel.reshape(*window, 1, -1)
    if isinstance(layout, ConvTranspose) and not layout.transpose_kernel:
        return np.swapaxes(np.flip(kernel, tuple(range(kernel.ndim - 2))), -1, -2)
    return kernel


TORCH = Framework(
    "PyTorch",
    "state_dict",
    ".",
    {
        "kernel": "weight",
        "scale": "weight",
        "embedding": "weight",
        "negative_slope": "weight",
        "mean": "running_mean",
        "var": "running_var",
        "count": "num_batches_tracked",
    },
    {},
    ("num_batches_tracked",),
    torch_kernel,
)
KERAS = Framework(
    "Keras",
    "weights",
    "/",
    {
        "scale": "gamma",
        "embedding": "embeddings",
        "negative_slope": "alpha",
        "mean": "moving_mean",
        "var": "moving_variance",
    },
    {"bias": "beta"},
    ("seed_generator_state",),
    keras_kernel,
)
