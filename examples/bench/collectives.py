"""The collectives of a layer of synchronized batch norm, counted in the compiled program, and its results.

Run it as a program of its own (`python -m bench.collectives`, in examples/), because JAX must be started with eight CPU
devices; it prints one JSON list of rows.
"""

import json
from typing import Any

import numpy as np

from bench.process import answer_of
from bench.traffic import collectives

FEATURES = 64
GROUPS = ((0, 1, 2, 3), (4, 5, 6, 7))


def rows() -> list[dict[str, Any]]:
    """Measured in a process with eight devices."""
    return answer_of("bench.collectives", eight_devices=True)


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
        return len(collectives(program.as_text())), error(y, groups or (range(8),), mask)

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
