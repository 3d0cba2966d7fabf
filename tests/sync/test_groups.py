"""`axis_index_groups`: each group is a batch of its own, and what is no partition is an error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
from tests.split_data import DATA, arguments
from tests.split_reference import expected
from tests.splits import SPLITS

PARAMS, STATS = jaxbn.init(6)
X = DATA["mask"].x


def normalize(split, groups, x=X, mask=None):
    name, apply = SPLITS[split]

    def layer(params, stats, x, mask):
        return jaxbn.batch_norm(
            params, stats, x, use_running_average=False, mask=mask, axis_name=name, axis_index_groups=groups,
            momentum=0.9,
        )  # fmt: skip

    return jax.jit(lambda x: apply(layer, PARAMS, STATS, x, mask))(x)


ONE_NAME = ["vmap", "pmap", "shard_map, checked", "shard_map, unchecked"]
TWO_NAMES = ["vmap, two names", "shard_map, two names, checked", "vmap in shard_map, unchecked"]


@pytest.mark.parametrize("split", ONE_NAME + TWO_NAMES)
def test_groups_may_be_of_unequal_size(split):
    data = DATA["mask"]._replace(groups=((2,), (0, 1, 3)))
    args = arguments(data) | {"params": PARAMS, "stats": STATS}
    y, new = normalize(split, data.groups, data.x, data.mask)
    want = expected(data, args)
    for name, value in {"y": y, **new}.items():
        np.testing.assert_allclose(value, want[name], rtol=1e-6, atol=2e-5, err_msg=name)  # y up to 190


def test_members_are_numbered_in_the_order_of_the_names():
    # With names ("d", "e") member 2 * d + e; with the names in the other order, member 2 * e + d.
    y, _ = normalize("vmap, two names", ((0, 1), (2, 3)))

    def layer(x):
        return jaxbn.batch_norm(
            PARAMS, STATS, x, use_running_average=False, axis_name=("e", "d"), axis_index_groups=((0, 2), (1, 3))
        )[0]

    z = jax.jit(jax.vmap(jax.vmap(layer, axis_name="e"), axis_name="d"))(X.reshape(2, 2, 2, 4, 6))
    np.testing.assert_allclose(z.reshape(X.shape), y, rtol=0, atol=1e-6)


def test_one_group_of_all_is_no_groups():
    for a, b in zip(normalize("vmap", ((3, 1, 0, 2),)), normalize("vmap", None), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), a, b)


@pytest.mark.parametrize(
    "groups",
    [((0, 1), (2,)), ((0, 1), (2, 3, 3)), ((0, 1), (2, 4)), ((0, 1), (2, 3), ()), ((0, 1), (1, 2, 3)), ()],
    ids=["one missing", "one twice", "out of range", "empty", "in two groups", "none"],
)
def test_groups_that_are_no_partition_are_an_error(groups):
    with pytest.raises(ValueError, match=r"must be a partition of the 4 indices of \('d',\): each of 0..3 in exactly"):
        normalize("vmap", groups)


@pytest.mark.parametrize("groups", [3, (0, 1, 2, 3), "0123", ((0.5, 1), (2, 3))])
def test_groups_that_are_no_sequences_of_integers_are_an_error(groups):
    with pytest.raises(TypeError, match="`axis_index_groups` must be a sequence of sequences of integers, got"):
        normalize("vmap", groups)


def test_groups_without_an_axis_name_are_an_error():
    with pytest.raises(ValueError, match="`axis_index_groups` needs an `axis_name` to group"):
        jaxbn.batch_norm(PARAMS, STATS, X, use_running_average=False, axis_index_groups=((0, 1), (2, 3)))


def test_moments_follow_the_groups():
    def of_member(x):
        return jaxbn.batch_moments(x, axis_name="d", axis_index_groups=((0, 3), (1, 2)))

    moments = jax.vmap(of_member, axis_name="d")(jnp.asarray(X).reshape(4, 2, 4, 6))
    assert moments.count.tolist() == [16.0] * 4
    np.testing.assert_allclose(moments.mean[0], np.float64(X)[[0, 1, 6, 7]].mean((0, 1)), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(moments.var[0], moments.var[3])
