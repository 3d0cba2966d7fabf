"""The page's batch of four numbers: the values it opens with are computed by jaxbn in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxbn
from study_page.fill import MINUS, fill, short

START: dict[str, Any] = {
    "x": [1.0, 2.0, 3.0, 6.0],
    "epsilon": 1e-5,
    "scale": 2.0,
    "bias": 1.0,
    "momentum": 0.9,
    "steps": 10,
    "training": True,
}


def compute(x, epsilon, scale, bias, momentum, steps, training) -> dict[str, Any]:
    """Every value that the page shows, in float64: one feature, trained for some steps on one batch.

    Args:
      x: [n] values of the batch.
      epsilon, scale, bias, momentum: as of `jaxbn.batch_norm`.
      steps: how often the running averages have seen this batch.
      training: whether the batch's own statistics normalize it, or the running averages.
    """
    with jax.enable_x64(True):
        column = jnp.asarray(x, jnp.float64)[:, None]
        params = {"scale": jnp.full(1, scale, jnp.float64), "bias": jnp.full(1, bias, jnp.float64)}
        stats = {"mean": jnp.zeros(1, jnp.float64), "var": jnp.ones(1, jnp.float64)}
        options = {"epsilon": epsilon, "momentum": momentum}

        def step(_, stats):
            return jaxbn.batch_norm(params, stats, column, use_running_average=False, **options)[1]

        y, _ = jaxbn.batch_norm(params, stats, column, use_running_average=False, **options)
        stats = jax.lax.fori_loop(0, steps, step, stats)
        moments = jaxbn.batch_moments(column)
        used = {"mean": moments.mean, "var": moments.var} if training else stats
        if not training:
            y, _ = jaxbn.batch_norm(params, stats, column, use_running_average=True, **options)
        bare, _ = jaxbn.batch_norm({}, used, column, use_running_average=True, epsilon=epsilon)
        one = {
            "mean": moments.mean, "var": moments.var, "running-mean": stats["mean"], "running-var": stats["var"],
            "deviation": jnp.sqrt(used["var"] + epsilon),
        }  # fmt: skip
        found = {name: float(value[0]) for name, value in one.items()}
        return found | {name: np.asarray(v)[:, 0].tolist() for name, v in (("normalized", bare), ("y", y))}


ROWS = {
    "mean": ("mean", "the sum, divided by the number of values"),
    "var": ("variance", "the mean of the squared distances from the mean"),
    "running-mean": ("running mean", f"after {START['steps']} training steps on this batch, from 0"),
    "running-var": ("running variance", f"after {START['steps']} training steps on this batch, from 1"),
    "deviation": ("standard deviation", "the root of variance + ε"),
    "normalized": ("normalized", f"(x {MINUS} mean) / standard deviation"),
    "y": ("y", "scale times normalized, plus bias"),
}
OPTIONS = (
    ("epsilon", "ε", 'min="0"'),
    ("scale", "scale", ""),
    ("bias", "bias", ""),
    ("momentum", "momentum", 'min="0" max="1"'),
)


def section() -> str:
    """The HTML of the tool, as it stands before any script has run."""
    found = compute(**START)
    rows = []
    for name, (label, how) in ROWS.items():
        values = found[name] if isinstance(found[name], list) else [found[name]]
        text = ", ".join(map(short, values))
        rows.append(
            f'<tr data-id="{name}"><td>{label}</td><td><output>{text}</output></td><td class="how">{how}</td></tr>'
        )
    numbers = [
        f'<label>x<sub>{i + 1}</sub><input type="number" step="any" value="{v:g}" data-id="x{i}"></label>'
        for i, v in enumerate(START["x"])
    ]
    options = [
        f'<label>{label}<input type="number" step="any" {limits} value="{START[name]:g}" data-id="{name}"></label>'
        for name, label, limits in OPTIONS
    ]
    sizes = [
        f'<label><input type="radio" name="size" value="{n}"{" checked" if n == 4 else ""}> {n}</label>'
        for n in (4, 2, 1)
    ]
    return fill(
        "by_hand.html",
        numbers="".join(numbers),
        options="".join(options),
        sizes="".join(sizes),
        steps=START["steps"],
        x=", ".join(map(short, START["x"])),
        opens=", ".join(f"{label} {START[name]:g}" for name, label, _ in OPTIONS),
        rows="\n".join(rows),
        lines="".join(_line(name, START["x"] if name == "x" else found[name]) for name in ("x", "normalized", "y")),
    )


def _line(name: str, values: list[float]) -> str:
    """Values as dots on a line from -10 to 10."""
    ticks = "".join(
        f'<text x="{300 + 30 * v}" y="26" text-anchor="middle">{short(v)}</text>'
        f'<path d="M{300 + 30 * v} 8v6" stroke="var(--line)"/>'
        for v in range(-9, 10, 3)
    )
    colour = "var(--none)" if name == "x" else "var(--batch)"
    dots = "".join(
        f'<circle cx="{300 + 30 * v:.4f}" cy="11" r="5" fill="{colour}" fill-opacity="0.75"/>' for v in values
    )
    return (
        f'<span>{name}</span><svg class="line" viewBox="0 0 600 30" data-dots="{name}" role="img" '
        f'aria-label="{name} as dots on a line"><path d="M15 11h570" stroke="var(--line)"/>{ticks}{dots}</svg>'
    )
