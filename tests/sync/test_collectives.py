"""How often the devices talk: one collective forward and one backward, whatever is asked."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxbn
from tests.collectives import collectives
from tests.splits import MEMBERS, SHARDINGS, SPLITS

C = 6
PARAMS = {"scale": jnp.full(C, 1.5), "bias": jnp.full(C, 0.5)}
STATS = {"mean": jnp.zeros(C), "var": jnp.ones(C)}
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(8, 4, C)), jnp.float32)
MASKS = {
    "plain": None,
    "mask": jnp.asarray(RNG.random((8, 4, 1)) > 0.4),
    "weights": jnp.asarray(RNG.random((8, 4, 1)), jnp.float32),
    "per-channel mask": jnp.asarray(RNG.random((8, 4, C)) > 0.4),
}


def compiled(f, *args):
    """To be read, not run: no machine code is optimized."""
    return jax.jit(f).lower(*args).compile({"xla_backend_optimization_level": 0})


def moved(f, *args):
    return [c.numbers for c in collectives(compiled(f, *args))]


def train(layer, params, stats, x, mask):
    """The new statistics and the gradients: forward and backward in one program."""
    (y, new), vjp = jax.vjp(lambda params, x: layer(params, stats, x, mask), params, x)
    return vjp((y, jax.tree.map(jnp.zeros_like, new)))[1], new


@pytest.mark.parametrize(
    ("data", "groups"), [("plain", None), ("mask", ((0, 3), (1, 2))), ("weights", None), ("per-channel mask", None)]
)
@pytest.mark.parametrize("split", ["pmap", "shard_map, checked", "shard_map, unchecked"])
def test_a_layer_costs_one_collective_forward_and_one_backward(split, data, groups):
    name, apply = SPLITS[split]

    def layer(params, stats, x, mask):
        return jaxbn.batch_norm(
            params, stats, x, use_running_average=False, mask=mask, axis_name=name, axis_index_groups=groups
        )

    # Counts, means and squares, in two parts each.
    forward = 6 * C if data == "per-channel mask" else 4 * C + 2
    backward = 2 * C
    if groups and split == "shard_map, checked":  # no sums within groups there: a gather, and its transpose
        backward = MEMBERS * backward
    assert moved(partial(apply, partial(train, layer)), PARAMS, STATS, X, MASKS[data]) == [forward, backward]


def test_a_forward_pass_costs_one_collective():
    for split in ("pmap", "shard_map, checked", "shard_map, two names, unchecked", "vmap in shard_map, unchecked"):
        name, apply = SPLITS[split]
        layer = partial(norm, axis_name=name)
        assert moved(partial(apply, layer), PARAMS, STATS, X, None) == [4 * C + 2]


def test_gradients_of_replicated_scale_and_bias_cost_no_further_collective():
    def with_params(layer, params, stats, x, mask):
        (y, new), vjp = jax.vjp(lambda params, x: layer(params, stats, x, mask), params, x)
        dparams, dx = vjp((y, jax.tree.map(jnp.zeros_like, new)))
        return dx, (new, dparams)

    name, apply = SPLITS["shard_map, checked"]
    assert moved(partial(apply, partial(with_params, partial(norm, axis_name=name))), PARAMS, STATS, X, None) == [
        4 * C + 2,
        2 * C,
    ]


def test_an_exact_mean_first_costs_one_collective_more():
    name, apply = SPLITS["shard_map, checked"]
    layer = partial(norm, axis_name=name, use_fast_variance=False)
    assert len(moved(partial(apply, layer), PARAMS, STATS, X, None)) == 2
    assert len(moved(partial(norm, use_fast_variance=False), *SHARDINGS["batch"].put(PARAMS, STATS, X, None))) == 2


@pytest.mark.parametrize("data", ["plain", "per-channel mask"])
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_plain_jit_over_sharded_arrays_costs_as_many(sharding, data):
    sharding = SHARDINGS[sharding]
    with jax.set_mesh(sharding.mesh()):
        found = moved(partial(train, norm), *sharding.put(PARAMS, STATS, X, MASKS[data]))
    # Where positions are split, and the types do not say so, the pivots of the lanes are collected first.
    more = 1 if data == "plain" else 2
    assert len(found) == 2 + (more if sharding is SHARDINGS["positions"] else 0)
    # Then also, each lane gives seven rows to its pivot.
    assert sum(found) <= (56 if sharding is SHARDINGS["positions"] else 24) * C


def norm(params, stats, x, mask, **options):
    return jaxbn.batch_norm(params, stats, x, use_running_average=False, mask=mask, **options)


def network(options, params, stats, x):
    """Three layers: [8, 4, C] -> loss, and the new statistics."""
    new = []
    for layer, old in zip(params, stats, strict=True):
        x, updated = jaxbn.batch_norm(
            layer["norm"], old, x @ layer["kernel"], use_running_average=False, activation="relu", **options
        )
        new.append(updated)
    return jnp.square(x).mean(), new


@pytest.mark.parametrize("through", ["shard_map", "jit"])
def test_a_training_step_of_a_network_costs_two_a_layer_and_those_of_its_gradients(through):
    layers = 3
    params = [{"norm": PARAMS, "kernel": jnp.eye(C)} for _ in range(layers)]
    stats = [STATS] * layers

    def step(options, params, stats, x):
        (loss, new), grads = jax.value_and_grad(partial(network, options), has_aux=True)(params, stats, x)
        return loss[None], new, jax.tree.map(lambda p, g: p - g, params, grads)

    sharding = SHARDINGS["batch"]
    with jax.set_mesh(sharding.mesh()):
        _, _, x, _ = sharding.put({}, {}, X, None)
        if through == "jit":
            found = moved(partial(step, {}), params, stats, x)
        else:
            split = jax.shard_map(
                partial(step, {"axis_name": "d"}), in_specs=(P(), P(), P("d")), out_specs=(P("d"), P(), P())
            )
            found = moved(split, params, stats, x)
    # The gradients of the kernels, the loss and the last bias, which XLA puts together in one or a few.
    assert len(found) <= 2 * layers + 1
    assert sum(found) <= layers * (6 * C + 2) + layers * C * C + 2 * C + 1
