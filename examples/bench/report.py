"""The results of the benchmark: as tables in the terminal, as JSON, as Markdown and as a figure."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table

from figures import BLUE, ORANGE, STYLE, save

Row = dict[str, Any]


def by_peer(rows: list[Row], cell: Callable[[Row], str], extra: str | None = None) -> list[Row]:
    """One row per workload and one column per peer, each cell filled from a row by `cell`.

    `extra`: a quantity that is the same for all peers, as a column of its own.
    """
    found: dict[str, Row] = {}
    for row in rows:
        line = found.setdefault(row["workload"], {"workload": row["workload"]})
        if extra:
            line[extra] = row.get(extra, line.get(extra))
        try:
            line[row["peer"]] = cell(row)
        except KeyError:  # a peer for which this was not measured
            line[row["peer"]] = None
    return list(found.values())


def geometric_means(rows: list[Row]) -> list[Row]:
    """Ratios of times, summarized over the shapes, for each dtype and what is fused: rows like those of `by_peer`."""
    ratios: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if "time ratio" in row:
            kind = row["workload"].split(", ", 1)[-1].split("), ")[-1]
            ratios.setdefault(kind, {}).setdefault(row["peer"], []).append(row["time ratio"])
    return [
        {"workload": kind} | {peer: f"{np.exp(np.mean(np.log(values))):.2f}" for peer, values in peers.items()}
        for kind, peers in ratios.items()
    ]


def columns(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0e}" if value < 1e-2 else f"{value:.3g}"
    return "" if value is None else str(value)


def show(title: str, rows: list[Row]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold")
    for i, name in enumerate(columns(rows)):
        table.add_column(name, justify="right" if i else "left", style="bold" if name.startswith("jaxbn") else "")
    for row in rows:
        table.add_row(*(text(row.get(name)) for name in columns(rows)))
    Console(width=160).print(table)


def table(rows: list[Row]) -> str:
    """In Markdown."""
    names = columns(rows)
    lines = [" | ".join(names), " | ".join(["---", *["--:"] * (len(names) - 1)])]
    lines += [" | ".join(text(row.get(name)) for name in names) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)


def markdown(title: str, rows: list[Row]) -> str:
    return f"**{title}**\n\n{table(rows)}"


def write(folder: Path, about: Row, measured: dict[str, list[Row]], tables: dict[str, list[Row]]) -> None:
    """`benchmark.json` with all numbers, and `benchmark.md` with the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.json").write_text(json.dumps({"about": about, "measured": measured}, indent=1))
    head = "; ".join(f"{name}: {value}" for name, value in about.items())
    (folder / "benchmark.md").write_text(f"{head}\n\n" + "\n".join(markdown(*table) for table in tables.items()))
    print(f"numbers: {folder / 'benchmark.json'}, tables: {folder / 'benchmark.md'}")


def read(file: Path) -> tuple[Row, dict[str, list[Row]]]:
    """About what a run was, and its numbers: what `write` wrote."""
    run = json.loads(file.read_text())
    return run["about"], run["measured"]


def figure(folder: Path, title: str, rows: list[Row], quantity: str, limit: str | None = None) -> None:
    """A line per workload and a mark per peer, on a logarithmic axis; `limit` is a quantity drawn as one more mark."""
    groups = list(dict.fromkeys(row["workload"] for row in rows))
    peers = list(dict.fromkeys(row["peer"] for row in rows if quantity in row))
    with mpl.rc_context(STYLE):
        fig, axes = plt.subplots(figsize=(9, 1.2 + 0.24 * len(groups)), layout="constrained")
        if limit:
            known = {row["workload"]: row[limit] for row in rows if limit in row}
            axes.plot(
                list(known.values()), [groups.index(g) for g in known], "|", color=ORANGE, ms=14, mew=3, label=limit
            )
        for peer, mark in zip(reversed(peers), "sv^Dx+*" * 2, strict=False):
            shown = [row for row in rows if row["peer"] == peer and quantity in row]
            style = (
                {"color": BLUE, "ms": 9, "zorder": 3}
                if peer == "jaxbn"
                else {"color": "dimgray", "ms": 5, "alpha": 0.8}
            )
            places = [groups.index(row["workload"]) for row in shown]
            axes.plot(
                [row[quantity] for row in shown], places, "o" if peer == "jaxbn" else mark, ls="", label=peer, **style
            )
        axes.set_yticks(range(len(groups)), groups)
        axes.set(xscale="log", xlabel=quantity, title=title, ylim=(len(groups) - 0.5, -0.5))
        ticks = [t for t in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128) if axes.get_xlim()[0] < t < axes.get_xlim()[1]]
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.minorticks_off()
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    save(fig, folder / "benchmark.png")
