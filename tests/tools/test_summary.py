"""The summary finds the sick batch norm."""

import math
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from matplotlib.figure import Figure

import jaxbn
import jaxbn.linen
import jaxbn.nnx

HEALTHY, SICK = "healthy", "sick"


@pytest.fixture
def model():
    """One healthy layer, and one with a channel of each illness."""
    params, stats = jaxbn.init(5, use_count=True)
    sick = {"scale": params["scale"].at[0].set(1e-4), "bias": params["bias"]}
    sick_stats = {
        "mean": stats["mean"].at[2].set(jnp.nan),
        "var": jnp.array([4.0, 0.0, 1.0, 1.0, 9.0]),
        "count": jnp.int32(7),
    }
    healthy = {"mean": stats["mean"], "var": stats["var"]}
    return {"params": {HEALTHY: params, SICK: sick}, "batch_stats": {HEALTHY: healthy, SICK: sick_stats}}


def moments_of(count, mean, var):
    return jaxbn.Moments(jnp.float32(count), jnp.asarray(mean, jnp.float32), jnp.asarray(var, jnp.float32))


def test_each_illness_is_counted(model):
    healthy, sick = jaxbn.summary(model)
    assert healthy == jaxbn.LayerSummary(HEALTHY, 5, None, 1.0, 1.0, 0, 0, None, None)
    assert sick == jaxbn.LayerSummary(SICK, 5, 7, 0.0, 9.0, 2, 1, None, None)


def test_a_layer_without_scale_has_no_dead_scales(model):
    del model["params"][SICK]
    assert jaxbn.summary(model)[1].dead == 1


def test_distances_are_in_standard_errors_of_the_channel_farthest_off(model):
    moments = {HEALTHY: moments_of(100, [0, 0.5, 0, 0, 0], [1, 1, 1, 1, 2])}
    healthy, sick = jaxbn.summary(model, moments)
    assert healthy.mean_distance == pytest.approx(0.5 / math.sqrt(1 / 100))
    assert healthy.var_distance == pytest.approx(1 / math.sqrt(2 / 100))
    assert sick.mean_distance is None


def test_healthy_statistics_are_a_few_standard_errors_away():
    x = np.random.default_rng(0).normal(3, 2, size=(400, 50)).astype(np.float32)
    params, _ = jaxbn.init(50)
    stats = {"mean": jnp.full(50, 3.0), "var": jnp.full(50, 4.0)}
    (row,) = jaxbn.summary({"params": params, "batch_stats": stats}, jaxbn.batch_moments(x))
    assert 1 < row.mean_distance < 5
    assert 1 < row.var_distance < 5


def test_a_dead_channel_is_dead_and_not_off():
    params, stats = jaxbn.init(2)
    stats = {"mean": stats["mean"], "var": jnp.array([1e-7, 1.0])}
    (row,) = jaxbn.summary({"params": params, "batch_stats": stats}, moments_of(100, [0, 0], [0, 1]))
    assert (row.dead, row.mean_distance, row.var_distance) == (1, 0, 0)


def test_a_batch_without_examples_has_no_distance(model):
    row = jaxbn.summary(model, {HEALTHY: moments_of(0, [0] * 5, [0] * 5)})[0]
    assert (row.mean_distance, row.var_distance) == (None, None)


def test_a_channel_that_leaves_zero_variance_is_infinitely_far():
    params, stats = jaxbn.init(1)
    stats = {"mean": stats["mean"], "var": jnp.zeros(1)}
    (row,) = jaxbn.summary({"params": params, "batch_stats": stats}, moments_of(10, [1], [1]))
    assert row.mean_distance == math.inf
    assert row.var_distance == math.inf


