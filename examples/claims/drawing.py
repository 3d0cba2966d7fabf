"""How the study's figures look: one panel a figure, so that a page can set them side by side or below each other.

A colour means one thing throughout. The page swaps each for a variable of its style sheet, in light and in dark.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # figures go to files: no display is needed
import matplotlib.pyplot as plt
import numpy as np

from claims.claim import Interval, interval

COLOURS = {
    "batch": "#0072b2",
    "none": "#c65102",
    "noise": "#a8457d",
    "layer": "#00795a",
    "group": "#7d6b00",
    "instance": "#6f6f76",
}
"""of the norms: batch norm, none, batch norm followed by noise, and the others"""
MARKERS = {"batch": "o", "none": "s", "noise": "D", "layer": "^", "group": "v", "instance": "x"}
DASHES = {"batch": "-", "none": "--", "noise": "-.", "layer": "-", "group": "--", "instance": ":"}
LABELS = {
    "batch": "with batch norm",
    "none": "without",
    "noise": "batch norm, then noise",
    "layer": "layer norm",
    "group": "group norm",
    "instance": "instance norm",
}
INK = "#1b1b1f"
STYLE: Any = {
    "axes.edgecolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "figure.figsize": (4.0, 3.0),
    "font.family": "sans-serif",
    "font.size": 9.5,
    "grid.alpha": 0.25,
    "grid.color": INK,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "savefig.dpi": 150,
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxbn",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def panel(title: str, xlabel: str, ylabel: str, **options):
    """A figure of one pair of axes."""
    figure, axes = plt.subplots()
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel, **options)
    return figure, axes


def style(norm: str) -> dict[str, Any]:
    """Colour, marker and dash of a norm."""
    return {"color": COLOURS[norm], "marker": MARKERS[norm], "linestyle": DASHES[norm], "label": LABELS[norm]}


def curve(axes, xs: Sequence[float], values, norm: str, **changes) -> None:
    """A line with a band: mean and 95 % interval of values [seeds, places]."""
    intervals = [interval(v) for v in np.asarray(values, float).T]
    mean, half = (np.array([getattr(v, k) for v in intervals]) for k in ("mean", "half"))
    look = style(norm) | changes
    axes.plot(xs, mean, **look)
    axes.fill_between(xs, mean - half, mean + half, color=look["color"], alpha=0.2, linewidth=0)


def bars(axes, groups: Sequence[str], of_norm: dict[str, Sequence[Interval]]) -> None:
    """Groups of bars with intervals, one bar a norm, in percent."""
    width = 0.8 / len(of_norm)
    for i, (norm, values) in enumerate(of_norm.items()):
        axes.bar(
            np.arange(len(groups)) + width * (i - (len(of_norm) - 1) / 2),
            [100 * v.mean for v in values], 0.92 * width, yerr=[100 * v.half for v in values],
            color=COLOURS[norm], label=LABELS[norm], error_kw={"linewidth": 1, "ecolor": INK},
        )  # fmt: skip
    axes.set_xticks(range(len(groups)), groups)
    axes.grid(axis="x", visible=False)


def differences(axes, names: Sequence[str], values: Sequence[Interval], margin: float, colours=None) -> None:
    """Intervals of differences in points, around 0 and the margin in which there is no difference."""
    axes.axvspan(-100 * margin, 100 * margin, color=INK, alpha=0.08, linewidth=0)
    axes.axvline(0, color=INK, linewidth=0.8)
    for place, (value, colour) in enumerate(zip(values, colours or [INK] * len(values), strict=True)):
        axes.errorbar(100 * value.mean, -place, xerr=100 * value.half, color=colour, marker="o", capsize=3)
    axes.set_yticks([-i for i in range(len(names))], names)
    axes.set_ylim(-len(names) + 0.4, 0.6)
    axes.grid(axis="y", visible=False)
