"""Plain jit over eight devices, however x is split: what moves between them does not grow with the activation.

Compiled for the devices that are here, and for eight H100s and eight TPU cores where their compilers are installed.
"""

import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxbn
from bench.compilers import devices
from jaxbn._xla.program import TUNING
from tests.collectives import collectives

SHAPE = (32, 16, 16, 64)
C = SHAPE[-1]


class Split(NamedTuple):
    """How eight devices share x."""

    mesh: dict[str, int]
    x: P
    vectors: P = P()
    guessed: int = 2
    """collectives where the types do not say how x is split; elsewhere two, one each way"""


SPLITS = {
    "batch": Split({"d": 8}, P("d")),
    "features": Split({"d": 8}, P(None, None, None, "d"), P("d"), guessed=0),
    "height": Split({"d": 8}, P(None, "d"), guessed=4),
    "batch and features": Split({"d": 4, "f": 2}, P("d", None, None, "f"), P("f")),
    "height and features": Split({"d": 4, "f": 2}, P(None, "d", None, "f"), P("f"), guessed=4),
    "batch and height": Split({"d": 4, "h": 2}, P("d", "h"), guessed=5),
}


def compiled(device, split: Split, axis_type, fused):
    """Forward and backward of one layer in one program."""
    mesh = Mesh(
        np.array(eight(device)).reshape(*split.mesh.values()), tuple(split.mesh), (axis_type,) * len(split.mesh)
    )

    def array(shape, spec):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))

    x, vector = array(SHAPE, split.x), array((C,), split.vectors)
    params, stats = {"scale": vector, "bias": vector}, {"mean": vector, "var": vector}
    residual = x if fused == "residual" else None

    def step(params, stats, x, residual, dy):
        def layer(params, x, residual):
            activation = "relu" if fused else None
            return jaxbn.batch_norm(
                params, stats, x, use_running_average=False, activation=activation, residual=residual
            )

        y, pullback, new = jax.vjp(layer, params, x, residual, has_aux=True)
        return y, new, pullback(dy)

    given = params, stats, x, residual, x
    wanted = jax.tree.map(lambda v: v.sharding, (x, stats, (params, x, residual)))
    # To be read, not run: on the CPU no machine code is optimized.
    options = {"xla_backend_optimization_level": 0} if device == "here" else None
    with jax.set_mesh(mesh):
        return jax.jit(step, out_shardings=wanted).lower(*given).compile(options)


def eight(device):
    """Skips where they cannot be compiled for: see bench.compilers."""
    if device != "here" and os.environ.get("JAX_PLATFORMS") != "cpu":
        pytest.skip("compiling for an absent device needs JAX_PLATFORMS=cpu")
    try:
        return devices(device, 8)
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.mark.skipif(not TUNING, reason="without tuning plain jit reads a batch twice, and collects twice")
# Read on jax 0.10.2 (CPU) and 0.12.0.1 (all three).
@pytest.mark.parametrize("fused", ["", "relu", "residual"])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("device", ["here", "h100", "tpu"])
def test_no_activation_moves_between_devices(device, split, axis_type, fused):
    of = SPLITS[split]
    found = collectives(compiled(device, of, axis_type, fused))
    # At most eight rows of each of eight lanes, where a shard has 1024 and all devices together 8192.
    assert all(c.numbers <= 64 * C for c in found), found
    # On a TPU whether to read once more is asked of all devices, and answered in a branch.
    on_tpu = "tpu" in (device, os.environ.get("JAXBN_TEST_PLATFORM"))
    assert len(found) <= of.guessed + (2 if on_tpu else 0), found
