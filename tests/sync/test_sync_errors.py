"""What cannot be synchronized says so, and how it can."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

import jaxbn
from tests.splits import SHARDINGS, SPLITS, mesh

PARAMS, STATS = jaxbn.init(3)
X = jnp.ones((8, 3))


def normalize(x, **options):
    return jaxbn.batch_norm(PARAMS, STATS, x, use_running_average=False, **options)[0]


def test_an_unbound_axis_name_is_an_error():
    with pytest.raises(ValueError, match=r"must be bound by an enclosing jax.vmap, jax.pmap or jax.shard_map, got 'd'"):
        normalize(X, axis_name="d")
    with pytest.raises(ValueError, match=r"got \('d', 'e'\), of which 'e' is not bound here"):
        jax.vmap(lambda x: normalize(x, axis_name=("d", "e")), axis_name="d")(X[None])


def test_an_axis_name_under_plain_jit_is_an_error_that_says_to_leave_it_out():
    sharding = SHARDINGS["batch"]
    with jax.set_mesh(sharding.mesh()), pytest.raises(ValueError, match="leave `axis_name` out"):
        jax.jit(lambda x: normalize(x, axis_name="d"))(X)


def test_an_axis_named_twice_is_an_error():
    with pytest.raises(ValueError, match="must name each axis once"):
        jax.vmap(lambda x: normalize(x, axis_name=("d", "d")), axis_name="d")(X[None])


def test_virtual_batches_with_an_axis_name_are_an_error():
    with pytest.raises(ValueError, match="`virtual_batch_size` and `axis_name` exclude each other"):
        jax.vmap(lambda x: normalize(x, axis_name="d", virtual_batch_size=2), axis_name="d")(X[None])


def test_a_mask_of_the_whole_batch_for_a_part_of_it_is_an_error():
    with pytest.raises(ValueError, match=r"`mask` must broadcast to x, float32\[4, 3\], got bool\[8, 1\]"):
        jax.vmap(lambda x: normalize(x, axis_name="d", mask=jnp.ones((8, 1), bool)), axis_name="d")(X.reshape(2, 4, 3))


def test_a_vmap_axis_in_a_checked_shard_map_is_an_error():
    name, apply = SPLITS["vmap in shard_map, checked"]
    with pytest.raises(ValueError, match=r"of which \('v',\) are axes of vmap. Set check_vma=False."):
        apply(lambda p, s, x, m: (normalize(x, axis_name=name), s), PARAMS, STATS, X, None)


def test_jax_itself_has_no_collective_over_a_vmap_axis_in_a_checked_shard_map():
    # Where this fails, jaxbn need not refuse it any more.
    def of_device(x):
        return jax.vmap(lambda x: lax.psum(x, "v"), axis_name="v")(x)

    with pytest.raises(AssertionError):
        jax.shard_map(of_device, mesh=mesh((2,), ("d",)), in_specs=P("d"), out_specs=P("d"))(X)
