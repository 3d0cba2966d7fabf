"""The table of all ways to split x all batches: the answer is that of the whole batch on one device in float64."""

import functools

import jax
import numpy as np
import pytest

import jaxbn
from tests.split_data import DATA, Data, arguments
from tests.split_reference import expected
from tests.splits import SPLITS

WITHOUT = "vmap in shard_map, checked"
"""JAX has no collectives there."""


def check(found, data, args, tolerance=2e-5):
    """Each array to `tolerance`, in the unit of its largest value."""
    (y, new), (params, dx) = found
    for name, value in {"y": y, "dx": dx, **new, **params}.items():
        want = expected(data, args)[name]
        scale = max(1, np.abs(want).max())
        np.testing.assert_allclose(np.float64(value) / scale, want / scale, rtol=0, atol=tolerance, err_msg=name)


@functools.cache
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


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("split", [s for s in SPLITS if s != WITHOUT])
def test_one_batch_one_answer(split, data):
    data: Data = DATA[data]
    options = {**data.options(), "axis_index_groups": data.groups}
    args = arguments(data)
    run = program(split, tuple(options.items()))
    check(run(args["params"], args["stats"], data.x, data.mask, args["dy"], args["dstats"]), data, args)
