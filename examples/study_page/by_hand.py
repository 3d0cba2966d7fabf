"""The page's batch of four numbers: the values it opens with are computed by jaxbn in float64."""

import html
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxbn

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
        y, seen = jaxbn.batch_norm(params, stats, column, use_running_average=False, **options)
        for step in range(steps):
            _, stats = jaxbn.batch_norm(params, stats, column, use_running_average=False, **options)
            del step
        moments = jaxbn.batch_moments(column)
        used = {"mean": moments.mean, "var": moments.var} if training else stats
        if not training:
            y, _ = jaxbn.batch_norm(params, stats, column, use_running_average=True, **options)
        bare, _ = jaxbn.batch_norm({}, used, column, use_running_average=True, epsilon=epsilon)
        del seen
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
    "normalized": ("normalized", "(x − mean) / standard deviation"),
    "y": ("y", "scale × normalized + bias"),
}


def _short(value: float) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".").replace("-", "−")


def _line(name: str, label: str, values: list[float]) -> str:
    """Values as dots on a line from -10 to 10."""
    ticks = "".join(f'<text x="{300 + 30 * v}" y="26" text-anchor="middle">{str(v).replace("-", "−")}</text>'
                    f'<path d="M{300 + 30 * v} 8v6" stroke="var(--line)"/>' for v in range(-9, 10, 3))  # fmt: skip
    colour = "var(--none)" if name == "x" else "var(--batch)"
    dots = "".join(
        f'<circle cx="{300 + 30 * v:.4f}" cy="11" r="5" fill="{colour}" fill-opacity="0.75"/>' for v in values
    )
    return (
        f'<span>{label}</span><svg class="line" viewBox="0 0 600 30" data-dots="{name}" role="img" aria-label="{label} as dots on a line">'
        f'<path d="M15 11h570" stroke="var(--line)"/>{ticks}{dots}'
        "</svg>"
    )


def section() -> str:
    """The HTML of the tool, as it stands before any script has run."""
    found = compute(**START)
    rows = []
    for name, (label, how) in ROWS.items():
        value = found[name]
        text = ", ".join(map(_short, value)) if isinstance(value, list) else _short(value)
        rows.append(f'<tr data-id="{name}"><td>{label}</td><td><output>{text}</output></td>'
                    f'<td class="how">{html.escape(how)}</td></tr>')  # fmt: skip
    numbers = "".join(
        f'<label>x<sub>{i + 1}</sub><input type="number" step="any" value="{v:g}" data-id="x{i}"></label>'
        for i, v in enumerate(START["x"])
    )
    options = "".join(
        f'<label>{label}<input type="number" step="any" {limits} value="{START[name]:g}" data-id="{name}"></label>'
        for name, label, limits in (
            ("epsilon", "ε", 'min="0"'), ("scale", "scale", ""), ("bias", "bias", ""),
            ("momentum", "momentum", 'min="0" max="1"'),
        )
    )  # fmt: skip
    sizes = "".join(
        f'<label><input type="radio" name="size" value="{n}"{" checked" if n == 4 else ""}> {n}</label>'
        for n in (4, 2, 1)
    )
    lines = "".join(_line(n, n, found[n] if n in found else START["x"]) for n in ("x", "normalized", "y"))
    return f"""<p>One feature, and a batch of four examples. <span class="needs-script">Change any number, and
follow it through.</span> In training each value is judged by the company it is in; in evaluation by the running
averages. Make one value very large in training mode, and watch what becomes of the others.</p>
<div class="tool" id="by-hand">
<div class="controls needs-script">{numbers}</div>
<div class="controls needs-script">{options}</div>
<div class="controls needs-script">
<fieldset><legend>batch of</legend>{sizes}</fieldset>
<fieldset><legend>mode</legend><label><input type="radio" name="mode" value="training" checked> training</label>
<label><input type="radio" name="mode" value="evaluation"> evaluation</label></fieldset>
<label>training steps so far: <span data-id="steps-shown">{START["steps"]}</span>
<input type="range" min="0" max="60" value="{START["steps"]}" data-id="steps"></label>
</div>
<table class="steps"><tbody><tr><td>x</td><td>{", ".join(map(_short, START["x"]))}</td><td>the batch, as it opens; ε
{START["epsilon"]:g}, scale {START["scale"]:g}, bias {START["bias"]:g}, momentum {START["momentum"]:g}</td></tr>
{"".join(rows)}</tbody></table>
<div class="lines">{lines}</div>
<p class="note" data-id="note" aria-live="polite"></p>
</div>"""
