"""Compiles for the device that is here, or for an H100 or a TPU that is not.

XLA compiles ahead of time from a description of the device. Besides JAX, that needs its plugin without the libraries of
the device: `pip install --no-deps jax-cuda13-plugin jax-cuda13-pjrt` (same version as JAX), or `pip install libtpu`;
and JAX_PLATFORMS=cpu in the environment before JAX is imported, so that it does not look for the device.
"""

import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

ABSENT = ("h100", "tpu")
"""Devices that can be compiled for in their absence."""


def compile_for(device: str, f: Callable, *args: Any) -> Any:
    """The compiled program of `f`; `args` are arrays or `jax.ShapeDtypeStruct`s.

    Args:
      device: 'here', 'h100' or 'tpu' (v5e).

    Raises:
      RuntimeError: the compiler for that device is not installed.
    """
    lowered = lowered_for(device, f, *args)
    if device == "here":
        return lowered.compile()
    # JAX can store a program for a device that is not here in its compilation cache, and not read it again.
    least = jax.config.values["jax_persistent_cache_min_compile_time_secs"]
    jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)
    try:
        return lowered.compile()
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


def lowered_for(device: str, f: Callable, *args: Any) -> Any:
    """The program before it is compiled; arguments and errors as those of `compile_for`."""
    if device == "here":
        return jax.jit(f).lower(*args)
    one = NamedSharding(Mesh(devices(device, 1), ("x",)), P())
    return jax.jit(f, in_shardings=one, out_shardings=one).lower(*args)


def devices(device: str, number: int) -> list:
    """One, or eight, of the devices that `compile_for` knows.

    Raises:
      RuntimeError: the compiler for that device is not installed, or fewer devices are here.
    """
    if device == "here":
        if jax.device_count() < number:
            raise RuntimeError(f"{number} devices are asked for, {jax.device_count()} are here")
        return jax.devices()[:number]
    try:
        if device == "h100":
            described = topologies.get_topology_desc("", "cuda", target_config=_h100(), topology=f"1x1x{number}")
        else:
            described = topologies.get_topology_desc(
                platform="tpu", topology_name="v5e:2x4" if number > 4 else "v5e:2x2"
            )
        return list(described.devices[:number])
    except Exception as error:
        wanted = {"h100": "--no-deps jax-cuda13-plugin jax-cuda13-pjrt", "tpu": "libtpu"}[device]
        raise RuntimeError(
            f"the compiler for {device!r} does not start; `pip install {wanted}` brings it ({error})"
        ) from error


class Rates(NamedTuple):
    """The arithmetic units of a core: type of number in XLA's encoding, number of units, operations per clock."""

    dtype: int
    units: int
    operations: int


def _h100() -> str:
    """The H100 SXM as a target of XLA; sizes and rates as in NVIDIA's data sheet."""

    def units(clock: float, rates: list[Rates]) -> str:
        return " ".join(
            f"rate_infos {{ key: {r.dtype} value {{ clock_rate_ghz: {clock} "
            f"units_per_core: {r.units} ops_per_clock: {r.operations} }} }}"
            for r in rates
        )

    scalar = [(4, 64, 1), (8, 64, 1), (10, 128, 2), (11, 128, 1), (12, 64, 1), (16, 128, 2)]
    matrix = [(2, 1024), (6, 1024), (10, 512), (11, 256), (12, 32), (16, 512), (19, 1024), (20, 1024)]
    return f"""
    platform_name: "CUDA" device_description_str: "NVIDIA H100 80GB HBM3"
    dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
    gpu_device_info {{
      device_vendor: "NVIDIA Corporation" name: "NVIDIA H100 80GB HBM3" platform_version: "Compute Capability 9.0a"
      cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
      driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0" dnn_version: "9.10.0"
      core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 device_address_bits: 64 ecc_enabled: true
      memory_bandwidth: 3352320000000 device_memory_size: 84942979072 l2_cache_size: 52428800
      pcie_bandwidth: 34359738368
      threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
      thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
      block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
      registers_per_core_limit: 65536 registers_per_block_limit: 65536
      shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
      scalar_unit_description {{ {units(1.98, [Rates(*r) for r in scalar])} }}
      matrix_unit_description {{ {units(1.83, [Rates(k, 4, o) for k, o in matrix])} }}
    }}"""


def forward_and_backward(device: str, f: Callable, params: Any, x: Any):
    """Two programs of `f(params, x) -> y, more`: the forward pass with what it keeps, and the backward pass.

    Returns:
      Both compiled, and the bytes that are kept for the backward pass besides `params` and `x` themselves.
    """

    def forward(params, x):
        y, pullback, more = jax.vjp(f, params, x, has_aux=True)
        return y, more, pullback

    y, _, pullback = jax.eval_shape(forward, params, x)
    jaxpr = jax.make_jaxpr(lambda params, x: jax.tree.leaves(forward(params, x)[2]))(params, x).jaxpr
    is_new = [v not in jaxpr.invars for v in jaxpr.outvars]

    def forward_kept(params, x):
        y, more, pullback = forward(params, x)
        return y, more, [leaf for leaf, new in zip(jax.tree.leaves(pullback), is_new, strict=True) if new]

    kept = sum(v.size * v.dtype.itemsize for v, new in zip(jax.tree.leaves(pullback), is_new, strict=True) if new)
    there = compile_for(device, forward_kept, params, x)
    back = compile_for(device, lambda pullback, dy: pullback(dy), pullback, y)
    return there, back, kept
