"""Eight CPU devices, strict dtype and rank promotion: what a test does not say does not happen."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# Programs that draw weights compile in a tenth of the time: 2 s less for each shape of a kernel.
os.environ["JAX_DEFAULT_PRNG_IMPL"] = "rbg"

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
