"""The study's results: figures, one HTML page that needs nothing beside it, and a table in the terminal."""

import base64
import html
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table

from claims.claim import Finding, Results
from figures import STYLE

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>What batch norm does, measured</title>
<style>
 body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
 img {{ max-width: 100%; }}
 table {{ border-collapse: collapse; font-size: 0.9rem; }}
 th, td {{ border-bottom: 1px solid #ccc; padding: 0.4rem 0.6rem; text-align: left; vertical-align: top; }}
 .verdict {{ border-left: 0.3rem solid #0072B2; padding-left: 0.7rem; }}
 .verdict.no {{ border-color: #D55E00; }} .verdict.part {{ border-color: #E69F00; }}
 code {{ background: #f2f2f2; padding: 0.1rem 0.3rem; }}
 .about {{ color: #555; font-size: 0.9rem; }}
</style>
<h1>What batch norm does, measured</h1>
<p>Each claim that is taught about batch normalization as a small experiment on real images. Intervals are those of
95 % over {seeds} seeds (Student's t). "Best learning rate" is the one of a grid, the same for all that are compared,
with the best test accuracy on average over the seeds: optimistic for each alike.</p>
<p class="about">{about}</p>
<p>Again: <code>{command}</code></p>
<table><tr><th>claim<th>verdict</tr>
{rows}
</table>
{sections}
</html>
"""


def write(folder: Path, about: dict[str, Any], claims: dict[str, tuple[ModuleType, Finding, Results]]) -> Path:
    """Figures (`NAME.png`, `NAME.svg`), `study.json` and `index.html` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, sections = [], []
    for number, (name, (claim, finding, results)) in enumerate(claims.items(), 1):
        picture = draw(folder, name, claim, results)
        kind = {"does": "no", "holds in": "part"}.get(
            next((k for k in ("does", "holds in") if finding.verdict.startswith(k)), ""), ""
        )
        title = f"{number}. {claim.TITLE}"
        rows.append(f'<tr><td><a href="#{name}">{html.escape(title)}</a><td>{html.escape(finding.verdict)}</tr>')
        sections.append(
            f'<h2 id="{name}">{html.escape(title)}</h2>\n<p><i>Claim:</i> {html.escape(claim.CLAIM)}</p>\n'
            f'<img alt="{html.escape(claim.TITLE)}" src="data:image/svg+xml;base64,{picture}">\n'
            f"<p><i>Measured:</i> {html.escape(finding.measured)}.</p>\n"
            f"<p><i>Found:</i> {html.escape(finding.effect)}.</p>\n"
            f'<p class="verdict {kind}"><i>Verdict:</i> {html.escape(finding.verdict)}.</p>'
        )
    page = PAGE.format(
        seeds=about["seeds"],
        about=html.escape("; ".join(f"{k}: {v}" for k, v in about.items() if k != "command")),
        command=html.escape(about["command"]),
        rows="\n".join(rows),
        sections="\n".join(sections),
    )
    (folder / "index.html").write_text(page)
    table = {name: finding._asdict() for name, (_, finding, _) in claims.items()}
    (folder / "study.json").write_text(json.dumps({"about": about, "claims": table}, indent=1))
    (folder / "study.md").write_text(markdown(claims))
    return folder / "index.html"


def draw(folder: Path, name: str, claim: ModuleType, results: Results) -> str:
    """Saves the figure, and returns it as SVG in base64; the same numbers give the same file."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": "jaxbn", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure = claim.draw(results)
        figure.savefig(folder / f"{name}.png")
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)
    return base64.b64encode((folder / f"{name}.svg").read_bytes()).decode()


def markdown(claims: dict[str, tuple[ModuleType, Finding, Results]]) -> str:
    lines = ["| claim | measured | found | verdict |", "|---|---|---|---|"]
    lines += [f"| {c.CLAIM} | {f.measured} | {f.effect} | {f.verdict} |" for c, f, _ in claims.values()]
    return "\n".join(lines) + "\n"


def show(claims: dict[str, tuple[ModuleType, Finding, Results]]) -> None:
    table = Table(title="What batch norm does, measured", show_lines=True, title_justify="left")
    for heading in ("claim", "measured", "found", "verdict"):
        table.add_column(heading, ratio=1 if heading == "claim" else 2)
    for claim, finding, _ in claims.values():
        colour = (
            "red"
            if finding.verdict.startswith("does")
            else "yellow"
            if finding.verdict.startswith("holds in")
            else "green"
        )
        table.add_row(claim.CLAIM, finding.measured, finding.effect, f"[{colour}]{finding.verdict}[/]")
    Console().print(table)
