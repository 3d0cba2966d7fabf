"""Every tool that looks at a model, on networks as people write them, against float64 NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
import jaxbn.nnx
import jaxbn.testing
from jaxbn._models.find import find_batch_norms
from jaxbn._tools.layer_options import layer_options
from tests.networks import BOTH, NETWORKS


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda name: name.replace(" ", "-"))
def network(request):
    return NETWORKS[request.param]()


def population(parts):
    """Of [n, C] or [L, n, C] arrays: {'mean', 'var'}, [C] or [L, C]."""
    whole = np.concatenate(parts, -2)
    return {"mean": whole.mean(-2), "var": whole.var(-2)}


def expected(network):
    entering = [network.entering(batch) for batch in network.batches]
    return {path: population([e[path] for e in entering]) for path in entering[0]}


def assert_statistics(got, expected):
    assert set(got) == set(expected)
    for path, stats in expected.items():
        for name, value in stats.items():
            np.testing.assert_allclose(got[path][name], value, rtol=1e-5, atol=1e-5, err_msg=f"{path} {name}")


def statistics(model):
    return {path: found.batch_stats for path, found in find_batch_norms(model).items()}


def copied(model):
    return nnx.clone(model) if isinstance(model, nnx.Module) else model


def test_recalibrated(network):
    model = jaxbn.recalibrate(network.forward, copied(network.model), network.batches)
    assert_statistics(statistics(model), expected(network))
    assert jax.tree.structure(model) == jax.tree.structure(network.model)


def test_collected_and_summed_up(network):
    moments = jaxbn.collect_moments(network.forward, network.model, network.batches[0])
    entered = network.entering(network.batches[0])
    got = {path: {"mean": m.mean, "var": m.var} for path, m in moments.items()}
    assert_statistics(got, {path: population([x]) for path, x in entered.items()})
    for path, x in entered.items():
        np.testing.assert_array_equal(moments[path].count, np.full(x.shape[:-2] + x.shape[-1:], x.shape[-2]))
    rows = jaxbn.summary(network.model, moments)
    assert [row.layer for row in rows] == ["/".join(path) for path in find_batch_norms(network.model)]
    for row in rows:
        x = entered[tuple(row.layer.split("/"))]  # the running statistics are still 0 and 1
        assert row.mean_distance == pytest.approx(np.abs(x.mean(-2)).max() * math.sqrt(x.shape[-2]), rel=1e-4)
    assert "layer" in str(rows)


def test_accumulated(network):
    if isinstance(network.model, nnx.Module):
        model = copied(network.model)
        for layer in (m for _, m in nnx.iter_modules(model) if isinstance(m, jaxbn.nnx.BatchNorm)):
            layer.momentum = 0.0
        jaxbn.nnx.zero_moments(model)
        for batch in network.batches:
            network.forward(model, batch)
        jaxbn.nnx.commit_moments(model)
        assert_statistics(statistics(model), expected(network))
        return
    stats, module = network.model["batch_stats"], network.module
    if hasattr(module, "stacked"):  # a stack accumulates with an entry of its own
        module = module.clone(stacked=(*module.stacked, "batch_moments"))
    given = {**network.model, "batch_moments": jaxbn.zero_moments(stats)}
    for batch in network.batches:
        given |= module.apply(given, *jax.tree.leaves(batch), *network.call, mutable=BOTH)[1]
    options = layer_options(network.forward, network.model, network.batches[0])
    assert set(options["momentum"]) == {"/".join(path) for path in find_batch_norms(network.model)}
    new = jaxbn.commit_moments(stats, given["batch_moments"], momentum=dict.fromkeys(options["momentum"], 0.0))
    assert_statistics(statistics({"batch_stats": new}), expected(network))


def test_masked_for_the_optimizer_and_merged(network):
    mask = jaxbn.batch_norm_mask(network.model)
    of_batch_norms = 2 * len(find_batch_norms(network.model))
    assert sum(jax.tree.leaves(mask)) == of_batch_norms
    stats = {"/".join(path): s for path, s in statistics(network.model).items()}
    merged = jaxbn.merge_batch_stats([stats, jax.tree.map(lambda v: v + 1, stats)])
    for s in merged.values():
        np.testing.assert_allclose(s["mean"], np.full(s["mean"].shape, 0.5), rtol=1e-6)
        np.testing.assert_allclose(s["var"], np.full(s["var"].shape, 1.5 + 0.25), rtol=1e-6)


@pytest.mark.exhaustive
def test_in_evaluation_a_second_pass_in_sequence_changes_nothing(network):
    if isinstance(network.model, nnx.Module):
        model = copied(network.model)
        model.eval()
        forward = network.forward
    else:
        model, module, call = network.model, network.module, network.call
        mutable = BOTH if call else ["batch_moments"]  # by a flag, or by what may be written

        def forward(variables, batch):
            return module.apply(variables, *jax.tree.leaves(batch), *[False for _ in call], mutable=mutable)

    settled = jaxbn.recalibrate(forward, model, network.batches, sequential=True)
    before = jax.tree.map(np.asarray, statistics(settled))
    again = statistics(jaxbn.recalibrate(forward, settled, network.batches))
    for path, stats in before.items():
        for name, value in stats.items():
            np.testing.assert_allclose(again[path][name], value, rtol=1e-5, atol=1e-5)


def of_what_is_no_padding(y, x, paddings, train):
    return jnp.where(paddings[:, :, None] == 0, jnp.sin(2 * y), 0).mean()


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [name for name in NETWORKS if "dropout" not in name and "halves" not in name])
def test_with_an_axis_name_the_split_does_not_matter_and_without_one_the_first_norm_is_named(name):
    def assert_invariant(axis_name):
        network = NETWORKS[name](axis_name)
        module, variables = (network.model, None) if network.module is None else (network.module, network.model)
        inputs = jax.tree.leaves(network.batches[0])
        loss = of_what_is_no_padding if name == "padded speech" else None
        jaxbn.testing.assert_split_invariant(module, *inputs, *network.call, variables=variables, loss=loss)

    assert_invariant("batch")
    with pytest.raises(AssertionError, match=r"the output of .*(stem|first|bn)(, step 1)? is the first that changes"):
        assert_invariant(None)
