"""Statistics per domain: a layer with D domains is D separate layers, in float64, and no other row moves."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxbn
import jaxbn.linen
import jaxbn.nnx
from tests import reference
from tests.domain_cases import (
    NUM_DOMAINS,
    batch,
    close,
    found,
    row,
    separate,
    state,
)


@settings(max_examples=12, deadline=None)
@given(
    domains=st.permutations(range(NUM_DOMAINS)).flatmap(lambda p: st.integers(1, 3).map(lambda n: tuple(p[:n]))),
    traced=st.booleans(),
    affine=st.booleans(),
    masked=st.booleans(),
    options=st.sampled_from([{}, {"momentum": None}, {"unbiased": True}, {"virtual_batch_size": 2}]),
)
def test_domains_are_separate_layers(domains, traced, affine, masked, options):
    params, stats = state(affine=affine, count=options.get("momentum", 0) is None)
    x, dy, mask = batch()
    mask = mask if masked else None
    single = jnp.asarray(domains[0]) if traced else domains[0]
    given_options = {"momentum": 0.9, "mask": mask, **options}
    got = found(params, stats, x, dy, domains if len(domains) > 1 else single, **given_options)
    chunk = options.get("virtual_batch_size")
    update = {k: v for k, v in options.items() if k != "virtual_batch_size"}
    close(got, separate(params, stats, x, dy, domains, mask, chunk, **update))


@pytest.mark.parametrize("domain", [1, jnp.asarray(2), (2, 0)])
def test_evaluation_takes_the_rows_and_leaves_the_state(domain):
    params, stats = state()
    x, _, _ = batch()
    y, new = jaxbn.batch_norm(params, stats, x, use_running_average=True, domain=domain, activation="relu")
    domains = domain if isinstance(domain, tuple) else (int(domain),)
    parts = [
        np.maximum(reference.normalize(row(params, d), part, stats["mean"][d], stats["var"][d]), 0)
        for d, part in zip(domains, np.split(x, len(domains)), strict=True)
    ]
    close({"y": y, **new}, {"y": np.concatenate(parts), **stats})


@pytest.mark.parametrize("axis", [0, 1, -1, (0, 2), (1, -1)])
@pytest.mark.parametrize("training", [True, False])
def test_the_feature_axes_may_be_anywhere(axis, training):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4, 6, 8)).astype(np.float32) + 5
    axes = [a % 3 for a in (axis if isinstance(axis, tuple) else (axis,))]
    shape = tuple(x.shape[a] for a in axes)
    params, stats = jaxbn.init(shape, num_domains=2)
    stats["mean"] = jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32)
    first = next(a for a in range(3) if a not in axes)
    options: dict[str, Any] = {"use_running_average": not training, "axis": axis}
    y, new = jaxbn.batch_norm(params, stats, x, domain=(1, 0), **options)
    for d, part, got in zip((1, 0), np.split(x, 2, first), np.split(np.asarray(y), 2, first), strict=True):
        want, updated = jaxbn.batch_norm(params, {k: v[d] for k, v in stats.items()}, part, **options)
        np.testing.assert_allclose(got, want, atol=1e-6)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-6), {k: v[d] for k, v in new.items()}, updated
        )


@pytest.mark.parametrize("options", [{"renorm": jaxbn.Renorm(1.5, 0.5)}, {"residual": True, "activation": "silu"}])
def test_renorm_and_residual_compose(options):
    params, stats = state()
    x, dy, _ = batch()
    options = options | ({"residual": dy} if "residual" in options else {})
    got = found(params, stats, x, dy, (2, 0), **options)
    for d, part in zip((2, 0), (slice(0, 6), slice(6, 12)), strict=True):
        of_part = options | ({"residual": dy[part]} if "residual" in options else {})
        p, s = row(params, d), row(stats, d)
        y, vjp, new = jax.vjp(
            lambda p, x, s=s, o=of_part: jaxbn.batch_norm(p, s, x, use_running_average=False, **o),
            p, x[part], has_aux=True,
        )  # fmt: skip
        dp, dx = vjp(dy[part])
        close(
            {"y": got["y"][part], "dx": got["dx"][part], "mean": got["mean"][d], "dscale": got["dscale"][d]},
            {
                "y": np.asarray(y),
                "dx": np.asarray(dx),
                "mean": np.asarray(new["mean"]),
                "dscale": np.asarray(dp["scale"]),
            },
        )


@pytest.mark.parametrize("params", ["both", "neither"])
@pytest.mark.parametrize("domain", [3, -1])
@pytest.mark.parametrize("training", [True, False])
def test_a_traced_domain_out_of_range_gives_nan_and_leaves_the_state(training, domain, params):
    affine, stats = state()
    x, _, _ = batch()

    @jax.jit
    def run(d):
        return jaxbn.batch_norm(
            affine if params == "both" else {}, stats, x, use_running_average=not training, domain=d, activation="relu"
        )

    y, new = run(jnp.asarray(domain))
    assert np.isnan(y).all()
    jax.tree.map(np.testing.assert_array_equal, new, stats)


def test_a_part_that_is_not_finite_is_no_business_of_the_others():
    params, stats = state()
    x, dy, _ = batch()
    sick = np.array(x)
    sick[:6, :, 0] = np.nan
    got, want = (found(params, stats, v, dy, (2, 0)) for v in (sick, x))
    np.testing.assert_array_equal(got["mean"][2, 0], stats["mean"][2, 0])
    for name in ("mean", "var", "dscale", "dbias"):
        np.testing.assert_allclose(got[name][0], want[name][0], rtol=1e-6)
    np.testing.assert_allclose(got["y"][6:], want["y"][6:], rtol=1e-6)


def test_a_domain_for_each_lane_of_vmap():
    params, stats = state()
    x, _, _ = batch()
    domains = jnp.array([2, 0])

    def run(d, x):
        return jaxbn.batch_norm(params, stats, x, use_running_average=False, domain=d)

    y, new = jax.vmap(run)(domains, jnp.stack([x, 2 * x]))
    for i, d in enumerate((2, 0)):
        want = run(d, (i + 1) * x)
        close({"y": y[i], "mean": new["mean"][i]}, {"y": np.asarray(want[0]), "mean": np.asarray(want[1]["mean"])})


def test_a_virtual_batch_divides_a_part_and_not_only_the_batch():
    params, stats = state()
    with pytest.raises(ValueError, match="must divide the number of examples, 6 in each part of the batch"):
        jaxbn.batch_norm(
            params, stats, batch()[0], use_running_average=False, domain=(0, 1), virtual_batch_size=4
        )  # fmt: skip


def test_an_index_wider_than_an_int32_does_not_wrap():
    params, stats = state()
    x, _, _ = batch()
    with pytest.raises(ValueError, match=r"`domain` must be an integer in \[0, 3\)"):
        jaxbn.batch_norm(params, stats, x, use_running_average=True, domain=2**32)
    with jax.enable_x64(True):
        run = jax.jit(lambda d: jaxbn.batch_norm(params, stats, x, use_running_average=True, domain=d)[0])
        for dtype, far in (("int64", 2**32), ("int64", -(2**32)), ("uint64", 2**32), ("uint32", 2**32 - 1)):
            assert np.isnan(run(jnp.asarray(far, dtype))).all()
            assert np.isfinite(run(jnp.asarray(1, dtype))).all()


def test_nothing_is_transferred_that_was_not_asked_for():
    params, stats = jax.tree.map(jnp.asarray, state())
    x = jnp.asarray(batch()[0])
    with jax.transfer_guard("disallow"):
        for domain in (1, (2, 0)):
            jaxbn.batch_norm(params, stats, x, use_running_average=False, domain=domain)


def test_a_tuple_that_is_traced_is_told():
    params, stats = state()
    with pytest.raises(TypeError, match="known at trace time, got"):
        jax.jit(lambda d: jaxbn.batch_norm(params, stats, batch()[0], use_running_average=True, domain=d))((0, 1))


@pytest.mark.parametrize("training", [True, False])
def test_parts_that_do_not_divide_the_examples_are_an_error(training):
    params, stats = jaxbn.init(2, num_domains=3)
    message = r"`domain` must divide the number of examples, 8 in float32\[8, 2\], .* got \(0, 2, 1\)"
    with pytest.raises(ValueError, match=message):
        jaxbn.batch_norm(params, stats, np.ones((8, 2), np.float32), use_running_average=not training, domain=(0, 2, 1))
