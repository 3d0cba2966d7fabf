"""One layer on eight devices under plain jit: what they send each other, by how x is split.

Run as a program of its own (`python -m bench.splits DEVICE PEER...`, in examples/), because jax must be started with
eight CPU devices; it prints one JSON list of rows.
"""

import json
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bench import peers
from bench.compilers import devices
from bench.traffic import collectives
from bench.workloads import Workload


class Split(NamedTuple):
    """How eight devices share x."""

    mesh: dict[str, int]
    x: P
    vectors: P = P()


SPLITS = {
    "batch": Split({"d": 8}, P("d")),
    "features": Split({"d": 8}, P(None, None, None, "d"), P("d")),
    "height": Split({"d": 8}, P(None, "d")),
    "batch and features": Split({"d": 4, "f": 2}, P("d", None, None, "f"), P("f")),
    "height and features": Split({"d": 4, "f": 2}, P(None, "d", None, "f"), P("f")),
    "batch and height": Split({"d": 4, "h": 2}, P("d", "h")),
}
AXES = {"automatic": AxisType.Auto, "explicit": AxisType.Explicit}


def program(device: str, peer: str, w: Workload, split: Split, axis_type: AxisType) -> Any:
    """Forward and backward of one layer in one program, compiled for eight of the devices.

    Raises:
      RuntimeError: they cannot be compiled for.
    """
    eight = np.array(devices(device, 8)).reshape(*split.mesh.values())
    mesh = Mesh(eight, tuple(split.mesh), (axis_type,) * len(split.mesh))
    layer = peers.layer(peer, w)

    def array(shape, dtype):
        spec = split.x if len(shape) > 1 else split.vectors
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    params, state = jax.tree.map(lambda v: array(v.shape, v.dtype), (layer.params, layer.state))
    x = array(w.shape, jnp.dtype(w.dtype))
    given = params, state, x, x if w.fused == "residual" else None, x
    wanted = jax.tree.map(lambda v: v.sharding, (x, state, (params, *given[2:4])))
    # To be read, not run: on the CPU no machine code is optimized.
    options: Any = {"xla_backend_optimization_level": 0} if device == "here" else None
    with jax.set_mesh(mesh):
        return jax.jit(peers.step(layer), out_shardings=wanted).lower(*given).compile(options)


def rows(device: str, names: list[str]) -> list[dict[str, Any]]:
    """What a device gives to the collectives of each split and peer, in multiples of the number of features."""
    w = Workload("eight devices", "float32", "relu", (32, 56, 56, 64))

    def found(peer, split, axis_type):
        try:
            numbers = collectives(program(device, peer, w, split, axis_type).as_text())
        except (TypeError, ValueError):  # that peer does not know such axes
            return {}
        return {"collectives": [n / w.shape[-1] for n in sorted(numbers, reverse=True)]}

    return [
        {"workload": f"{split}, {kind} axes", "peer": peer} | found(peer, SPLITS[split], AXES[kind])
        for split in SPLITS
        for kind in AXES
        for peer in names
    ]


if __name__ == "__main__":
    print(json.dumps(rows(sys.argv[1], sys.argv[2:])))
