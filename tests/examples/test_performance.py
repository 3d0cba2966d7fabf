"""The tables of examples/PERFORMANCE.md are such as examples/benchmark.py writes."""

import re
from pathlib import Path

import pytest

from bench import tables
from bench.report import table

PAGE = Path(__file__).parents[2] / "examples" / "PERFORMANCE.md"
PLACES = tables.places(PAGE.read_text())
COUNTED = {
    "forward [B/element]": 12.0, "backward [B/element]": 20.0, "both [B/element]": 32.0, "limit": 32, "kernels": 6,
    "kept [B/element]": 0.0, "together [B/element]": 32.0, "kernels together": 6, "outside products [B/element]": 30.0,
    "all [B/element]": 60.0, "memory [activations]": 2.5, "cycles [M]": 3.0, "time ratio": 0.5, "first quartile": 0.4,
    "third quartile": 0.6, "collectives": [2.0, 1.0], "ratio": 0.9,
}  # fmt: skip
ROWS = [{"workload": "a (2, 3), float32", "peer": peer} | COUNTED for peer in ("jaxbn", tables.BASE)]
PARTS = ("layers", "odd", "options", "steps", "memory", "devices", "compile", "accuracy", "collectives")
ALL = tables.tabulate(dict.fromkeys(PARTS, ROWS))
ABOUT = {"device": "cpu x 1, 2 CPU cores", "GLIBC_TUNABLES": "a=1", "command": "c", "python": "3", "jax": "0.12.0"}


def test_a_table_is_written_into_its_place_and_nothing_else_changes():
    what, title = tables.place_of(ABOUT), next(iter(ALL))
    other = "<!-- h100: another -->\n| left |\n<!-- end -->\nafter\n"
    page = tables.filled(f"before\n<!-- {what}: {title} -->\n<!-- end -->\n{other}", what, ALL, tables.note(ABOUT))
    assert what == "cpu; GLIBC_TUNABLES=a=1"
    assert page == (
        f"before\n<!-- {what}: {title} -->\n| workload | limit | jaxbn | flax.linen |\n| --- | --: | --: | --: |\n"
        "| a (2, 3), float32 | 32 | 12 + 20 | 12 + 20 |\n\n"
        f"cpu x 1, 2 CPU cores; GLIBC_TUNABLES=a=1; python 3, jax 0.12.0.\n<!-- end -->\n{other}"
    )
    assert tables.filled(page, what, ALL, tables.note(ABOUT)) == page


@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place[0]}: {place[1]}")
def test_what_stands_in_a_place_has_the_form_that_is_written(place):
    what, title, text = place
    assert title in ALL
    head, _, *lines, _, note = text.splitlines()
    names = head.strip("| ").split(" | ")
    rows = [dict(zip(names, (c.strip() for c in line[1:-1].split("|")), strict=True)) for line in lines]
    assert rows
    assert text == f"{table(rows)}\n{note}\n"
    device = {"h100": "compiled for an H100", "tpu": "compiled for a TPU v5e"}.get(what, what.split(";")[0])
    assert re.fullmatch(rf"{device}.*; python [\d.]+, jax [\d.]+, jaxbn [\d.]+.*\.", note), note


def test_every_kind_of_device_has_a_place():
    assert {what.split(";")[0] for what, *_ in PLACES} == {"h100", "tpu", "cpu"}
