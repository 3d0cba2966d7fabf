"""Plants defects in the core, one at a time, and runs the tests that should see them: which survive?

    python tests/mutants.py                 # all of them, some minutes
    python tests/mutants.py _core/state     # those of the files with that in their name
    python tests/mutants.py --list

Each is planted in a copy of the package in a temporary folder; the package itself stays as it is. A mutant is killed
where a test fails that passes without it, and unknown where the tests do not end in time. The exit status is 1 if one
survives that `tests/mutant_table.py` does not explain as equivalent.
"""

import argparse
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.mutant_table import EQUIVALENT, MUTANTS, Mutant  # noqa: E402

COMMAND = ["-m", "pytest", "-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-o", "addopts=", "--tb=no"]
COMMAND += ["-m", "not exhaustive"]


def plant(mutant: Mutant, folder: Path) -> None:
    """Writes the defect into a copy of the package.

    Raises:
      ValueError: the text to replace does not stand exactly once in the file: the table is out of date.
    """
    path = folder / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(f"`old` must stand once in {mutant.file}, got {text.count(mutant.old)} times: {mutant.old!r}.")
    path.write_text(text.replace(mutant.old, mutant.new))


def copy(folder: Path) -> None:
    """What the tests need."""
    for name in ("jaxbn", "tests", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.npz"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def failing(mutant: Mutant | None, tests: Sequence[str], limit: float) -> str | None:
    """The first test that fails with that defect, or with none; None where all pass."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy(folder)
        if mutant is not None:
            plant(mutant, folder)
        environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        existing = [t for t in tests if (folder / t.partition("::")[0]).exists()]
        try:
            run = subprocess.run(
                [sys.executable, *COMMAND, *existing],
                cwd=folder, env=environment, capture_output=True, text=True, timeout=limit, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"UNKNOWN, no end within {limit:.0f} s"
    if run.returncode == 0:
        return None
    seen = [line.split(" - ")[0] for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if not seen:  # the tests did not end by themselves
        return f"UNKNOWN, ended with {run.returncode}: {run.stderr[-200:]}"
    return seen[0]


@functools.cache
def fails_anyway(test: str, limit: float) -> bool:
    """Whether a test fails without any defect: it has seen nothing then."""
    return test.startswith("FAILED ") and failing(None, [test.removeprefix("FAILED ")], limit) is not None


def describe(mutant: Mutant) -> str:
    return f"{mutant.file}: {' '.join(mutant.old.split())[:70]!r} -> {' '.join(mutant.new.split())[:60]!r}"


def main() -> int:
    """Runs the mutants that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="parts of the names of the files to plant defects in")
    parser.add_argument("--limit", type=float, default=300, help="seconds for the tests of one mutant")
    parser.add_argument("--list", action="store_true", help="only say which there are, and whether they can be planted")
    asked = parser.parse_args()
    chosen = [m for m in MUTANTS if not asked.files or any(part in m.file for part in asked.files)]
    if asked.list:
        for mutant in chosen:
            found = (ROOT / mutant.file).read_text().count(mutant.old)
            print(describe(mutant) + ("" if found == 1 else f"  (stands {found} times)"))
        return 0
    survivors = 0
    for number, mutant in enumerate(chosen, 1):
        start = time.monotonic()
        test = failing(mutant, mutant.tests, asked.limit)
        why = EQUIVALENT.get((mutant.file.removeprefix("jaxbn/").removesuffix(".py"), mutant.new))
        if test is None:
            result = f"equivalent: {why}" if why else "SURVIVES"
        else:
            anyway = fails_anyway(test, asked.limit)
            result = f"UNKNOWN, for without it too {test}" if anyway else f"killed by {test}"
            result = test if test.startswith("UNKNOWN") else result
        survivors += result.startswith(("SURVIVES", "UNKNOWN"))
        print(f"{number}/{len(chosen)} {describe(mutant)}: {result} ({time.monotonic() - start:.0f} s)", flush=True)
    print(f"{len(chosen)} mutants, {survivors} survive")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
