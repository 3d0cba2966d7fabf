"""The table of all ways to split x all batches: the answer is that of the whole batch on one device in float64."""

from functools import cache, partial

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxbn
from tests.split_data import DATA, Data, arguments
from tests.split_reference import expected
from tests.splits import MEMBERS, SPLITS, mesh

WITHOUT = "vmap in shard_map, checked"
"""JAX has no collectives there."""


def check(found, data, args, tolerance=2e-5):
    """Each array to `tolerance`, in the unit of its largest value."""
    (y, new), (params, dx) = found
    for name, value in {"y": y, "dx": dx, **new, **params}.items():
        want = expected(data, args)[name]
        scale = max(1, np.abs(want).max())
        np.testing.assert_allclose(np.float64(value) / scale, want / scale, rtol=0, atol=tolerance, err_msg=name)


@cache
def program(split, options):
    """Output, statistics and gradients in one compiled program."""
    name, apply = SPLITS[split]

    def layer(params, stats, x, mask):
        return jaxbn.batch_norm(params, stats, x, use_running_average=False, mask=mask, axis_name=name, **dict(options))

    @jax.jit
    def run(params, stats, x, mask, dy, dstats):
        out, vjp = jax.vjp(lambda params, x: apply(layer, params, stats, x, mask), params, x)
        return out, vjp((dy, dstats))

    return run


def test_statistics_may_differ_between_devices_that_share_a_batch():
    """Their common pivot then counts as varying, and so must the derivative of the moments."""
    params, stats = jaxbn.init(3)
    x = jax.random.normal(jax.random.key(0), (8, 3))
    rows = jax.tree.map(lambda v: np.stack([v] * MEMBERS), stats)

    @partial(jax.shard_map, mesh=mesh((MEMBERS,), ("d",)), in_specs=(P(), P("d"), P("d")), out_specs=(P(), P("d")))
    def step(params, rows, x):
        def loss(params):
            stats = jax.tree.map(lambda v: v[0], rows)
            y, new = jaxbn.batch_norm(params, stats, x, use_running_average=False, axis_name="d")
            return jax.lax.pmean((y**3).mean(), "d"), new

        grads, new = jax.grad(loss, has_aux=True)(params)
        return grads, jax.tree.map(lambda v: v[None], new)

    def whole(params):
        y, new = jaxbn.batch_norm(params, stats, x, use_running_average=False)
        return (y**3).mean(), new

    grads, new = jax.jit(step)(params, rows, x)
    want, stats = jax.grad(whole, has_aux=True)(params)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), grads, want)
    for name, value in new.items():
        np.testing.assert_allclose(value, np.stack([stats[name]] * MEMBERS), atol=1e-5)


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("split", [s for s in SPLITS if s != WITHOUT])
def test_one_batch_one_answer(split, data):
    data: Data = DATA[data]
    options = {**data.options(), "axis_index_groups": data.groups}
    args = arguments(data)
    run = program(split, tuple(options.items()))
    check(run(args["params"], args["stats"], data.x, data.mask, args["dy"], args["dstats"]), data, args)
