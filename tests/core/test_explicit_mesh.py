"""Meshes with explicit axes, which `jax.make_mesh` makes by default: any axis of x is split, over any devices."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxbn
import jaxbn.linen
from tests.oracle import check_step
from tests.splits import mesh

SHAPE = (8, 4, 6, 4)
ONE = [P(*(None,) * a, "d") for a in range(4)]
TWO = [
    P(*("d" if a == i else "m" if a == j else None for a in range(4))) for i, j in itertools.permutations(range(4), 2)
]
SPECS = [*ONE, *TWO, P(("d", "m"))]
"""Every axis split, every two axes, and one over both."""


def place(value, spec, devices):
    """On the mesh; an axis of size 1 is not split."""
    names = [name if n > 1 else None for name, n in zip([*spec, *[None] * value.ndim], value.shape, strict=False)]
    return jax.device_put(value, NamedSharding(devices, P(*names)))


def sharded(spec, devices, axis=-1):
    """Makes a function of (params, stats, x, dy, mask) one of arrays that are split like that, under `jit`."""
    of_features = P([*spec, *[None] * 4][axis % len(SHAPE)])

    def run(f):
        def placed(params, stats, x, dy, mask):
            vectors = jax.tree.map(lambda v: place(v, of_features, devices), (params, stats))
            mask = None if mask is None else place(mask, spec, devices)
            with jax.set_mesh(devices):
                return jax.jit(f)(*vectors, place(x, spec, devices), place(dy, spec, devices), mask)

        return placed

    return run


def batch(shape=SHAPE, offset=10):
    return (np.random.default_rng(0).normal(size=shape) + offset).astype(np.float32)


@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto], ids=str)
@pytest.mark.parametrize("spec", ONE + TWO[::3], ids=str)
def test_any_axis_may_be_split(spec, axis_type):
    devices = mesh((2, 2), ("d", "m"), axis_type)
    check_step(batch(), run=sharded(spec, devices))


@pytest.mark.parametrize("spec", ONE, ids=str)
def test_a_mask_may_be_split_with_them(spec):
    devices = mesh((2, 2), ("d", "m"), AxisType.Explicit)
    mask = np.random.default_rng(1).random((8, 1, 6, 1)) < 0.7
    check_step(batch(), axis=1, mask=mask, run=sharded(spec, devices, 1))


@pytest.mark.exhaustive
@pytest.mark.parametrize("options", [{}, {"use_fast_variance": False}, {"virtual_batch_size": 2}], ids=str)
@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto], ids=str)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_any_axis_may_be_split_whatever_is_asked(spec, axis_type, axis, options):
    devices = mesh((2, 2), ("d", "m"), axis_type)
    size = options.get("virtual_batch_size")
    examples = SHAPE[1 if axis == 0 else 0]
    batches = None if size is None else np.arange(examples).reshape(-1, size).tolist()
    check_step(batch(), axis=axis, batches=batches, run=sharded(spec, devices, axis), **options)


@pytest.mark.parametrize(("shape", "parts"), [((18, 3), 2), ((20, 3), 4), ((40, 3), 8), ((16, 257), 8), ((8, 3), 8)])
@pytest.mark.parametrize("offset", [0, 1000])
def test_rows_may_be_split_over_any_number_of_devices(shape, parts, offset):
    devices = mesh((parts,), ("d",), AxisType.Explicit)
    cold = {"mean": np.zeros(shape[1], np.float32), "var": np.ones(shape[1], np.float32)}

    def run(f):
        def placed(params, stats, x, dy, mask):
            x, dy = (place(v, P("d"), devices) for v in (x, dy))
            vectors = jax.tree.map(lambda v: place(v, P(), devices), (params, stats))
            with jax.set_mesh(devices):
                return jax.jit(f)(*vectors, x, dy, mask)

        return placed

    check_step(batch(shape, offset), stats=cold, momentum=0.0, run=run)


def test_the_output_is_split_as_the_input_and_the_statistics_as_they_were():
    devices = mesh((2, 2), ("d", "m"), AxisType.Explicit)
    spec = P("d", None, "m")
    x = place(batch((8, 4, 6)), spec, devices)
    params, stats = jax.tree.map(lambda v: place(v, P("m"), devices), jaxbn.init(6))

    def layer(params, stats, x):
        return jaxbn.batch_norm(params, stats, x, use_running_average=False)

    with jax.set_mesh(devices):
        y, new = jax.jit(layer)(params, stats, x)
        gradient = jax.jit(jax.grad(lambda x: jnp.sin(layer(params, stats, x)[0]).sum()))(x)
    assert y.sharding.spec == spec
    assert gradient.sharding.spec == spec
    for name, value in new.items():
        assert value.sharding.spec == stats[name].sharding.spec, name


@pytest.mark.parametrize("options", [{}, {"use_fast_variance": False}], ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("spec", "of_layer"),
    [(P("d", None, None, "m"), P()), (P("d", None, None, "m"), P("m")), (P("d", "m"), P())],
    ids=str,
)
def test_one_axis_may_be_mapped_while_another_splits_what_it_likes(spec, of_layer, masked, options):
    """A `shard_map` over a part of a mesh: what it does not map stays in the types."""
    devices = mesh((2, 2), ("d", "m"), AxisType.Explicit)
    rows, same = P("d"), P()
    specs = {"y": rows, "dx": rows, "mean": same, "var": same, "dscale": same, "dbias": same}

    def run(f):
        def placed(params, stats, x, dy, mask):
            vectors = jax.tree.map(lambda v: place(v, of_layer, devices), (params, stats))
            arrays = [v if v is None else place(v, spec, devices) for v in (x, dy, mask)]
            in_specs = (same, same, rows, rows, None if mask is None else rows)
            with jax.set_mesh(devices):
                mapped = jax.shard_map(f, in_specs=in_specs, out_specs=specs, axis_names={"d"})
                return jax.jit(mapped)(*vectors, *arrays)

        return placed

    mask = np.random.default_rng(1).random((8, 4, 6, 1)) < 0.7 if masked else None
    check_step(batch(offset=100), mask=mask, run=run, axis_name="d", **options)


@pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("spec", [P("a", None, "b"), P(None, None, "b"), P(None, "b", "a")], ids=str)
def test_a_state_that_was_placed_nowhere_meets_an_input_that_is_split(run, spec):
    x = np.random.default_rng(0).normal(size=(6, 8, 4)).astype(np.float32)
    params, stats = jaxbn.init(4)

    def layer(params, stats, x):
        return jaxbn.batch_norm(params, stats, x, use_running_average=False, momentum=0.0)

    want = layer(params, stats, jnp.asarray(x))
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        got = run(layer)(params, stats, jax.device_put(x, NamedSharding(mesh, spec)))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=2e-6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("of_layer", [P(), P("m")])
@pytest.mark.parametrize("of_x", [P("d", None), P(None, "m"), P("d", "m"), P(None, None)])
def test_gradients_are_split_as_what_they_are_of(of_x, of_layer, training):
    """Parameters and statistics split over the features, x in whatever way."""
    devices = jax.make_mesh((2, 4), ("d", "m"), axis_types=(AxisType.Explicit,) * 2)
    x = jax.random.normal(jax.random.key(0), (8, 8)) + 3
    layer = jaxbn.init(8)

    def loss(x, params, stats):
        y, _ = jaxbn.batch_norm(
            params, stats, x, use_running_average=not training, residual=x, activation="relu", renorm=jaxbn.Renorm()
        )
        return (y * y * y).sum()

    expected = jax.grad(loss, (0, 1))(x, *layer)
    with jax.set_mesh(devices):
        put = jax.device_put(x, NamedSharding(devices, of_x))
        params, stats = jax.device_put(layer, NamedSharding(devices, of_layer))
        for grad in (jax.grad(loss, (0, 1)), jax.jit(jax.grad(loss, (0, 1)))):
            found = grad(put, params, stats)
            assert jax.typeof(found[0]) == jax.typeof(put)
            assert jax.tree.map(jax.typeof, found[1]) == jax.tree.map(jax.typeof, params)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), found, expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("names", [("scale",), ("bias",), ("scale", "bias")])
def test_parameters_have_gradients_where_x_has_none(names, training):
    """As in the first layer of a network: what a channel gets is then split for one parameter and not for the other."""
    x = batch((8, 4))
    params, stats = jaxbn.init(4)

    def loss(params, x):
        y, _ = jaxbn.batch_norm(params, stats, x, use_running_average=not training)
        return jnp.sin(y).sum()

    trained = {name: params[name] + 0.5 for name in names}
    expected = jax.grad(loss)(trained, jnp.asarray(x))
    devices = mesh((2, 2), ("d", "m"), AxisType.Explicit)
    with jax.set_mesh(devices):
        for gradient in (jax.grad(loss), jax.jit(jax.grad(loss))):
            found = gradient(trained, place(x, P("d", "m"), devices))
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


@pytest.mark.parametrize("of_layer", [P(), P("m")], ids=str)
def test_moments_of_an_input_that_is_split_join_those_so_far(of_layer):
    microbatches = [batch((n, 4)) + n for n in (8, 4)]
    devices = mesh((2, 2), ("d", "m"), AxisType.Explicit)
    model = jaxbn.linen.BatchNorm(use_running_average=False, momentum=None)
    variables = model.init(jax.random.key(0), microbatches[0])
    whole = np.concatenate(microbatches).astype(np.float64)

    def both(variables, x):
        return model.apply(variables, x, mutable=["batch_moments", "batch_stats"])

    @jax.jit
    def accumulated(variables, so_far, x):
        return model.apply({**variables, "batch_moments": so_far}, x, mutable=["batch_moments"])[1]["batch_moments"]

    with jax.set_mesh(devices):
        placed = [place(x, P("d", "m"), devices) for x in microbatches]
        variables = jax.tree.map(lambda v: place(v, of_layer, devices), variables)
        so_far = jaxbn.zero_moments(variables["batch_stats"])
        for x in placed:
            before = jax.tree.map(jax.typeof, so_far)
            so_far = accumulated(variables, so_far, x)
            assert jax.tree.map(jax.typeof, so_far) == before
        found = {
            "accumulated": jaxbn.commit_moments(variables["batch_stats"], so_far, momentum=None),
            "recalibrated": jaxbn.recalibrate(both, variables, placed)["batch_stats"],
            "merged": jaxbn.merge_moments(*map(jaxbn.batch_moments, placed))._asdict(),
            "beside none": jaxbn.merge_moments(
                jaxbn.Moments(jnp.zeros(()), jnp.zeros(4), jnp.zeros(4)), *map(jaxbn.batch_moments, placed)
            )._asdict(),
        }
        single = [jaxbn.batch_moments(x) for x in (placed[0], jnp.asarray(microbatches[1]))]
        found["replicas"] = jaxbn.merge_batch_stats(
            [{"mean": m.mean, "var": m.var} for m in single], jnp.array([8, 4])
        )  # one split, one not
    for name, stats in found.items():
        np.testing.assert_allclose(stats["mean"], whole.mean(0), rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(stats["var"], whole.var(0), rtol=1e-5, err_msg=name)
