"""One of two processes that recalibrate together; prints what it got as JSON. Started by a test.

python tests/recalibrate_process.py ADDRESS:PORT 0
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxbn
import jaxbn.nnx

ROWS = 5 + 2 * np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
OWN = [[ROWS[:8], ROWS[8:12], ROWS[12:24]], [ROWS[24:]]]
"""the batches of each process: three and one"""


def forward(variables, x):
    y, a = jaxbn.normalize_batch(variables["params"]["a"], variables["batch_stats"]["a"], x)
    return y, {"a": a, "b": jaxbn.batch_moments(jnp.tanh(y))}


def variables():
    layers = {name: jaxbn.init(3, use_count=True) for name in "ab"}
    return {"params": {k: v[0] for k, v in layers.items()}, "batch_stats": {k: v[1] for k, v in layers.items()}}


def plain(stats):
    return jax.tree.map(lambda v: np.asarray(v).tolist(), stats)


def failure(f):
    try:
        f()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def broken(batches):
    yield from batches
    raise OSError("the disk is gone")


class Model(nnx.Module):
    def __init__(self):
        self.a, self.b = (jaxbn.nnx.BatchNorm(3, use_running_average=True, rngs=nnx.Rngs(0)) for _ in "ab")

    def __call__(self, x):
        return self.b(jnp.tanh(self.a(x)))


def main(address: str, number: int) -> None:
    jax.distributed.initialize(address, 2, number, initialization_timeout=60)
    own = OWN[number]
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.device_put(variables(), NamedSharding(mesh, P()))
    replicated = jaxbn.recalibrate(forward, everywhere, own)["batch_stats"]
    split = [
        jax.make_array_from_callback(ROWS[i : i + 20].shape, NamedSharding(mesh, P("d")), ROWS[i : i + 20].__getitem__)
        for i in (0, 20)
    ]
    model = jaxbn.recalibrate(lambda model, x: model(x), Model(), own, sequential=True)
    results = {
        "own": plain(jaxbn.recalibrate(forward, variables(), iter(own))["batch_stats"]),
        "replicated": plain(replicated),
        "sharding kept": all(v.sharding.is_equivalent_to(NamedSharding(mesh, P()), v.ndim)
                             for v in jax.tree.leaves(replicated)),
        "over all": plain(jaxbn.recalibrate(forward, everywhere, split)["batch_stats"]),
        "sequential": {k: plain({n: getattr(getattr(model, k), n)[...] for n in ("mean", "var")}) for k in "ab"},
        "none": failure(lambda: jaxbn.recalibrate(forward, variables(), own if number else [])),
        "broken": failure(lambda: jaxbn.recalibrate(forward, variables(), own if number else broken(own))),
        "after": plain(jaxbn.recalibrate(forward, variables(), own)["batch_stats"]["a"]),
    }  # fmt: skip
    print("RESULTS " + json.dumps(results), flush=True)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
