"""The page's recorded training: histograms of one unit's inputs, by step and learning rate."""

import json
from typing import Any

import numpy as np

from claims.covariate_shift import ARMS, MOVIE_RATES
from claims.drawing import LABELS

SHOWN = 1
"""the rate that it opens with, as a place among `MOVIE_RATES`"""


def outline(counts: list[int]) -> str:
    """A histogram as the path of an SVG of 240 x 100; a third of all in one bin reaches the top."""
    width, total, path = 240 / len(counts), sum(counts), "M0 100"
    for i, count in enumerate(counts):
        y = 100 - 95 * min(1, 3 * count / total)
        path += f"L{i * width:.2f} {y:.2f}L{(i + 1) * width:.2f} {y:.2f}"
    return path + "L240 100Z"


def moved(of: dict[str, Any], rate: int, step: int) -> float:
    """Distance between the means of this look and the one before, in deviations."""
    mean, deviation = (np.asarray(of[k], float)[rate] for k in ("mean", "deviation"))
    return float(abs(mean[step] - mean[step - 1]) / deviation[step - 1])


def section(recorded: dict[str, Any] | None) -> str:
    if recorded is None:
        return '<p id="movie">Not recorded in this run: <code>python examples/study.py covariate_shift</code>.</p>'
    last = len(recorded["step"]) - 1
    arms = []
    for name in ARMS:
        of = recorded[name]
        values = {
            "mean": np.asarray(of["mean"], float)[SHOWN, last],
            "deviation": np.asarray(of["deviation"], float)[SHOWN, last],
            "moved": moved(of, SHOWN, last),
        }
        shown = {k: f"{v:.3f}".replace("-", "−") for k, v in values.items()}
        accuracy = f"{100 * np.asarray(of['accuracy'], float)[SHOWN, last]:.1f}"
        ticks = "".join(
            f'<text x="{120 + 20 * v}" y="112" text-anchor="middle" font-size="9" fill="var(--quiet)">'
            f"{str(v).replace('-', '−')}</text>"
            for v in (-6, -4, -2, 0, 2, 4, 6)
        )
        arms.append(
            f'<div><h4 style="color: var(--{name})">{LABELS[name]}</h4>'
            f'<svg viewBox="-6 0 252 116" style="color: var(--{name})" role="img" aria-label="Histogram of the inputs, '
            f'{LABELS[name]}"><path class="now" data-id="{name}-now" d="{outline(of["counts"][SHOWN][last])}"/>'
            f'<path class="before" data-id="{name}-before" d="{outline(of["counts"][SHOWN][last - 1])}"/>{ticks}</svg>'
            f'<p>mean <output data-id="{name}-mean">{shown["mean"]}</output>, deviation '
            f'<output data-id="{name}-deviation">{shown["deviation"]}</output>; moved by '
            f'<output data-id="{name}-moved">{shown["moved"]}</output> deviations; '
            f'<output data-id="{name}-accuracy">{accuracy}</output> % of the validation images right</p></div>'
        )
    every = recorded["step"][0]
    return f"""<div class="tool" id="movie">
<p>What one unit in layer {recorded["layer"] + 1} of six is given before its activation, on all validation images in
evaluation mode, recorded every {every} steps of real training. Dashed: {every} steps earlier. The outermost bars hold all
that lies beyond 6.</p>
<div class="controls needs-script">
<label>step <span data-id="step-shown">{recorded["step"][last]}</span>
<input type="range" min="0" max="{last}" value="{last}" data-id="step"></label>
<label>learning rate <span data-id="rate-shown">{MOVIE_RATES[SHOWN]:g}</span>
<input type="range" min="0" max="{len(MOVIE_RATES) - 1}" value="{SHOWN}" data-id="rate"></label>
<button type="button" data-id="play">play</button>
</div>
<div class="movie">{"".join(arms)}</div>
</div>
<p>The network in the middle has no norm; the one on the right has batch norm and after it noise, drawn anew in each step, so
that its distributions jump about. Claim <a href="#covariate_shift">4</a> measures what that costs.</p>
<script type="application/json" id="movie-data">{json.dumps(recorded | {"arms": list(ARMS)}, separators=(",", ":"))}</script>"""
