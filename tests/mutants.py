"""Plants defects in the package, one at a time, and runs the tests that should see them: which survive?

    python tests/mutants.py                 # all of them, one to two hours
    python tests/mutants.py _core/state     # those of the files with that in their name
    python tests/mutants.py --list

Each is planted in a copy of the package in a temporary folder; the package itself stays as it is. A mutant is killed
where a test fails that passes without it (all such tests run once more at the end, without a defect), and unknown where
the tests do not end in time. The exit status is 1 if one survives that `tests/mutant_table.py` does not explain as
equivalent.
"""

import argparse
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

COMMAND = ["-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-o", "addopts=", "--tb=no"]
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


def run(mutant: Mutant | None, tests: Sequence[str], limit: float, *options: str) -> tuple[int, list[str], str]:
    """pytest's exit status (-1: no end in time), the tests that failed with that defect or none, and its errors."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy(folder)
        if mutant is not None:
            plant(mutant, folder)
        environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                [sys.executable, *COMMAND, *options, *tests],
                cwd=folder, env=environment, capture_output=True, text=True, timeout=limit, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return -1, [], f"no end within {limit:.0f} s"
    seen = [line.split(" - ")[0] for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return done.returncode, seen, done.stderr[-200:]


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
    survivors, killers = 0, {}
    for number, mutant in enumerate(chosen, 1):
        start = time.monotonic()
        status, seen, errors = run(mutant, mutant.tests, asked.limit, "-x")
        if seen:
            result = f"killed by {seen[0]}"
            killers.setdefault(seen[0], []).append(mutant)
        elif status == 0:
            why = EQUIVALENT.get((mutant.file.removeprefix("jaxbn/").removesuffix(".py"), mutant.new))
            result = f"equivalent: {why}" if why else "SURVIVES"
        else:
            result = f"UNKNOWN, ended with {status}: {errors}"
        survivors += result.startswith(("SURVIVES", "UNKNOWN"))
        print(f"{number}/{len(chosen)} {describe(mutant)}: {result} ({time.monotonic() - start:.0f} s)", flush=True)
    for mutant, test in not_killed(killers, asked.limit):
        survivors += 1
        print(f"{describe(mutant)}: UNKNOWN, for without it too {test}")
    print(f"{len(chosen)} mutants, {survivors} survive")
    return int(survivors > 0)


def not_killed(killers: dict[str, list[Mutant]], limit: float) -> list[tuple[Mutant, str]]:
    """Of the tests that have seen a mutant, those that fail without one too."""
    tests = [test.partition(" ")[2] for test in killers]  # after FAILED, or ERROR: a file that never runs sees nothing
    if not tests:
        return []
    status, seen, errors = run(None, tests, limit * len(tests))
    if status not in (0, 1):
        raise RuntimeError(f"The tests did not end without a defect: {status}, {errors}")
    return [(mutant, test) for test in seen for mutant in killers.get(test, [])]


if __name__ == "__main__":
    sys.exit(main())
