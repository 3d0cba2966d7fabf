"""The collectives of a layer of synchronized batch norm, counted in the compiled program, and its results.

Run it as a program of its own (`python -m bench.collectives`, in examples/), because JAX must be started with eight CPU
devices; it prints one JSON list of rows.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

FEATURES = 64
GROUPS = ((0, 1, 2, 3), (4, 5, 6, 7))
_COLLECTIVE = r"(?:all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("


def rows() -> list[dict[str, Any]]:
    """Measured in a process with eight devices."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
    }
    command = [sys.executable, "-m", "bench.collectives"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"counting collectives failed: {done.stderr[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _count() -> list[dict[str, Any]]:
    import jax
    from flax import linen as nn
    from jax.sharding import PartitionSpec as P

    import jaxbn.linen

    mesh = jax.make_mesh((8,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(64, FEATURES)) + np.arange(64)[:, None] // 8).astype(np.float32)
    mask = (np.arange(64) % 7 < np.arange(64) // 8)[:, None]  # the first device has no example

    def measured(norm, groups, mask):
        layer = norm(use_running_average=False, axis_name="devices", axis_index_groups=groups)
        variables = norm(use_running_average=False).init(jax.random.key(0), x)

        def step(variables, x, mask):
            def apply(params, x):
                given = {**variables, "params": params}
                return layer.apply(given, x, mask=mask, mutable=["batch_stats"])

            y, pullback, new = jax.vjp(apply, variables["params"], x, has_aux=True)
            return y, jax.tree.map(lambda v: v[None], (new, pullback(y)))

        specs = (P(), P("devices"), P() if mask is None else P("devices"))
        split = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=P("devices"), check_vma=False)
        program: Any = jax.jit(split).lower(variables, x, mask).compile()
        y = np.asarray(program(variables, x, mask)[0], np.float64)
        return len(re.findall(_COLLECTIVE, program.as_text())), error(y, groups or (range(8),), mask)

    def error(y, groups, mask):
        """The largest error of an output that counts, compared with the whole batch of each group in float64."""
        counts = np.ones(64, bool) if mask is None else mask[:, 0]
        worst = 0.0
        for group in groups:
            rows = counts & np.isin(np.arange(64) // 8, group)
            batch = x[rows].astype(np.float64)
            expected = (batch - batch.mean(0)) / np.sqrt(batch.var(0) + 1e-5)
            worst = np.maximum(worst, np.abs(y[rows] - expected).max())
        return "NaN" if np.isnan(worst) else float(worst)

    found = []
    for case, groups, given in (("whole", None, None), ("masked", None, mask), ("in two groups", GROUPS, None)):
        row: dict[str, Any] = {"batch over 8 devices": case}
        for name, norm in (("jaxbn", jaxbn.linen.BatchNorm), ("flax.linen", nn.BatchNorm)):
            row[f"{name}: collectives"], row[f"{name}: error"] = measured(norm, groups, given)
        found.append(row)
    return found


if __name__ == "__main__":
    print(json.dumps(_count()))
