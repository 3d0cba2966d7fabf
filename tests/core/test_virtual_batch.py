"""Virtual batches: every chunk by itself, the statistics of all of them, and no collective within a device."""

import os
from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

import jaxbn
from jaxbn._xla.program import TUNING
from tests.collectives import collectives
from tests.split_data import DATA, arguments
from tests.split_reference import expected
from tests.splits import SHARDINGS, Sharding

WHOLE = None
CHUNKS = {2: ((0,), (1,), (2,), (3,)), 4: ((0, 1), (2, 3)), 8: WHOLE}
"""size of a chunk: the members (of two examples each) of each chunk"""


def of_chunks(data, args, size):
    """Each chunk normalizes by itself; the statistics, and what depends on them, are those of the whole batch."""
    none = jax.tree.map(np.zeros_like, args["dstats"])
    chunks = expected(data._replace(groups=CHUNKS[size]), args | {"dstats": none})
    whole = expected(data, args | {"dy": np.zeros_like(args["dy"])})
    return chunks | {"dx": chunks["dx"] + whole["dx"], "mean": whole["mean"][0], "var": whole["var"][0]}


def step(data, size):
    """Output, statistics and gradients in one program."""

    def run(params, stats, x, mask, dy, dstats):
        def layer(params, x):
            return jaxbn.batch_norm(
                params, stats, x, use_running_average=False, mask=mask, virtual_batch_size=size, **data.options()
            )

        out, vjp = jax.vjp(layer, params, x)
        return out, vjp((dy, dstats))

    return run


@pytest.mark.parametrize("data", ["plain", "mask, one member empty", "weights per channel", "axis 1"])
@pytest.mark.parametrize("size", CHUNKS)
def test_every_chunk_is_normalized_by_itself(size, data):
    data = DATA[data]
    args = arguments(data)
    dstats = {k: v.sum(0) for k, v in args["dstats"].items()}
    run = jax.jit(step(data, size))
    (y, new), (dparams, dx) = run(args["params"], args["stats"], data.x, data.mask, args["dy"], dstats)
    for name, value in {"y": y, "dx": dx, **new, **dparams}.items():
        want = of_chunks(data, args, size)[name]
        scale = max(1, np.abs(want).max())
        np.testing.assert_allclose(np.float64(value) / scale, want / scale, rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.skipif(
    not TUNING or os.environ.get("JAXBN_TEST_PLATFORM") == "tpu",
    reason="without tuning, and in a branch on a TPU, a batch is read twice, and collected twice",
)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(
    ("size", "groups"), [(2, []), (4, [[0, 1], [2, 3]]), (8, [[0, 1, 2, 3]])], ids=["a device", "a pair", "all"]
)
def test_a_chunk_talks_to_its_own_devices_only(size, groups, kind):
    sharding: Sharding = SHARDINGS["batch"]._replace(axis_type=kind)
    data = DATA["plain"]
    args = arguments(data)

    def layer(params, stats, x):
        return jaxbn.batch_norm(params, stats, x, use_running_average=False, virtual_batch_size=size)

    def normalize(params, stats, x, dy):
        """What the network sees; the running statistics, which are those of all chunks, are apart."""
        y, vjp = jax.vjp(lambda x: layer(params, stats, x)[0], x)
        return y, *vjp(dy)

    with jax.set_mesh(sharding.mesh()):
        params, stats, x, _ = sharding.put(args["params"], args["stats"], data.x, None)
        dy = sharding.put({}, {}, args["dy"], None)[2]
        compiled = jax.jit(normalize).lower(params, stats, x, dy).compile()
        found = collectives(compiled)
        assert [c.groups for c in found] == [groups, groups] * bool(groups)
        of_statistics = jax.jit(lambda *args: layer(*args)[1]).lower(params, stats, x).compile()
        assert len(collectives(of_statistics)) == (2 if size == 4 else 1)
        y, dx = compiled(params, stats, x, dy)
    none = args | {"dstats": jax.tree.map(np.zeros_like, args["dstats"])}
    want = of_chunks(data, none, size)
    np.testing.assert_allclose(y, want["y"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(dx, want["dx"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [3, 0, -2, 16])
def test_a_size_that_does_not_divide_the_batch_is_an_error(size):
    data = DATA["plain"]
    args = arguments(data)
    with pytest.raises(ValueError, match=r"must divide the number of examples, 8 in float32\[8, 4, 6\], got"):
        partial(jaxbn.batch_norm, use_running_average=False, virtual_batch_size=size)(
            args["params"], args["stats"], data.x
        )
