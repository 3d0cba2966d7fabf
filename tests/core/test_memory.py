"""Checkpoints that keep the moments: the same step in half the memory, and nothing expensive is done twice."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import jaxbn
import jaxbn.linen
import jaxbn.nnx
from tests.collectives import collectives
from tests.splits import MEMBERS, mesh

LAYERS, C = 5, 16
CONV = {"kernel_size": (3, 3), "use_bias": False}


class NormConv(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = jaxbn.linen.BatchNorm(use_running_average=False, activation="relu", axis_name="d")(x)
        return nn.Conv(C, **CONV)(x)


class Network(nn.Module):
    checkpoints: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(C, **CONV)(x)
        block = nn.remat(NormConv, policy=jaxbn.save_only_moments) if self.checkpoints else NormConv
        for layer in range(LAYERS):
            x = block(name=f"block_{layer}")(x)
        return x


@functools.cache
def of_linen(checkpoints):
    """The compiled training step over four devices, and what it returns."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4 * MEMBERS, 8, 8, C)), jnp.float32)
    network = Network(checkpoints)
    variables = jax.jit(network.init)(jax.random.key(0), x[:1])

    def step(variables, x):
        def loss(params):
            y, new = network.apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return (y**2).mean(), new

        return jax.lax.pmean(jax.grad(loss, has_aux=True)(variables["params"]), "d")

    split = jax.shard_map(step, mesh=mesh((MEMBERS,), ("d",)), in_specs=(P(), P("d")), out_specs=P(), check_vma=False)
    compiled = jax.jit(split).lower(variables, x).compile()
    return compiled, compiled(variables, x), x.nbytes // MEMBERS


def heeds_checkpoints():
    """Whether this version of XLA:CPU keeps apart what a checkpoint computes again; older ones merge it."""

    def temporary(block):
        def loss(w, x):
            for _ in range(4):
                x = block(w, x)
            return x.sum()

        args = jnp.ones((8, 8)), jnp.ones((512, 8))
        return jax.jit(jax.grad(loss)).lower(*args).compile().memory_analysis().temp_size_in_bytes

    def block(w, x):
        return jnp.sin(jnp.cos(x)) @ w

    return temporary(jax.checkpoint(block)) < temporary(block)


def test_a_step_is_the_same_in_half_the_memory():
    (plain, expected, activation), (saving, actual, _) = of_linen(False), of_linen(True)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), actual, expected)
    if not heeds_checkpoints():
        pytest.skip("this XLA:CPU computes nothing again, whatever a checkpoint says")
    before, after = (c.memory_analysis().temp_size_in_bytes / activation for c in (plain, saving))
    assert before > 2 * LAYERS
    assert after < LAYERS + 5


def test_no_convolution_no_sum_over_the_batch_and_no_collective_is_done_twice():
    def operations(compiled):
        text = compiled.as_text()
        return [len(re.findall(rf" {name}\(", text)) for name in ("convolution", "reduce")]

    plain, saving = (of_linen(checkpoints)[0] for checkpoints in (False, True))
    assert operations(saving) == operations(plain)
    assert sorted(c.numbers for c in collectives(saving)) == sorted(c.numbers for c in collectives(plain))


def test_nnx_saves_and_updates_alike():
    def run(x, checkpoints):
        rngs = nnx.Rngs(0)
        norm = jaxbn.nnx.BatchNorm(3, activation="relu", rngs=rngs)
        conv = nnx.Conv(3, 3, (1, 1), rngs=rngs)

        def block(norm, conv, x):
            return conv(norm(x))

        if checkpoints:
            block = nnx.remat(block, policy=jaxbn.save_only_moments)

        def loss(norm, conv):
            return (block(norm, conv, x) ** 2).mean()

        grads = nnx.grad(loss, argnums=(0, 1))(norm, conv)
        return grads, nnx.state(norm, nnx.BatchStat)

    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5, 5, 3)), jnp.float32)
    results = [jax.jit(run, static_argnums=1)(x, c) for c in (False, True)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *results)
