"""Plain jit over eight devices, however x is split: what moves between them does not grow with the activation.

Compiled for the devices that are here, and for eight H100s and eight TPU cores where their compilers are installed.
"""

import os

import pytest
from jax.sharding import AxisType

from bench.compilers import devices
from bench.splits import SPLITS, program
from bench.workloads import Workload
from jaxbn._xla.program import TUNING
from tests.collectives import collectives

SHAPE = (32, 16, 16, 64)
C = SHAPE[-1]


GUESSED = {"features": 0, "height": 4, "height and features": 4, "batch and height": 5}
"""Collectives where the types do not say how x is split; elsewhere two, one each way."""


def needs(device):
    """Skips where eight of them cannot be compiled for: see bench.compilers."""
    if device != "here" and os.environ.get("JAX_PLATFORMS") != "cpu":
        pytest.skip("compiling for an absent device needs JAX_PLATFORMS=cpu")
    try:
        devices(device, 8)
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.mark.skipif(not TUNING, reason="without tuning plain jit reads a batch twice, and collects twice")
# Read on jax 0.10.2 (CPU) and 0.12.0.1 (all three).
@pytest.mark.parametrize("fused", ["", "relu", "residual"])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("device", ["here", "h100", "tpu"])
def test_no_activation_moves_between_devices(device, split, axis_type, fused):
    needs(device)
    found = collectives(program(device, "jaxbn", Workload("", "float32", fused, SHAPE), SPLITS[split], axis_type))
    # At most seven rows of each of eight lanes, where a shard has 1024 and all devices together 8192.
    assert all(c.numbers <= 64 * C for c in found), found
    # On a TPU whether to read once more is asked of all devices, and answered in a branch.
    on_tpu = "tpu" in (device, os.environ.get("JAXBN_TEST_PLATFORM"))
    assert len(found) <= GUESSED.get(split, 2) + (2 if on_tpu else 0), found
