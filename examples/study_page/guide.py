"""The student's guide, line by line, and the exercises: what guide.toml holds."""

import tomllib
from pathlib import Path
from typing import NamedTuple


class Line(NamedTuple):
    """A sentence of the guide."""

    says: str
    claims: tuple[str, ...]
    """where its figures are"""
    answer: str
    """with `[[claim: name]]` where a number of the study is quoted"""


_read = tomllib.loads((Path(__file__).parent / "guide.toml").read_text())
PARTS: dict[str, list[Line]] = {
    title: [Line(of["says"], tuple(of["claims"]), " ".join(of["answer"].split())) for of in _read[name]]
    for title, name in (("The five facts", "facts"), ("The definition", "definition"), ("The questions", "questions"))
}
EXERCISES: dict[str, str] = _read["exercises"]
AFTERWARDS = {name: " ".join(text.split()) for name, text in _read["afterwards"].items()}
"""what each should show, and why"""
