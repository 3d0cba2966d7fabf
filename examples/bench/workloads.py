"""What is measured: activations of ResNet-50 and of dense networks, by name."""

import math
from typing import NamedTuple

SHAPES = {
    # name: shape of the activation, channels last
    "resnet50-stage1": (32, 56, 56, 64),
    "resnet50-stage2": (32, 28, 28, 512),
    "resnet50-stage4": (32, 7, 7, 2048),
    "dense-tall": (4096, 1024),
    "dense-wide": (128, 4096),
}
ODD_SHAPES = {
    "127 rows": (127, 4096),
    "257 rows": (257, 4096),
    "4099 rows": (4099, 1024),
    "8191 rows": (8191, 1024),
    "a large image": (1, 509, 509, 64),
    "120 channels": (264, 7, 7, 120),
    "in the cache": (256, 256),
}
"""Shapes without a suitable divisor, or small ones."""
OPTION_SHAPES = {"dense": (4096, 1024), "image": (128, 28, 28, 128)}
DTYPES = ("float32", "bfloat16")
FUSED = ("", "relu", "residual")
"""What follows the normalization: nothing, ReLU, or a residual added before ReLU."""


class Workload(NamedTuple):
    """One batch norm layer in training."""

    name: str
    dtype: str
    fused: str
    """one of FUSED"""
    shape: tuple[int, ...]

    @property
    def label(self) -> str:
        fused = {"": "", "relu": ", ReLU", "residual": ", residual + ReLU"}[self.fused]
        return f"{self.name} {self.shape}, {self.dtype}{fused}"

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def limit(self) -> tuple[int, int]:
        """Bytes per element, forward and backward, for a program that cannot keep the activation on the chip.

        Forward: x is read for its statistics and once more to be normalized, y is written. Backward: x and dy are read
        for the two sums and once more for dx, which is written. A residual is read in each pass that needs the
        activation's slope, and its cotangent is written, and read in place of dy.
        """
        size = 4 if self.dtype == "float32" else 2
        return (4 * size, 7 * size) if self.fused == "residual" else (3 * size, 5 * size)


def workloads(names, dtypes, fused) -> list[Workload]:
    shapes = SHAPES | ODD_SHAPES | OPTION_SHAPES
    return [Workload(name, dtype, f, shapes[name]) for f in fused for name in names for dtype in dtypes]
