"""The core under each switch of JAX, with the compilation cache, in threads, and in processes of its own."""

import concurrent.futures
import contextlib
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import jaxbn
from tests import basic_check

SWITCHES = {
    "jax_debug_nans": True,
    "jax_debug_infs": True,
    "jax_transfer_guard": "disallow",
    "jax_enable_x64": True,
    "jax_check_tracer_leaks": True,
}
RARER = {
    "jax_disable_jit": True,
    "jax_enable_checks": True,
    "jax_default_matmul_precision": "bfloat16",
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_legacy_prng_key": "error",
    "jax_default_device": jax.devices()[3],
}


@contextlib.contextmanager
def switched(**values):
    """With these values of the configuration."""
    old = {name: getattr(jax.config, name) for name in values}
    try:
        for name, value in values.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in old.items():
            jax.config.update(name, value)


@pytest.mark.parametrize("name", [*SWITCHES, *(pytest.param(name, marks=pytest.mark.exhaustive) for name in RARER)])
def test_the_core_holds_under(name):
    if name in ("jax_check_tracer_leaks", "jax_enable_checks"):
        jax.clear_caches()  # what is traced already is not looked at
    with switched(**{name: (SWITCHES | RARER)[name]}):
        basic_check.check_all(poison=np.inf if name == "jax_debug_infs" else np.nan)


def test_no_tracer_outlives_its_trace_whatever_stands_in_the_layer():
    x = jax.random.normal(jax.random.key(0), (16, 8))
    params, stats = jaxbn.init(8)

    def loss(x):
        options = {"mask": x > -1, "residual": x, "activation": "silu", "renorm": jaxbn.Renorm()}
        return (jaxbn.batch_norm(params, stats, x, use_running_average=False, **options)[0] ** 2).sum()

    jax.clear_caches()
    with jax.checking_leaks():
        jax.jit(jax.grad(loss))(x)


@pytest.mark.parametrize("name", ["jax_debug_nans", "jax_debug_infs"])
def test_nothing_under_a_mask_is_seen_op_by_op(name):
    with switched(**{name: True}):
        basic_check.check("masked", jit=False, poison=np.inf if name == "jax_debug_infs" else np.nan)


@pytest.mark.parametrize("name", ["jax_debug_nans", "jax_enable_x64"])
def test_the_core_holds_under_two_at_once(name):
    with switched(**{name: True, "jax_disable_jit": True}):
        basic_check.check("masked", jit=False, poison=np.nan)


def test_the_core_holds_with_a_compilation_cache(tmp_path):
    options = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for _ in range(2):  # written, and read
        jax.clear_caches()
        with switched(**options):
            compilation_cache.reset_cache()
            basic_check.check("masked", jit=True)
    compilation_cache.reset_cache()
    assert any(tmp_path.iterdir())


@pytest.mark.usefixtures("no_stored_programs")
def test_the_core_holds_in_threads():
    jax.clear_caches()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(basic_check.check, name, jit=True) for name in [*basic_check.OPTIONS] * 4]
        for call in calls:
            call.result()


ENVIRONMENTS = [{"JAXBN_TUNING": "off"}, {"JAX_ENABLE_X64": "1"}, {"JAX_DEBUG_NANS": "1"}]


@pytest.mark.exhaustive
@pytest.mark.parametrize("variables", ENVIRONMENTS, ids=str)
def test_the_core_holds_in_a_process_of_its_own(variables):
    environment = {**os.environ, **variables}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.basic_check"], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "all holds" in run.stdout


@pytest.mark.exhaustive
def test_the_core_holds_in_a_spawned_worker():
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(basic_check.check_merging)
