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
        """Bytes an element, forward and backward, of a program that cannot keep the activation on the chip.

        Forward: x is read for its statistics and once more to be normalized, y is written. Backward: x and dy are read
        for the two sums and once more for dx, which is written. A residual is read in each pass that needs the
        activation's slope, and its cotangent written and read in the place of dy.
        """
        size = 4 if self.dtype == "float32" else 2
        return (4 * size, 7 * size) if self.fused == "residual" else (3 * size, 5 * size)


def workloads(names, dtypes, fused) -> list[Workload]:
    return [Workload(name, dtype, f, SHAPES[name]) for f in fused for name in names for dtype in dtypes]
