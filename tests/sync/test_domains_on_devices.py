"""Batches of several domains over devices: named axes, and arrays that are split."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxbn
import jaxbn.linen
import jaxbn.nnx
from tests.domain_cases import (
    EXAMPLES,
    batch,
    close,
    found,
    separate,
    state,
)


@pytest.mark.parametrize("domain", [1, (2, 0)])
def test_over_a_named_axis_each_part_is_that_of_all_devices(domain):
    params, stats = state()
    x, dy, mask = batch()
    mask = np.broadcast_to(mask, (EXAMPLES, 1, 1))
    domains = domain if isinstance(domain, tuple) else (domain,)
    # A device holds an equal share of each part.
    order = np.arange(EXAMPLES).reshape(len(domains), 2, -1).swapaxes(0, 1).reshape(-1)
    mesh = jax.make_mesh((2,), ("d",), devices=jax.devices()[:2], axis_types=(AxisType.Auto,))

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(P(), P("d"), P("d"), P("d")), out_specs=(P("d"), P(), P(), P("d"))
    )
    def run(params, x, dy, mask):
        def layer(params, x):
            return jaxbn.batch_norm(
                params, stats, x, use_running_average=False, domain=domain, axis_name="d", mask=mask, momentum=0.9
            )

        y, vjp, new = jax.vjp(layer, params, x, has_aux=True)
        return y, new, *vjp(dy)

    y, new, dparams, dx = run(params, x[order], dy[order], mask[order])
    back = np.argsort(order)
    got = {"y": y[back], **new, "dx": dx[back], **{f"d{k}": v for k, v in dparams.items()}}
    close(got, separate(params, stats, x, dy, domains, mask))


@pytest.mark.parametrize("domain", [1, (2, 0)])
@pytest.mark.parametrize("spec", [P("d"), P(None, "d"), P(None, None, "d")], ids=str)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_an_array_that_is_split_over_devices(kind, spec, domain):
    params, stats = state()
    x, dy, mask = batch()
    mesh = jax.make_mesh((2,), ("d",), devices=jax.devices()[:2], axis_types=(kind,))
    with jax.set_mesh(mesh):
        put = functools.partial(jax.device_put, device=NamedSharding(mesh, spec))
        got = found(params, stats, put(x), put(dy), domain, mask=mask, momentum=0.9)
    close(got, separate(params, stats, x, dy, domain if isinstance(domain, tuple) else (domain,), mask))
