"""Statistics per domain: a model with D domains is D separate layers, in float64, and no other row moves."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxbn
import jaxbn.linen
import jaxbn.nnx
from tests import reference

NUM_DOMAINS, EXAMPLES, POSITIONS, FEATURES = 3, 12, 2, 4


def state(*, affine=True, count=False):
    """Parameters and statistics that differ between domains."""
    rng = np.random.default_rng(0)
    rows = (NUM_DOMAINS, FEATURES)
    params = {k: rng.normal(size=rows if affine else FEATURES).astype(np.float32) for k in ("scale", "bias")}
    stats = {"mean": rng.normal(size=rows).astype(np.float32), "var": np.exp(rng.normal(size=rows)).astype(np.float32)}
    if count:
        stats["count"] = np.arange(NUM_DOMAINS * FEATURES, dtype=np.int32).reshape(rows)
    return params, stats


def batch(seed=0):
    """Sorted, far from 0, with an outlier first: x, dy and a mask."""
    rng = np.random.default_rng(seed)
    x = 30 + 3 * np.sort(rng.normal(size=(EXAMPLES, POSITIONS, FEATURES)), 0)
    x[0] += 20
    mask = (np.arange(EXAMPLES) % 3 > 0).reshape(-1, 1, 1)
    return x.astype(np.float32), rng.normal(size=x.shape).astype(np.float32), mask


def row(tree, d):
    return {k: v[d] if np.ndim(v) > 1 else v for k, v in tree.items()}


def separate(params, stats, x, dy, domains, mask=None, chunk=None, momentum: Any = 0.9, unbiased=False):
    """What layers of their own give, each for its part of the batch: y, the state, dx, dscale and dbias."""
    y, dx = np.zeros(x.shape), np.zeros(x.shape)
    new = {k: np.array(v, np.float64) for k, v in stats.items()}
    dparams = {k: np.zeros(v.shape) for k, v in params.items()}
    size = len(x) // len(domains)
    batches = None if chunk is None else [range(i, i + chunk) for i in range(0, size, chunk)]
    for i, d in enumerate(domains):
        part = slice(i * size, (i + 1) * size)
        p, s, m = row(params, d), row(stats, d), None if mask is None else mask[part]
        y[part] = reference.train(p, s, x[part], mask=m, batches=batches)
        moments = reference.moments(x[part], mask=m)
        for k, v in reference.update(s, *moments, momentum=momentum, unbiased=unbiased).items():
            new[k][d] = v
        gradients = reference.gradients(p, s, x[part], dy[part], mask=m, batches=batches)
        dx[part] = gradients["x"]
        for k in dparams:
            dparams[k][d if params[k].ndim > 1 else ...] += gradients[k]
    return {"y": y, **new, "dx": dx, **{f"d{k}": v for k, v in dparams.items()}}


def found(params, stats, x, dy, domain, **options):
    """The same by jaxbn, the domain traced where it is an array."""

    @jax.jit
    def run(params, x, traced):
        def layer(params, x):
            d = domain if traced is None else traced
            return jaxbn.batch_norm(params, stats, x, use_running_average=False, domain=d, **options)

        y, vjp, new = jax.vjp(layer, params, x, has_aux=True)
        return y, new, vjp(dy)

    y, new, (dparams, dx) = run(params, x, domain if isinstance(domain, jax.Array) else None)
    return {"y": y, **new, "dx": dx, **{f"d{k}": v for k, v in dparams.items()}}


def close(got, want, atol=1e-5):
    assert set(got) == set(want)
    for name, value in want.items():
        scale = max(1.0, np.abs(value).max(initial=0))
        np.testing.assert_allclose(np.asarray(got[name], np.float64) / scale, value / scale, atol=atol, err_msg=name)


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
        assert np.isnan(run(jnp.asarray(2**32))).all()


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


def test_moments_of_another_shape_are_told():
    model, variables = of_linen()
    stale = jaxbn.zero_moments({"mean": jnp.zeros(FEATURES), "var": jnp.ones(FEATURES)})
    with pytest.raises(ValueError, match=r"`batch_moments` must have the shape of `batch_stats`, \[3, 4\], got \[4\]"):
        model.apply(
            {**variables, "batch_moments": stale}, batch()[0], use_running_average=False, domain=0,
            mutable=["batch_moments"],
        )  # fmt: skip


# Devices


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


# The modules, and the tools on them


def of_linen(**fields):
    model = jaxbn.linen.BatchNorm(num_domains=NUM_DOMAINS, momentum=0.9, **fields)
    x, _, _ = batch()
    return model, model.init(jax.random.key(0), x, use_running_average=False, domain=0)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("domain", [2, (2, 0)])
def test_the_modules_give_what_the_functions_give(domain, affine):
    params, stats = state(affine=affine)
    x, _, _ = batch()
    want = jaxbn.batch_norm(params, stats, x, use_running_average=False, domain=domain, momentum=0.9)
    model, variables = of_linen(affine_per_domain=affine)
    given_variables = {"params": params, "batch_stats": stats}
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, given_variables)
    y, updates = model.apply(given_variables, x, use_running_average=False, domain=domain, mutable=["batch_stats"])
    close({"y": y, **updates["batch_stats"]}, {"y": np.asarray(want[0]), **jax.tree.map(np.asarray, want[1])})

    layer = jaxbn.nnx.BatchNorm(
        FEATURES, num_domains=NUM_DOMAINS, affine_per_domain=affine, momentum=0.9, rngs=nnx.Rngs(0)
    )
    for name, value in {**params, **stats}.items():
        variable = getattr(layer, name)
        assert variable[...].shape == value.shape
        variable[...] = jnp.asarray(value)
    y = layer(x, domain=domain)
    found = {"y": y, "mean": layer.mean[...], "var": layer.var[...]}
    close(found, {"y": np.asarray(want[0]), **jax.tree.map(np.asarray, want[1])})


@pytest.mark.parametrize("training", [True, False])
def test_parts_that_do_not_divide_the_examples_are_an_error(training):
    params, stats = jaxbn.init(2, num_domains=3)
    message = r"`domain` must divide the number of examples, 8 in float32\[8, 2\], .* got \(0, 2, 1\)"
    with pytest.raises(ValueError, match=message):
        jaxbn.batch_norm(params, stats, np.ones((8, 2), np.float32), use_running_average=not training, domain=(0, 2, 1))


def test_a_module_wants_a_domain_if_it_has_several_and_only_then():
    x, _, _ = batch()
    model, variables = of_linen()
    with pytest.raises(ValueError, match="`domain` is given in the call if the module has `num_domains`"):
        model.apply(variables, x, use_running_average=True)
    with pytest.raises(ValueError, match="`domain` is given in the call if the module has `num_domains`"):
        jaxbn.nnx.BatchNorm(FEATURES, rngs=nnx.Rngs(0))(x, domain=0)


def test_initialization_checks_the_domain_and_takes_a_batch_of_any_size():
    model, want = of_linen()
    x = batch()[0][:1]
    variables = model.init(jax.random.key(0), x, use_running_average=False, domain=(0, 2))
    jax.tree.map(np.testing.assert_array_equal, variables, want)
    for wrong, error in ((NUM_DOMAINS, ValueError), ("x", TypeError), ((), ValueError)):
        with pytest.raises(error, match="`domain` must be an integer in"):
            model.init(jax.random.key(0), x, use_running_average=False, domain=wrong)


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
