"""What the benchmark found: as tables in the terminal, as JSON, as Markdown and as a figure."""

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
    """One row a workload and one column a peer, each cell filled from a row by `cell`.

    `extra`: a quantity that is the same for all peers, as a column of its own.
    """
    found: dict[str, Row] = {}
    for row in rows:
        line = found.setdefault(row["workload"], {"workload": row["workload"]})
        if extra:
            line[extra] = row.get(extra, line.get(extra))
        try:
            line[row["peer"]] = cell(row)
        except KeyError:  # a peer of which this was not measured
            line[row["peer"]] = None
    return list(found.values())


def geometric_means(rows: list[Row]) -> list[Row]:
    """Of the ratios of times, over the shapes, for each dtype and what is fused: rows like those of `by_peer`."""
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


def markdown(title: str, rows: list[Row]) -> str:
    names = columns(rows)
    lines = [" | ".join(names), " | ".join(["---", *["--:"] * (len(names) - 1)])]
    lines += [" | ".join(text(row.get(name)) for name in names) for row in rows]
    return f"**{title}**\n\n" + "\n".join(f"| {line} |" for line in lines) + "\n"


def write(folder: Path, about: Row, measured: dict[str, list[Row]], tables: dict[str, list[Row]]) -> None:
    """`benchmark.json` with all numbers, and `benchmark.md` with the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.json").write_text(json.dumps({"about": about, "measured": measured}, indent=1))
    head = "; ".join(f"{name}: {value}" for name, value in about.items())
    (folder / "benchmark.md").write_text(f"{head}\n\n" + "\n".join(markdown(*table) for table in tables.items()))
    print(f"numbers: {folder / 'benchmark.json'}, tables: {folder / 'benchmark.md'}")


def figure(folder: Path, title: str, rows: list[Row], quantity: str, limit: str | None = None) -> None:
    """A group of bars a workload, a bar a peer; `limit` is a quantity that is drawn as a line across the group."""
    groups = list(dict.fromkeys(row["workload"] for row in rows))
    peers = list(dict.fromkeys(row["peer"] for row in rows if quantity in row))
    values = {(row["workload"], row["peer"]): row for row in rows if quantity in row}
    step = len(peers) + 1
    with mpl.rc_context(STYLE):
        fig, axes = plt.subplots(figsize=(9, 1 + 0.14 * len(groups) * step), layout="constrained")
        grays = iter(plt.get_cmap("Greys")(np.linspace(0.8, 0.25, len(peers))))
        for i, peer in enumerate(peers):
            shown = [
                (g * step + i, values[name, peer][quantity]) for g, name in enumerate(groups) if (name, peer) in values
            ]
            places, lengths = zip(*shown, strict=True)
            colour = BLUE if peer == "jaxbn" else next(grays)
            axes.barh(places, lengths, color=colour, label=peer, height=0.9)
        if limit:
            for g, name in enumerate(groups):
                reached = next(values[name, p][limit] for p in peers if (name, p) in values)
                label = "_" if g else "limit"
                axes.vlines(reached, g * step - 0.6, (g + 1) * step - 1.4, colors=ORANGE, linewidth=2.5, label=label)
        axes.set_yticks([g * step + (step - 2) / 2 for g in range(len(groups))], groups)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set(xlabel=quantity, title=title)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    save(fig, folder / "benchmark.png")
