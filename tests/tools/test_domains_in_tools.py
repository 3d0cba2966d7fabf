"""The tools that look at a model, on one with statistics per domain."""

import numpy as np
import pytest
from flax import nnx

import jaxbn
import jaxbn.linen
import jaxbn.nnx
from tests import reference
from tests.domain_cases import FEATURES, NUM_DOMAINS, batch, close, of_linen, state


def recalibrated(training):
    """Batches of one domain and of two, through linen and nnx; the third domain is never seen."""
    batches = [(0, batch(1)[0]), ((1, 0), batch(2)[0])]
    model, variables = of_linen()
    layer = jaxbn.nnx.BatchNorm(FEATURES, num_domains=NUM_DOMAINS, rngs=nnx.Rngs(0))
    for d, x in batches:
        domain = d

        def forward(variables, x, domain=domain):
            return model.apply(
                variables, x, use_running_average=not training, domain=domain, mutable=["batch_moments", "batch_stats"]
            )

        def call(layer, x, domain=domain):
            return layer(x, not training, domain=domain)

        yield d, x, jaxbn.collect_moments(forward, variables, x)[()], jaxbn.collect_moments(call, layer, x)[()]


@pytest.mark.parametrize("training", [True, False])
def test_what_enters_a_layer_is_collected_by_domain(training):
    for d, x, *both in recalibrated(training):
        domains = d if isinstance(d, tuple) else (d,)
        for moments in both:
            seen = {k: np.zeros((NUM_DOMAINS, FEATURES)) for k in ("count", "mean", "var")}
            for domain, part in zip(domains, np.split(x, len(domains)), strict=True):
                for k, v in zip(seen, reference.moments(part), strict=True):
                    seen[k][domain] = v
            close(moments._asdict(), seen)


def test_recalibration_sets_the_domains_that_it_sees():
    model, variables = of_linen()
    x, other = batch(1)[0], batch(2)[0]

    def forward(variables, inputs):
        return model.apply(
            variables,
            inputs["x"],
            use_running_average=False,
            domain=inputs["domain"],
            mutable=["batch_stats", "batch_moments"],
        )

    batches = [
        {"x": x, "domain": np.int32(0)},
        {"x": other, "domain": np.int32(2)},
        {"x": 2 * x, "domain": np.int32(0)},
    ]
    stats = jaxbn.recalibrate(forward, variables, batches)["batch_stats"]
    want = {"mean": np.zeros((NUM_DOMAINS, FEATURES)), "var": np.ones((NUM_DOMAINS, FEATURES))}
    for d, rows in ((0, np.concatenate([x, 2 * x])), (2, other)):
        _, want["mean"][d], want["var"][d] = reference.moments(rows)
    close(stats, want)


def test_microbatches_of_different_domains_are_committed_once():
    model, variables = of_linen()
    x, other = batch(1)[0], batch(2)[0]
    moments = jaxbn.zero_moments(variables["batch_stats"])
    layer = jaxbn.nnx.BatchNorm(FEATURES, num_domains=NUM_DOMAINS, momentum=0.9, rngs=nnx.Rngs(0))
    jaxbn.nnx.zero_moments(layer)
    for d, inputs in ((0, x), ((1, 0), other)):
        given_variables = {**variables, "batch_moments": moments}
        _, written = model.apply(
            given_variables, inputs, use_running_average=False, domain=d, mutable=["batch_moments"]
        )
        moments = written["batch_moments"]
        layer(inputs, domain=d)
    jaxbn.nnx.commit_moments(layer)
    got = jaxbn.commit_moments(variables["batch_stats"], moments, momentum=0.9)
    want = {"mean": np.zeros((NUM_DOMAINS, FEATURES)), "var": np.ones((NUM_DOMAINS, FEATURES))}
    for d, rows in ((0, np.concatenate([x, other[6:]])), (1, other[:6])):
        _, mean, var = reference.moments(rows)
        want["mean"][d], want["var"][d] = 0.1 * mean, 0.9 + 0.1 * var
    close(got, want)
    close({"mean": layer.mean[...], "var": layer.var[...]}, want)


def test_summary_has_a_row_for_each_domain():
    params, stats = state(affine=False)
    stats["var"][1, 0] = 0
    rows = jaxbn.summary({"params": {"bn": params}, "batch_stats": {"bn": stats}}, stacked=True)
    assert [r.layer for r in rows] == ["bn[0]", "bn[1]", "bn[2]"]
    assert [r.dead for r in rows] == [0, 1, 0]
    assert rows[2].largest_var == pytest.approx(stats["var"][2].max())
