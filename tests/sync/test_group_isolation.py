"""Each group is a batch of its own: nothing of another one, NaN included, reaches a value of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
import jaxbn.linen
import jaxbn.nnx
from tests.splits import MEMBERS, SPLITS

GROUPS = ((0, 3), (1, 2))
CLEAN, SICK = [0, 1, 6, 7], [2, 3, 4, 5]
"""rows of a batch of 8 over four members"""
PARAMS, STATS = jaxbn.init(3)


def batch(bad=np.nan):
    x = np.random.default_rng(0).normal(size=(8, 5, 3)).astype(np.float32)
    x[3, 2, 1] = bad
    return x


@functools.cache
def program(split, fast=True, momentum=0.9):
    """One compiled program of a split: y, the statistics of each member, and dx."""
    name, apply = SPLITS[split]

    def layer(params, stats, x, mask):
        return jaxbn.batch_norm(
            params, stats, x, use_running_average=False, axis_name=name, axis_index_groups=GROUPS, momentum=momentum,
            use_fast_variance=fast,
        )  # fmt: skip

    @jax.jit
    def run(x, dy):
        y, vjp, new = jax.vjp(lambda x: apply(layer, PARAMS, STATS, x, None), x, has_aux=True)
        return y, new, vjp(dy)[0]

    return run


def step(split, x, **options):
    dy = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    return jax.tree.map(np.asarray, program(split, **options)(x, dy))


ONE_NAME = ["vmap", "pmap", "shard_map, checked", "shard_map, unchecked"]
TWO_NAMES = ["vmap, two names", "shard_map, two names, checked"]
READS = [(split, True) for split in ONE_NAME + TWO_NAMES] + [("vmap", False), ("shard_map, checked", False)]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize(("split", "fast"), READS)
def test_what_stands_in_one_group_reaches_no_other(split, fast, bad):
    y, new, dx = step(split, batch(bad), fast=fast)
    clean_y, clean_new, clean_dx = step(split, batch(0.5), fast=fast)
    np.testing.assert_array_equal(y[CLEAN], clean_y[CLEAN])
    np.testing.assert_array_equal(dx[CLEAN], clean_dx[CLEAN])
    for name, value in new.items():
        members = list(GROUPS[0])
        np.testing.assert_array_equal(value[members], clean_new[name][members])


@pytest.mark.parametrize("split", ONE_NAME + TWO_NAMES)
def test_a_sick_channel_of_one_group_leaves_its_statistics_and_its_other_channels_alone(split):
    y, new, dx = step(split, batch())
    for name, value in new.items():
        np.testing.assert_array_equal(value[list(GROUPS[1]), 1], np.tile(STATS[name][1], 2))
    assert np.isfinite(y[..., [0, 2]]).all()
    assert np.isfinite(dx[..., [0, 2]]).all()


@pytest.mark.parametrize("split", ONE_NAME)
def test_groups_as_far_apart_as_can_be_keep_their_digits(split):
    x = batch(0.5)
    x[SICK] = 1e4 * x[SICK] + 3e6
    _, new, _ = step(split, x, momentum=0.0)
    for group, rows in zip(GROUPS, (CLEAN, SICK), strict=True):
        want = np.float64(x[rows]).var((0, 1))
        np.testing.assert_allclose(new["var"][list(group)], np.tile(want, (2, 1)), rtol=1e-5)


@pytest.mark.parametrize("layer", ["linen", "nnx"])
def test_the_layers_hand_groups_on(layer):
    x = jnp.asarray(batch(0.5))
    want, *_ = step("vmap", batch(0.5))
    options = {"axis_name": "d", "axis_index_groups": GROUPS, "use_running_average": False}
    if layer == "linen":
        module = jaxbn.linen.BatchNorm(**options)

        def of_member(x):
            variables = {"params": PARAMS, "batch_stats": STATS}
            return module.apply(variables, x, mutable=["batch_stats"])[0]
    else:
        module = jaxbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0), **options)
        graphdef, state = nnx.split(module)

        def of_member(x):
            return nnx.merge(graphdef, jax.tree.map(jnp.asarray, state))(x)

    got = jax.vmap(of_member, axis_name="d")(x.reshape(MEMBERS, 2, 5, 3))
    np.testing.assert_allclose(got.reshape(x.shape), want, rtol=0, atol=1e-6)
