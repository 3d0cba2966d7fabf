"""Measurements in a process of their own: with eight simulated devices, or with nothing cached."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def answer_of(module: str, *arguments: str, eight_devices: bool = False) -> Any:
    """What `python -m module arguments`, perhaps on eight simulated devices, prints as JSON in its last line.

    Raises:
      RuntimeError: it fails.
    """
    eight = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"} if eight_devices else {}
    environment = (
        os.environ
        | eight
        | {
            "JAX_ENABLE_COMPILATION_CACHE": "false",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # this process may have most of a GPU's memory
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
        }
    )
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed: {done.stderr[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])
