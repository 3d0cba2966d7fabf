"""What the README says runs: its Python blocks, the flags of its commands, the extras that they install."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def blocks(language: str) -> list:
    """Each with the line it begins at, as the id of its test."""
    found = re.finditer(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    return [pytest.param(m[1], id=f"line {README[: m.start()].count(chr(10)) + 1}") for m in found]


@pytest.mark.parametrize("code", blocks("python"))
def test_a_python_block_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("code", blocks("sh"))
def test_a_command_has_the_flags_and_extras_that_exist(code):
    for command in re.split(r"&&|\n", code):
        if extra := re.search(r"-e \"\.\[(\w+)\]\"", command):
            assert extra[1] in EXTRAS
        if script := re.search(r"python (\S+\.py)", command):
            source = (ROOT / script[1]).read_text()
            for flag in re.findall(r" (--[\w-]+)", command):
                assert flag == "--help" or f'"{flag}"' in source, f"{script[1]} has no {flag}"


def test_the_first_two_commands_are_one_line_each():
    train, test = (block.values[0].strip() for block in blocks("sh")[:2])
    assert train == 'pip install -e ".[examples]" && python examples/digits.py'
    assert test == 'pip install -e ".[tests]" && pytest'


def test_every_link_leads_somewhere():
    headings = re.findall(r"^#+ (.*)", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for anchor in re.findall(r"\]\(#([^)]*)\)", README):
        assert anchor in anchors
    for path in re.findall(r"`(examples/\S+?\.py)`", README):
        assert (ROOT / path).is_file()


def test_importing_jaxbn_does_not_import_flax():
    code = "import sys, jaxbn; print(sorted(m for m in sys.modules if m.split('.')[0] in ('flax', 'optax', 'torch')))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
