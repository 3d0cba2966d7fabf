"""Eight CPU devices, strict dtype and rank promotion: what a test does not say does not happen."""

import atexit
import gc
import importlib.metadata
import importlib.util
import os
import shutil
import tempfile

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# Programs for a CPU are optimized as a user's are, but for the last step, to machine code, which is quick and simple
# here: it takes half of the time that compiling takes. `JAXBN_TEST_COMPILE=full` makes it the user's.
if os.environ.get("JAXBN_TEST_COMPILE") != "full" and importlib.util.find_spec("jax_plugins") is None:
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
    if tuple(map(int, importlib.metadata.version("jax").split(".")[:2])) < (0, 11):  # later ones do not know the flag
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
# Programs that draw weights compile in a tenth of the time: 2 s less for each shape of a kernel.
os.environ["JAX_DEFAULT_PRNG_IMPL"] = "rbg"

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Many tests make the same program anew, and each process compiles it once. The folder is its own: nothing is read while
# another process writes it, and nothing outlives the run. Tests with threads take the fixture `no_stored_programs`.
_programs = tempfile.mkdtemp(prefix="jaxbn-programs-")
atexit.register(shutil.rmtree, _programs, ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", _programs)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture
def no_stored_programs():
    """Programs are neither stored nor read: a thread could read what another has written half of."""
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", _programs)
    compilation_cache.reset_cache()


# What is traced stays in JAX's caches: looking through all of it again and again takes a twelfth of the time.
gc.freeze()
gc.set_threshold(50_000, 20, 50)

SLOW = {
    "core": {
        "against_flax", "arguments", "cold_start", "derivatives", "dtypes", "explicit_mesh", "masks_broadcast",
        "long_run", "memory", "program_traffic", "renorm", "sizes", "switches", "values", "variants", "virtual_batch",
    },
    "examples": {
        "digits", "faults", "fine_tune", "hostile_images", "multi_process", "resume", "rl_critic",
        "study", "study_page", "sync_example",
    },
    "interop": {"interop_torch", "names", "saved"},
    "models": {"linen_drop_in", "linen_transforms", "nnx_drop_in", "nnx_transforms", "options"},
    "sync": {"group_isolation", "many_devices", "sync"},
    "tools": {
        "accumulate", "batches", "fold_errors", "fold_model", "fold_networks", "fold_nnx", "fold_places", "fold_resnet",
        "networks", "recalibrate", "recalibrate_kinds", "recalibrate_stacks", "testing",
    },
}  # fmt: skip
"""The files tests/FOLDER/test_NAME.py that are marked as slow."""


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem.removeprefix("test_") in SLOW.get(item.path.parent.name, ()) or item.get_closest_marker(
            "exhaustive"
        ):
            item.add_marker(pytest.mark.slow)
