"""Plain jit over sharded arrays: synchronized without an axis name, however the arrays are sharded."""

import functools

import jax
import numpy as np
import pytest

import jaxbn
from tests.split_data import DATA, Data, arguments
from tests.split_reference import expected
from tests.splits import SHARDINGS

CASES = [name for name, data in DATA.items() if data.axis == -1 and data.groups is None]


@functools.cache
def program(options):
    """Output, statistics and gradients in one compiled program."""

    @jax.jit
    def run(params, stats, x, mask, dy, dstats):
        def layer(params, x):
            return jaxbn.batch_norm(params, stats, x, use_running_average=False, mask=mask, **dict(options))

        out, vjp = jax.vjp(layer, params, x)
        return out, vjp((dy, dstats))

    return run


@pytest.mark.parametrize("data", CASES)
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_one_batch_one_answer(sharding, data):
    data: Data = DATA[data]
    sharding = SHARDINGS[sharding]
    args = arguments(data)
    # From a warm start: the running mean is the pivot, and a cold one costs digits (tests/test_sync_accuracy.py).
    args["stats"]["mean"] += np.float32(np.nanmean(np.where(np.isfinite(data.x), data.x, np.nan)))
    want = expected(data, args)
    dstats = {k: v.sum(0) for k, v in args["dstats"].items()}
    with jax.set_mesh(sharding.mesh()):
        params, stats, x, mask = sharding.put(args["params"], args["stats"], data.x, data.mask)
        _, dstats, dy, _ = sharding.put({}, dstats, args["dy"], None)
        (y, new), (dparams, dx) = program(tuple(data.options().items()))(params, stats, x, mask, dy, dstats)
        assert y.sharding.is_equivalent_to(x.sharding, x.ndim)
    for name, value in {"y": y, "dx": dx, **new, **dparams}.items():
        wanted = want[name].mean(0) if name in ("mean", "var") else want[name]
        scale = max(1, np.abs(wanted).max())
        np.testing.assert_allclose(np.float64(value) / scale, wanted / scale, rtol=0, atol=2e-5, err_msg=name)
