"""Folding a model whose arrays are spread over processes: each folds its part, and all have the model folded."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from flax import linen as nn, nnx

port, me = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", 2, int(me))
import jaxbn
from fold_models import filled
from jaxbn.linen import BatchNorm


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(BatchNorm(not train)(nn.Conv(4, (3, 3))(x)))
        return nn.Dense(2)(BatchNorm(not train)(x).mean((1, 2)))


x = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype(np.float32)
local = filled(jax.eval_shape(lambda: Net().init(jax.random.key(0), x, False)))
mesh = jax.sharding.Mesh(jax.devices(), ("m",))


def spread(v):  # over the processes by its last axis where it can be, else the whole on each
    v = np.asarray(v)
    sharding = NamedSharding(mesh, P(*[None] * (v.ndim - 1), "m") if v.shape[-1] % 2 == 0 else P())
    return jax.make_array_from_callback(v.shape, sharding, lambda index: v[index])


variables = jax.tree.map(spread, local)
assert not variables["params"]["Conv_0"]["kernel"].is_fully_addressable
right = jaxbn.fold(Net(), local, x, False)
split = jax.make_array_from_callback(x.shape, NamedSharding(mesh, P("m")), lambda index: x[index])
for batch in (x, split):
    assert jaxbn.foldable_pairs(Net(), variables, batch, False) == jaxbn.foldable_pairs(Net(), local, x, False)
    folded = jaxbn.fold(Net(), variables, batch, False)
    for a, b in zip(jax.tree.leaves(folded), jax.tree.leaves(right), strict=True):
        for shard in a.addressable_shards:
            np.testing.assert_allclose(shard.data, np.asarray(b)[shard.index], rtol=1e-6, atol=1e-6)
bad = jax.tree.map(lambda v: v, variables)
bad["batch_stats"]["BatchNorm_0"]["var"] = spread(np.full(4, np.nan, np.float32))
assert "not finite" in jaxbn.foldable_pairs(Net(), bad, x, False).left["BatchNorm_0"]
print("folded", me)
"""


@pytest.mark.exhaustive
def test_arrays_of_two_processes_are_folded_in_place(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    tests = Path(__file__).parents[1]
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    paths = os.pathsep.join([str(tests.parent), str(tests)])
    env = {**os.environ, "PYTHONPATH": paths, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), port, str(i)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    try:
        for i, worker in enumerate(workers):
            output = worker.communicate(timeout=240)[0]
            assert f"folded {i}" in output, output
    finally:
        for worker in workers:
            worker.kill()
