"""The page's recorded training: histograms of one unit's inputs, by step and learning rate."""

import json
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from claims.covariate_shift import ARMS, MOVIE_RATES
from claims.drawing import COLOURS, LABELS, STYLE, panel
from study_page import figures
from study_page.fill import MINUS, fill, short

SHOWN = 1
"""the rate that it opens with, as a place among `MOVIE_RATES`"""


def outline(counts: list[int]) -> str:
    """A histogram as the path of an SVG of 240 x 100; a quarter of all in one bin reaches the top."""
    width, total, path = 240 / len(counts), sum(counts), "M0 100"
    for i, count in enumerate(counts):
        y = 100 - 95 * min(1, 4 * count / total)
        path += f"L{i * width:.2f} {y:.2f}L{(i + 1) * width:.2f} {y:.2f}"
    return path + "L240 100Z"


def moved(of: dict[str, Any], rate: int, step: int) -> float:
    """Distance between the means of this look and the one before, in deviations; NaN where the unit was constant."""
    mean, deviation = (np.asarray(of[k], float)[rate] for k in ("mean", "deviation"))
    if not deviation[step - 1] > 0:
        return float("nan")
    return float(abs(mean[step] - mean[step - 1]) / deviation[step - 1])


def section(recorded: dict[str, Any] | None) -> str:
    """The HTML of the tool, as it stands before any script has run; says so where nothing was recorded."""
    if recorded is None:
        return '<p id="movie">Not recorded in this run: <code>python examples/study.py covariate_shift</code>.</p>'
    last = len(recorded["step"]) - 1
    return fill(
        "movie.html",
        layer=recorded["layer"] + 1,
        every=recorded["step"][0],
        step=recorded["step"][last],
        last=last,
        rate=f"{MOVIE_RATES[SHOWN]:g}",
        last_rate=len(MOVIE_RATES) - 1,
        shown=SHOWN,
        arms="".join(_arm(name, recorded[name], last) for name in ARMS),
        seen=_seen(recorded),
        traces="\n".join(figures.inline(figure, f"trace-{name}") for name, figure in _traces(recorded).items()),
        data=json.dumps(recorded | {"arms": list(ARMS)}, separators=(",", ":")),
    )


def _seen(recorded: dict[str, Any]) -> str:
    jumps = {name: np.nanmedian([moved(recorded[name], SHOWN, step) for step in range(1, len(recorded["step"]))])
             for name in ARMS}  # fmt: skip
    jumped = ", ".join(f"{jump:.3f} {LABELS[name]}" for name, jump in jumps.items())
    return f"Mean and deviation over the steps. From record to record the mean moves, in deviations, by: {jumped}"


def _traces(recorded: dict[str, Any]) -> dict[str, Figure]:
    """Mean and deviation over the steps, in each network."""
    found = {}
    with mpl.rc_context(STYLE):
        for name in ARMS:
            mean, deviation = (np.asarray(recorded[name][k], float)[SHOWN] for k in ("mean", "deviation"))
            figure, axes = panel(LABELS[name], "step", "inputs of one unit", ylim=(-6, 6))
            axes.plot(recorded["step"], mean, color=COLOURS[name])
            axes.fill_between(recorded["step"], mean - deviation, mean + deviation, color=COLOURS[name], alpha=0.25,
                              linewidth=0)  # fmt: skip
            found[name] = figure
            plt.close(figure)
    return found


def _arm(name: str, of: dict[str, Any], last: int) -> str:
    mean, deviation, accuracy = (np.asarray(of[k], float)[SHOWN, last] for k in ("mean", "deviation", "accuracy"))
    three = {"mean": mean, "deviation": deviation, "moved": moved(of, SHOWN, last)}
    shown = {k: f'<output data-id="{name}-{k}">{f"{v:.3f}".replace("-", MINUS)}</output>' for k, v in three.items()}
    ticks = "".join(
        f'<text x="{120 + 20 * v}" y="112" text-anchor="middle" font-size="9" fill="var(--quiet)">{short(v)}</text>'
        for v in range(-6, 7, 2)
    )
    paths = "".join(
        f'<path class="{when}" data-id="{name}-{when}" d="{outline(of["counts"][SHOWN][step])}"/>'
        for when, step in (("now", last), ("before", last - 1))
    )
    return f"""<div><h4 style="color: var(--{name})">{LABELS[name]}</h4>
<svg viewBox="-6 0 252 116" style="color: var(--{name})" role="img"
aria-label="Histogram of the inputs, {LABELS[name]}">{paths}{ticks}</svg>
<p>mean {shown["mean"]}, deviation {shown["deviation"]}; moved by {shown["moved"]} deviations;
<output data-id="{name}-accuracy">{100 * accuracy:.1f}</output> % of the validation images right</p></div>"""