def test_linen_and_nnx_say_the_same():
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.LayerNorm()(jaxbn.linen.BatchNorm(name="bn", use_running_average=True)(x))

    class Nnx(nnx.Module):
        def __init__(self):
            self.bn = jaxbn.nnx.BatchNorm(3, use_running_average=True, rngs=nnx.Rngs(0))
            self.ln = nnx.LayerNorm(3, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.ln(self.bn(x))

    linen, in_nnx = Linen(), Nnx()
    variables = linen.init(jax.random.key(0), x)
    _, collected = linen.apply(variables, x, mutable=["batch_moments"])
    assert not collected  # in evaluation a module collects nothing of its own accord
    a = jaxbn.collect_moments(lambda v, x: linen.apply(v, x, mutable=["batch_moments"]), variables, x)
    b = jaxbn.collect_moments(lambda model, x: model(x), in_nnx, x)
    rows = jaxbn.summary(variables, a)
    assert rows == jaxbn.summary(in_nnx, b) == jaxbn.summary(nnx.state(in_nnx), b)
    assert rows == jaxbn.summary(variables, {"bn": a[("bn",)]._asdict()})
    assert rows[0].mean_distance == pytest.approx(np.abs(x.mean(0)).max() * math.sqrt(8), rel=1e-5)


def test_each_layer_of_a_stack_has_a_row_where_it_is_asked_for():
    params, stats = jax.tree.map(lambda v: jnp.stack([v, v]), jaxbn.init(3))
    stats["var"] = stats["var"].at[1, 2].set(0)
    model = {"params": {"bn": params}, "batch_stats": {"bn": stats}}
    moments = {"bn": jaxbn.Moments(jnp.full((2, 3), 4.0), jnp.array([[0.0, 0, 0], [0, 1, 0]]), stats["var"])}
    first, second = jaxbn.summary(model, moments, stacked=True)
    assert (first.layer, first.num_features, first.dead, first.mean_distance) == ("bn[0]", 3, 0, 0)
    assert (second.layer, second.num_features, second.dead, second.mean_distance) == ("bn[1]", 3, 1, 2)
    (both,) = jaxbn.summary(model, moments)
    assert (both.layer, both.num_features, both.dead, both.mean_distance) == ("bn", 6, 1, 2)


@pytest.mark.parametrize("count", [7, [7, 7], [[7, 3, 0], [1, 2, 3]]])
def test_updates_are_those_of_the_channel_with_the_most(count):
    params, stats = jax.tree.map(lambda v: jnp.stack([v, v]), jaxbn.init(3))
    model = {"params": params, "batch_stats": {**stats, "count": jnp.asarray(count)}}
    assert [row.updates for row in jaxbn.summary(model)] == [7]
    assert jaxbn.summary(model, stacked=True)[0].updates == 7


def test_printed_it_is_a_table_of_all_layers(model):
    text = str(jaxbn.summary(model, {HEALTHY: moments_of(100, [2] * 5, [1] * 5)}))
    assert "healthy" in text
    assert "20.0 s.e." in text
    sick = next(line for line in text.splitlines() if "sick" in line)
    assert [cell.strip() for cell in sick.split("│")[1:-1]] == ["sick", "5", "7", "0", "9", "2", "1", "-", "-"]


def test_what_looks_sick_is_red(model):
    moments = {name: moments_of(100, [mean] * 5, [1] * 5) for name, mean in ((HEALTHY, 0.9), (SICK, 1.1))}
    model["batch_stats"][SICK]["mean"] = model["batch_stats"][SICK]["mean"].at[2].set(0)
    model["params"][SICK]["bias"] = model["params"][SICK]["bias"].at[2].set(jnp.nan)
    model["batch_stats"][SICK]["var"] = jnp.ones(5)
    dead, not_finite, mean_off = (list(column.cells) for column in jaxbn.summary(model, moments).table().columns[5:8])
    assert dead == ["0", "[bold red]1[/]"]
    assert not_finite == ["0", "[bold red]1[/]"]
    assert mean_off == ["9.0 s.e.", "[bold red]11.0 s.e.[/]"]


@pytest.mark.parametrize("with_moments", [False, True])
def test_the_figure_is_drawn(model, with_moments, tmp_path):
    moments = {HEALTHY: moments_of(10, [jnp.inf] * 5, [1] * 5)} if with_moments else None
    figure = jaxbn.summary(model, moments).figure()
    assert isinstance(figure, Figure)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == [HEALTHY, SICK]
    assert len(figure.axes) == 2 + with_moments
    figure.savefig(tmp_path / "summary.png")


@pytest.mark.parametrize("package", ["rich", "matplotlib"])
def test_a_missing_package_is_named(model, package, monkeypatch):
    rows = jaxbn.summary(model)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"The \w+ of jaxbn.summary needs {package}.*pip install {package}"):
        rows.table() if package == "rich" else rows.figure()


