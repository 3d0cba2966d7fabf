"""What the README and the pages that it links say runs: their Python blocks, commands, extras and links."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "examples").glob("*.md"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def blocks(language: str, pages=PAGES) -> list:
    """Each with its page and the line that it begins at as the id of its test."""
    found = []
    for page in pages:
        text = page.read_text()
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            line = text[: match.start()].count("\n") + 1
            found.append(pytest.param(match[1], id=f"{page.name}:{line}"))
    return found


@pytest.mark.parametrize("code", blocks("python"))
def test_a_python_block_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(code, "page.md", "exec"), {"__name__": "page"})


def commands() -> list:
    inline = [
        pytest.param(code, id=f"{page.name}:{code}")
        for page in PAGES
        for code in re.findall(r"`((?:python|pip) [^`\n]+)`", page.read_text())
    ]
    return blocks("sh") + inline


@pytest.mark.parametrize("code", commands())
def test_a_command_has_the_flags_and_extras_that_exist(code):
    for command in re.split(r"&&|\n", code):
        if extra := re.search(r"-e \"\.\[(\w+)\]\"", command):
            assert extra[1] in PROJECT["optional-dependencies"]
        if script := re.search(r"python (\S+\.py)", command):
            source = (ROOT / script[1]).read_text()
            for flag in re.findall(r" (--[\w-]+)", command):
                assert flag == "--help" or f'"{flag}"' in source, f"{script[1]} has no {flag}"


def test_the_first_two_commands_are_one_line_each():
    train, test = (block.values[0].strip() for block in blocks("sh", [README])[:2])
    assert train == 'pip install -e ".[examples]" && python examples/digits.py'
    assert test == 'pip install -e ".[tests]" && pytest'


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_path_leads_somewhere(page):
    text = page.read_text()
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(([^)]*)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors
        elif not target.startswith("https://"):
            assert (page.parent / target.partition("#")[0]).is_file(), target
    for path in re.findall(r"`((?:examples|jaxbn|tests)/[\w./]*)`", text):
        assert (ROOT / path).exists(), path


def test_the_readme_can_be_read_in_five_minutes():
    assert len(README.read_bytes()) <= 12 * 1024


def test_the_versions_are_those_of_the_package():
    text = README.read_text()
    for name, version in re.findall(r"(Python|jax|flax) ([\d.]+) or newer", text):
        floor = [PROJECT["requires-python"], *PROJECT["dependencies"]]
        assert any(f"{name.replace('Python', '')}>={version}" == f for f in floor), (name, version)


def test_importing_jaxbn_does_not_import_flax():
    code = "import sys, jaxbn; print(sorted(m for m in sys.modules if m.split('.')[0] in ('flax', 'optax', 'torch')))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
