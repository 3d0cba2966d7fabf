"""The figure of `jaxbn.summary`. It imports matplotlib, and is imported only when a figure is drawn."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from jaxbn._tools.summary import LayerSummary

HEALTHY, SICK = "#3b6ea5", "#c0392b"
SMALLEST, LARGEST = 1e-12, 1e12
"""The range that the logarithmic axis shows at most."""


def draw(rows: Sequence["LayerSummary"], far: float) -> Figure:
    """One line for each layer, the first on top; what looks sick is red."""
    measured = any(row.mean_distance is not None for row in rows)
    panels = 3 if measured else 2
    longest = max((len(row.layer) for row in rows), default=0)
    figure = Figure(figsize=(2.6 * panels + 0.08 * longest + 0.6, 0.3 * len(rows) + 1.3), layout="constrained")
    axes = figure.subplots(1, panels, sharey=True)
    at = np.arange(len(rows))
    _draw_variances(axes[0], at, rows)
    _draw_dead(axes[1], at, rows)
    if measured:
        _draw_distances(axes[2], at, rows, far)
    for axis in axes:
        axis.grid(axis="x", color="0.9")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(at, [row.layer for row in rows])
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    return figure


def _draw_variances(axis, at, rows):
    at = np.where([r.num_features for r in rows], at, np.nan)  # nothing for a layer without a channel
    smallest, largest = (
        np.clip(np.nan_to_num([getattr(r, name) for r in rows], nan=LARGEST, posinf=LARGEST), SMALLEST, LARGEST)
        for name in ("smallest_var", "largest_var")
    )
    colors = [SICK if r.dead or r.not_finite else HEALTHY for r in rows]
    axis.hlines(at, smallest, largest, colors, linewidth=2)
    for values in (smallest, largest):
        axis.scatter(values, at, c=colors, s=18, zorder=3)
    axis.set_xscale("log")
    if np.all(np.isnan(at)):  # a logarithmic axis finds no limits of its own without data
        axis.set_xlim(0.1, 10)
    axis.set_xlabel("running variance,\nsmallest to largest channel")


def _draw_dead(axis, at, rows):
    parts = [100 * r.dead / max(r.num_features, 1) for r in rows]
    axis.barh(at, parts, 0.6, color=SICK)
    axis.set_xlim(0, max([10, *parts]) * 1.05)
    axis.set_xlabel("dead channels, %")


def _draw_distances(axis, at, rows, far):
    kinds = (("mean_distance", "mean", "o", -0.15), ("var_distance", "variance", "D", 0.15))
    for name, label, marker, offset in kinds:
        values = np.array([np.nan if getattr(r, name) is None else min(getattr(r, name), LARGEST) for r in rows])
        colors = [SICK if v > far else HEALTHY for v in values]
        axis.hlines(at + offset, 0, values, colors, linewidth=1)
        axis.scatter(values, at + offset, c=colors, s=18, marker=marker, zorder=3)
        axis.scatter([], [], c="0.4", s=18, marker=marker, label=label)
    axis.axvline(far, color=SICK, linewidth=1, linestyle="--")
    axis.set_xscale("symlog", linthresh=1)
    axis.set_xlim(0, max(2 * far, 1.5 * axis.get_xlim()[1]))
    axis.set_xlabel("running to batch moments,\nstandard errors")
    axis.legend(frameon=False, fontsize="small", ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
