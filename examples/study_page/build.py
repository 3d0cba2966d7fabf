"""The page from study.json: figures, verdicts, and a text whose numbers are all looked up."""

import html
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.pyplot as plt

from claims.claim import SKETCH
from claims.tuning import RATES, TUNING_SEEDS
from study_page import by_hand, figures, movie
from study_page.fill import fill, read, unbroken
from study_page.guide import AFTERWARDS, EXERCISES, PARTS, Line

KINDS = {"supported": "supported", "partly": "partly", SKETCH: "partly"}
"""of verdicts, for the style sheet"""


def page(study: dict[str, Any], claims: dict[str, ModuleType], folder: Path | None = None) -> str:
    """The HTML of the page.

    Args:
      study: what study.json holds.
      claims: the modules, by name, in the order of the page.
      folder: where the figures go as PNG files too.
    """
    known = [(number, name) for number, name in enumerate(claims, 1) if name in study["claims"]]
    shift = study["claims"].get("covariate_shift")
    return fill(
        "template.html",
        style=read("style.css"),
        sketch=read("sketch.html") if study["about"]["fast"] else "",
        by_hand=by_hand.section(),
        movie=movie.section(shift and shift["results"]["movie"]),
        rows="\n".join(_row(number, name, claims[name], study) for number, name in known),
        claims="\n".join(_claim(number, name, claims[name], study, folder) for number, name in known),
        guide=_guide(study),
        exercises=_exercises(),
        how=_how(study["about"]),
        by_hand_js=read("by_hand.js"),
        movie_js=f"<script>{read('movie.js')}</script>" if shift else "",
    )


def text(words: str) -> str:
    """Words as HTML, an interval on one line."""
    return unbroken(html.escape(words, quote=False))


def _row(number: int, name: str, module: ModuleType, study: dict[str, Any]) -> str:
    finding = study["claims"][name]
    kind = KINDS.get(finding["verdict"], "not")
    verdict = f"<strong>{text(finding['verdict'])}</strong>: <span>{text(finding['because'])}.</span>"
    return f'<tr><td><a href="#{name}">{number}. {text(module.TITLE)}</a></td><td class="{kind}">{verdict}</td></tr>'


def _claim(number: int, name: str, module: ModuleType, study: dict[str, Any], folder: Path | None) -> str:
    finding = study["claims"][name]
    drawn = figures.drawn(module, finding["results"])
    panels = "\n".join(figures.inline(figure, f"{name}-{i}") for i, figure in enumerate(drawn, 1))
    if folder:
        figures.save(drawn, folder / f"{name}.png")
    for figure in drawn:
        plt.close(figure)
    return fill(
        "claim.html",
        name=name,
        number=number,
        panels=panels,
        kind=KINDS.get(finding["verdict"], "not"),
        seen=html.escape(f"{module.TITLE}. {module.seen(finding['results'])}."),
        title=text(module.TITLE),
        sentence=text(module.SENTENCE),
        support=text(module.SUPPORT),
        against=text(module.AGAINST),
        limits=text(module.LIMITS),
        look=text(module.LOOK),
        measured=text(finding["measured"]),
        effect="".join(f"<li>{text(part)}</li>" for part in finding["effect"].split("; ")),
        verdict=text(finding["verdict"]).capitalize(),
        because=text(finding["because"]),
    )


def answer(line: Line, study: dict[str, Any]) -> str:
    """The answer to a line of the guide, its numbers looked up and marked with where they are from."""
    missing = [name for name in re.findall(r"\[\[(\w+):", line.answer) if name not in study["claims"]]
    if missing:
        return f"Not measured in this run: <code>python examples/study.py {missing[0]}</code>."

    def look_up(match: re.Match) -> str:
        finding = study["claims"][match[1]]
        name = html.unescape(match[2])
        value = finding[name] if name in ("verdict", "because") else finding["numbers"].get(name, "not measured")
        return f'<span data-claim="{match[1]}" data-name="{html.escape(name)}">{text(value)}</span>'

    return re.sub(r"\[\[(\w+): (.*?)\]\]", look_up, html.escape(line.answer, quote=False))


def _guide(study: dict[str, Any]) -> str:
    sections = []
    for title, lines in PARTS.items():
        items = []
        for line in lines:
            links = ", ".join(f'<a href="#{c}">figure</a>' for c in line.claims if c in study["claims"])
            items.append(
                f"<dt>{html.escape(line.says)}</dt><dd>{answer(line, study)} {f'({links})' if links else ''}</dd>"
            )
        sections.append(f"<h3>{title}</h3>\n<dl>{''.join(items)}</dl>")
    return "\n".join(sections)


def _exercises() -> str:
    items = [
        f"<li>{text(words)}<pre><code>python examples/exercises.py {name}</code></pre>"
        f"<details><summary>What you should see</summary><p>{text(AFTERWARDS[name])}</p></details></li>"
        for name, words in EXERCISES.items()
    ]
    return f"<ol>{''.join(items)}</ol>"


def _how(about: dict[str, Any]) -> str:
    return fill(
        "how.html",
        rates=len(RATES),
        lowest=f"{RATES[0]:.2g}",
        highest=f"{RATES[-1]:g}",
        tuning=len(TUNING_SEEDS),
        versions=text(", ".join(f"{k} {about[k]}" for k in ("jaxbn", "jax", "device"))),
        **{k: text(str(about[k])) for k in ("images", "count", "size", "seeds", "command")},
    )


def markdown(study: dict[str, Any], claims: dict[str, ModuleType]) -> str:
    """The table, as a file of its own."""
    about = study["about"]
    lines = ["# What batch norm does, measured", ""]
    lines += [
        f"{about['images']}, {about['size']}; {about['seeds']} splits and seeds for each arm; rates chosen on "
        "validation images; intervals of 95 % over splits and seeds. The page with its figures: "
        f"`{about['command']}`, or at once from the numbers kept here: "
        "`python examples/study.py --page examples/study.json`.",
        "",
    ]
    lines += [] if not about["fast"] else ["A sketch (`--fast`), without verdicts.", ""]
    lines += ["| the guide says | found | verdict |", "|---|---|---|"]
    for name, module in claims.items():
        if name in study["claims"]:
            finding = study["claims"][name]
            found = finding["effect"].replace("|", "/")
            lines.append(f"| {module.SENTENCE} | {found} | **{finding['verdict']}**: {finding['because']} |")
    return "\n".join(lines) + "\n"
