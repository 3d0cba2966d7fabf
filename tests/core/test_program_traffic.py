"""How often the compiled program reads and writes the activation: exact, without a device."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
from bench import measure, peers, report
from bench.compilers import compile_for
from bench.networks import bottleneck_stack
from bench.steps import training_step
from bench.traffic import kernels, traffic
from bench.workloads import ODD_SHAPES, OPTION_SHAPES, SHAPES, Workload, workloads

PROGRAM = """
HloModule jit_f
%body (p0: f32[8,4], p1: f32[4]) -> f32[8,4] {
  %p0 = f32[8,4]{1,0} parameter(0)
  %p1 = f32[4]{0} parameter(1)
  %b = f32[8,4]{1,0} broadcast(%p1), dimensions={1}
  ROOT %m = f32[8,4]{1,0} multiply(%p0, %b)
}
%little (q0: f32[8,4]) -> f32[8,4] {
  ROOT %q0 = f32[8,4]{1,0} parameter(0)
}
%much (r0: f32[8,4]) -> f32[8,4] {
  %r0 = f32[8,4]{1,0} parameter(0)
  ROOT %n = f32[8,4]{1,0} negate(%r0)
}
ENTRY %main (x: f32[8,4], w: f32[4,4], v: f32[4], s: s32[]) -> (f32[8,4]) {
  %x = f32[8,4]{1,0} parameter(0)
  %w = f32[4,4]{1,0} parameter(1)
  %v = f32[4]{0} parameter(2)
  %s = s32[] parameter(3)
  %f = f32[8,4]{1,0} fusion(%x, %v), kind=kLoop, calls=%body
  %d = f32[8,4]{1,0} dot(%f, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %c = f32[8,4]{1,0} conditional(%s, %d, %d), branch_computations={%little, %much}
  %g = bf16[8,4]{1,0} convert(%c)
  ROOT %t = (bf16[8,4]{1,0}) tuple(%g)
}
"""


def test_the_reader_counts_large_arrays_once_a_kernel():
    rows = {k.name: k for k in kernels(PROGRAM, 40)}
    assert set(rows) == {"f", "d", "g"}  # the branch that does nothing is the usual one
    assert rows["f"] == ("f", [128], [128], False)
    assert rows["d"].is_product
    assert traffic(PROGRAM, 40) == (3, 3, 3, 4 * 128 + 128 + 64, 2 * 128 + 128 + 64)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="how a CPU is served")
@pytest.mark.parametrize(
    ("dtype", "fused", "limit"),
    [
        ("float32", "", 40),
        ("bfloat16", "", 20),
        ("float32", "relu", 52),
        ("bfloat16", "relu", 32),
        ("float32", "residual", 60),
        ("bfloat16", "residual", 30),
    ],
)
def test_on_a_cpu_a_layer_makes_eight_reads_and_two_writes(dtype, fused, limit):
    """There each sum is a pass of its own. With ReLU dy times its slope is written once more, and then read."""
    assert (
        measure.together("here", "jaxbn", Workload("small", dtype, fused, (256, 64)))["together [B/element]"] <= limit
    )


def test_evaluation_is_one_read_and_one_write_with_residual_and_activation():
    params, stats = jaxbn.init(64)
    x = jax.ShapeDtypeStruct((256, 64), jnp.float32)

    def evaluate(params, stats, x, residual):
        options = {"residual": residual, "activation": "silu"}
        return jaxbn.batch_norm(params, stats, x, use_running_average=True, **options)[0]

    found = traffic(compile_for("here", evaluate, params, stats, x, x).as_text(), x.size)
    assert (found.reads, found.writes) == (2, 1)
    found = traffic(compile_for("here", evaluate, params, stats, x, None).as_text(), x.size)
    assert (found.reads, found.writes) == (1, 1)


@functools.cache
def needs(device):
    """Skips where that compiler is not installed: see bench.compilers."""
    if os.environ.get("JAX_PLATFORMS") != "cpu":
        pytest.skip("compiling for an absent device needs JAX_PLATFORMS=cpu")
    try:
        compile_for(device, jnp.sin, jax.ShapeDtypeStruct((8,), jnp.float32))
    except RuntimeError as error:
        pytest.skip(str(error))


# Read on jax 0.12.0.1.
@pytest.mark.parametrize(
    "w",
    workloads(SHAPES, ("float32", "bfloat16"), ("", "relu", "residual"))
    + workloads(ODD_SHAPES, ("float32", "bfloat16"), ("", "relu")),
    ids=lambda w: w.label,
)
def test_on_an_h100_each_pass_is_at_the_limit(w: Workload):
    needs("h100")
    found = measure.layer_traffic("h100", "jaxbn", w)
    assert (found["forward [B/element]"], found["backward [B/element]"]) <= w.limit


@pytest.mark.parametrize("w", workloads(ODD_SHAPES, ("float32", "bfloat16"), ("residual",)), ids=lambda w: w.label)
def test_on_an_h100_an_odd_size_with_a_residual_costs_one_read_more_than_the_limit(w: Workload):
    """Where no blocks of a warp divide the rows, the residual is read again for what it gets."""
    needs("h100")
    found = measure.layer_traffic("h100", "jaxbn", w)
    forward, backward = w.limit
    assert (found["forward [B/element]"], found["backward [B/element]"]) <= (forward, backward * 8 / 7)
    assert measure.together("h100", "jaxbn", w)["together [B/element]"] <= 10 * jnp.dtype(w.dtype).itemsize


@pytest.mark.parametrize("fused", ["relu", "residual"])
@pytest.mark.parametrize("rows", [256, 512])
def test_on_an_h100_what_fits_in_a_cache_takes_few_kernels(rows, fused):
    """Launches are its time: flax.linen takes seven."""
    needs("h100")
    found = measure.together("h100", "jaxbn", Workload("small", "float32", fused, (rows, rows)))
    assert found["kernels together"] <= 7


@pytest.mark.parametrize(
    ("network", "dtype", "limit"),
    [
        ("conv-stack", "float32", 32),
        ("conv-stack", "bfloat16", 17),
        ("dense-stack", "float32", 34.5),
        ("dense-stack", "bfloat16", 19.5),
        ("bottleneck-stack", "float32", 37),
        ("bottleneck-stack", "bfloat16", 19),
    ],
)
def test_on_an_h100_a_whole_step_is_near_the_limit(network, dtype, limit):
    needs("h100")
    found = measure.step_traffic("h100", "jaxbn", network, dtype)
    assert found["outside products [B/element]"] <= limit
    assert found["memory [activations]"] <= 2.3  # flax.linen's takes 2 to 2.23


@pytest.mark.parametrize("w", workloads(OPTION_SHAPES, ("float32", "bfloat16"), ("relu",)), ids=lambda w: w.label)
@pytest.mark.parametrize("option", [name for name in peers.OPTIONS if name != "jaxbn"])
def test_on_an_h100_no_option_costs_a_pass(option, w):
    """Seven of them, as y and dx leave in one pass where a program is given dy."""
    needs("h100")
    assert measure.together("h100", option, w)["together [B/element]"] <= 7 * jnp.dtype(w.dtype).itemsize


def test_peers_train_the_same_network_to_the_same_weights():
    network = bottleneck_stack(1, 4, 5, 2)
    found = {}
    for peer in ("jaxbn", "flax.linen", "flax.nnx"):
        step = training_step(network, peer, "float32")
        weights, _, _, loss = jax.jit(step.run)(*step.args)
        found[peer] = [*weights, loss]
    for peer in ("flax.linen", "flax.nnx"):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found["jaxbn"], found[peer])


def test_tables_have_a_row_a_workload_and_a_column_a_peer():
    rows = [
        {"workload": w, "peer": p, "limit": 3, "x": i} for i, (w, p) in enumerate([("a", "p"), ("a", "q"), ("b", "p")])
    ]
    table = report.by_peer(rows, lambda r: str(r["x"]), "limit")
    assert table == [{"workload": "a", "limit": 3, "p": "0", "q": "1"}, {"workload": "b", "limit": 3, "p": "2"}]
    assert "| a | 3 | 0 | 1 |" in report.markdown("title", table)
