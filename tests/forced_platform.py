"""A pytest plugin: every program is written as for another platform, though it still runs on this CPU.

    JAXBN_TEST_PLATFORM=cuda pytest -p tests.forced_platform tests/core

The branches of "cuda" and "tpu" have the same meaning as that of "cpu", so that the tests pass with them as they are;
those that measure what one platform's compiler makes of a branch say themselves which one they want. Without the
variable the plugin does nothing. `JAXBN_TUNING=off`, which the library itself reads, is the fourth way.
"""

import importlib
import os
from collections.abc import Callable

import pytest

VARIABLE = "JAXBN_TEST_PLATFORM"
HOOK = ("jaxbn._xla.program", "program_of")
"""Where a lowering rule learns what it is lowered for: `program_of(module) -> Program(platforms, pieces)`."""
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

lowered = 0
"""How often a lowering rule has asked since."""


def forced(program_of: Callable, platform: str) -> Callable:
    """The same function, with that platform in place of the real one."""

    def of_platform(*args, **kwargs):
        global lowered
        lowered += 1
        return program_of(*args, **kwargs)._replace(platforms=(platform,))

    return of_platform


def pytest_configure(config):
    """Before any test module is imported, and with it anything that is traced."""
    platform = os.environ.get(VARIABLE)
    if not platform:
        return
    if platform not in PLATFORMS:
        raise pytest.UsageError(f"{VARIABLE} must be one of {', '.join(PLATFORMS)}, got {platform!r}.")
    module = importlib.import_module(HOOK[0])
    if not hasattr(module, HOOK[1]):
        raise pytest.UsageError(f"{HOOK[0]} must have a function `{HOOK[1]}`: change HOOK in tests/forced_platform.py.")
    setattr(module, HOOK[1], forced(getattr(module, HOOK[1]), platform))


def pytest_report_header():
    """Says that what follows is not the usual run."""
    platform = os.environ.get(VARIABLE)
    return f"programs are written as for {platform}" if platform else None


def pytest_terminal_summary(terminalreporter):
    """How often a branch was chosen: 0 means that nothing was forced (workers of xdist count by themselves)."""
    if os.environ.get(VARIABLE):
        terminalreporter.write_line(f"asked for the platform {lowered} times in this process")