@pytest.mark.parametrize("count", [{}, {"count": np.zeros(0, np.int32)}, {"count": np.int32(3)}], ids=str)
def test_a_layer_without_a_channel_has_no_variances(model, count, tmp_path):
    model["batch_stats"]["empty"] = {"mean": np.zeros(0), "var": np.ones(0)} | count
    moments = {"empty": moments_of(4, [], []), HEALTHY: moments_of(4, [0] * 5, [1] * 5)}
    rows = jaxbn.summary(model, moments)
    row = next(row for row in rows if row.layer == "empty")
    assert math.isnan(row.smallest_var)
    assert math.isnan(row.largest_var)
    updates = int(count["count"].max(initial=0)) if count else None
    assert row._replace(smallest_var=0, largest_var=0) == ("empty", 0, updates, 0, 0, 0, 0, None, None)
    line = next(line for line in str(rows).splitlines() if "empty" in line)
    shown = "-" if updates is None else str(updates)
    assert [cell.strip() for cell in line.split("│")[1:-1]] == ["empty", "0", shown, "-", "-", "0", "0", "-", "-"]
    rows.figure().savefig(tmp_path / "summary.png")


@pytest.mark.parametrize(("shape", "rows"), [((2, 0), 2), ((0, 3), 0)], ids=str)
def test_a_stack_without_channels_or_without_layers(shape, rows, tmp_path):
    stats = {"mean": np.zeros(shape), "var": np.ones(shape)}
    found = jaxbn.summary({"params": {}, "batch_stats": stats}, stacked=True)
    assert [row.num_features for row in found] == [0] * rows
    assert "Batch norms" in str(found)
    found.figure().savefig(tmp_path / "summary.png")
    assert len(jaxbn.summary({"params": {}, "batch_stats": stats})) == 1


def test_moments_of_other_layers_or_shapes_are_an_error(model):
    with pytest.raises(ValueError, match=r"of the model, healthy, sick, got \['other'\] too"):
        jaxbn.summary(model, {"other": moments_of(1, [0], [0])})
    with pytest.raises(ValueError, match=r"healthy: `moments` must have mean and var of shape \[5\]"):
        jaxbn.summary(model, {HEALTHY: moments_of(1, [0], [0])})


@pytest.mark.parametrize(
    ("collection", "name"), [("params", "scale"), ("batch_stats", "var"), ("batch_stats", "count")]
)
@pytest.mark.parametrize(
    ("value", "got"),
    [
        (jax.random.key(0), r"key<\w+>\[\]"),
        (jax.random.split(jax.random.key(0), 5), r"key<\w+>\[5\]"),
        (np.array(["a"] * 5), "ndarray of <U1"),
        (np.full(5, "2020-01-01", "datetime64[D]"), r"ndarray of datetime64\[D\]"),
        ([[1.0], [2.0, 3.0]], "list"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_array_of_numbers_is_an_error_that_says_where(model, collection, name, value, got):
    model[collection][SICK][name] = value
    with pytest.raises(TypeError, match=f"`model` must hold arrays of numbers, got {got} at sick/{name}"):
        jaxbn.summary(model)
    moments = {HEALTHY: moments_of(1, [0] * 5, [1] * 5)._replace(var=value)}
    del model[collection][SICK][name], model["batch_stats"][SICK]
    with pytest.raises(TypeError, match=f"`moments` must hold arrays of numbers, got {got} at healthy/var"):
        jaxbn.summary(model, moments)


def test_importing_jaxbn_imports_nothing_optional():
    code = "import sys, jaxbn; print([m for m in ('flax', 'rich', 'matplotlib', 'optax', 'orbax') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
