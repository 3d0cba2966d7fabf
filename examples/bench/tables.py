"""The tables that a person reads, made of the rows that were measured, and their places in a page of Markdown."""

import re
from typing import Any

from bench.report import by_peer, geometric_means, table

Row = dict[str, Any]
BASE = "flax.linen"
"""whose time is 1"""
ABSENT = {"h100": "compiled for an H100", "tpu": "compiled for a TPU v5e"}
_PLACE = re.compile(r"<!-- ([^\n]*): ([^:\n]*) -->\n(.*?)<!-- end -->", re.DOTALL)


def tabulate(measured: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Tables by their titles."""
    tables = {}
    for part, name in (("layers", "one layer"), ("odd", "odd sizes")):
        rows = measured.get(part, [])
        if any("kernels" in row for row in rows):
            tables[f"{name}, memory traffic, forward + backward, bytes per element"] = by_peer(rows, _apart, "limit")
            tables[f"{name}, kernels; bytes per element kept for the backward pass beside x and the parameters"] = (
                by_peer(rows, lambda r: f"{r['kernels']}; {r['kept [B/element]']:.3g}")
            )
    for part, name in (("odd", "odd sizes"), ("options", "options")):
        if rows := measured.get(part):
            tables[f"{name}, forward and backward in one program, bytes per element; kernels"] = by_peer(
                rows, lambda r: f"{r['together [B/element]']:.3g}; {r['kernels together']}", "limit"
            )
    if rows := measured.get("steps"):
        tables["training step, memory traffic outside the matrix products, bytes per element and layer"] = by_peer(
            rows, lambda r: f"{r['outside products [B/element]']:.3g}"
        )
        tables["training step, memory traffic, matrix products included"] = by_peer(
            rows, lambda r: f"{r['all [B/element]']:.3g}"
        )
        tables["training step, temporary memory, in activations"] = by_peer(rows, _memory)
        if any("cycles [M]" in row for row in rows):
            base = {row["workload"]: row["cycles [M]"] for row in rows if row["peer"] == BASE}
            tables[f"training step, the compiler's estimate of cycles, as a multiple of {BASE}'s"] = by_peer(
                rows, lambda r: f"{r['cycles [M]'] / base[r['workload']]:.3f}"
            )
    for part, name in (("layers", "one layer, forward and backward"), ("steps", "training step")):
        rows = measured.get(part, [])
        if any("time ratio" in row for row in rows):
            tables[f"{name}, time as a multiple of {BASE}'s, median of the rounds (quartiles)"] = by_peer(rows, _time)
            if part == "layers":
                tables[f"{name}, time as a multiple of {BASE}'s, geometric mean over the shapes"] = geometric_means(
                    rows
                )
    if rows := measured.get("memory"):
        tables["checkpoints, temporary memory of a step, in activations"] = by_peer(rows, _memory)
    if rows := measured.get("devices"):
        tables["eight devices, numbers that a device gives to each collective of one layer"] = by_peer(
            rows, lambda r: ", ".join("C" if n == 1 else f"{n:.3g}C" for n in r["collectives"]) or "none"
        )
    if rows := measured.get("compile"):
        tables[f"before the first step of a small ResNet, as a multiple of {BASE}'s"] = by_peer(
            rows, lambda r: f"{r['ratio']:.2f}"
        )
    if rows := measured.get("accuracy"):
        tables["relative error of the variance, float32, first step"] = rows
    if rows := measured.get("collectives"):
        tables["synchronized, collectives of a layer, forward and backward, and the largest error of its output"] = rows
    return tables


def _apart(row: Row) -> str:
    return f"{row['forward [B/element]']:.3g} + {row['backward [B/element]']:.3g}"


def _memory(row: Row) -> str:
    return f"{row['memory [activations]']:.3g}"


def _time(row: Row) -> str:
    return f"{row['time ratio']:.2f} ({row['first quartile']:.2f} to {row['third quartile']:.2f})"


def places(page: str) -> list[tuple[str, str, str]]:
    """What was measured, the title and the text of each place `<!-- what: title -->` ... `<!-- end -->` of a page."""
    return _PLACE.findall(page)


def filled(page: str, what: str, tables: dict[str, list[Row]], note: str) -> str:
    """The page with those tables in their places; what has no place is left out, and other places stay."""

    def fill(place: re.Match) -> str:
        if place[1] != what or place[2] not in tables:
            return place[0]
        return f"<!-- {place[1]}: {place[2]} -->\n{table(tables[place[2]])}\n{note}\n<!-- end -->"

    return _PLACE.sub(fill, page)


def note(about: Row) -> str:
    """One line that says on what a table was measured."""
    versions = [f"{name} {about[name]}" for name in about if name not in ("device", "GLIBC_TUNABLES", "command")]
    return f"{_device(about)}; {', '.join(versions)}."


def place_of(about: Row) -> str:
    """What was measured, as the places of a page name it: 'h100', 'tpu', or the kind of device that was here."""
    absent = {name: device for device, name in ABSENT.items()}
    device = _device(about)
    return absent.get(device, re.sub(" x [^;]*", "", device))


def _device(about: Row) -> str:
    allocator = about.get("GLIBC_TUNABLES")
    return about["device"] + (f"; GLIBC_TUNABLES={allocator}" if allocator else "")
