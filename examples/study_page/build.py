"""The page from study.json: figures, verdicts, and a text whose numbers are all looked up."""

import html
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from claims.claim import SKETCH
from claims.tuning import RATES, TUNING_SEEDS
from study_page import by_hand, figures, movie
from study_page.guide import EXERCISES, PARTS, Line

HERE = Path(__file__).parent
KINDS = {"supported": "supported", "partly": "partly", SKETCH: "partly"}
"""of verdicts, for the style sheet"""


def page(study: dict[str, Any], claims: dict[str, ModuleType], folder: Path | None = None) -> str:
    """The HTML of the page.

    Args:
      study: what study.json holds.
      claims: the modules, by name, in the order of the page.
      folder: where the figures go as PNG files too.
    """
    known = {name: claims[name] for name in claims if name in study["claims"]}
    shift = study["claims"].get("covariate_shift")
    parts = {
        "style": _file("style.css"),
        "sketch": _sketch(study["about"]),
        "by_hand": by_hand.section(),
        "movie": movie.section(shift and shift["results"]["movie"]),
        "rows": "\n".join(_row(number, name, module, study) for number, (name, module) in enumerate(known.items(), 1)),
        "claims": "\n".join(
            _claim(number, name, module, study, folder) for number, (name, module) in enumerate(known.items(), 1)
        ),
        "guide": _guide(study),
        "exercises": _exercises(),
        "how": _how(study["about"]),
        "by_hand_js": _file("by_hand.js"),
        "movie_js": f"<script>{_file('movie.js')}</script>" if shift else "",
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], _file("template.html"))


def _file(name: str) -> str:
    return (HERE / name).read_text().strip()


def _sketch(about: dict[str, Any]) -> str:
    if not about["fast"]:
        return ""
    return (
        '<p class="sketch">This is a sketch (--fast): a fifth of the steps and few seeds. It shows what the page looks '
        "like; its numbers bear no verdict.</p>"
    )


def _verdict(finding: dict[str, Any]) -> str:
    kind = KINDS.get(finding["verdict"], "not")
    return f'class="{kind}"><strong>{html.escape(finding["verdict"])}</strong>: <span>{html.escape(finding["because"])}.</span>'


def _row(number: int, name: str, module: ModuleType, study: dict[str, Any]) -> str:
    claim = f'<a href="#{name}">{number}. {html.escape(module.TITLE)}</a>'
    return f"<tr><td>{claim}</td><td {_verdict(study['claims'][name])}</td></tr>"


def _claim(number: int, name: str, module: ModuleType, study: dict[str, Any], folder: Path | None) -> str:
    finding = study["claims"][name]
    drawn = figures.drawn(module, finding["results"])
    panels = "\n".join(figures.inline(figure, f"{name}-{i}") for i, figure in enumerate(drawn, 1))
    if folder:
        figures.save(drawn, folder, name)
    text = {
        k: html.escape(v)
        for k, v in vars(module).items()
        if k in ("TITLE", "SENTENCE", "SUPPORT", "AGAINST", "LIMITS", "LOOK")
    }
    seen = html.escape(f"{module.TITLE}. {module.seen(finding['results'])}.")
    return f"""<section><h3 id="{name}">{number}. {text["TITLE"]}</h3>
<blockquote>{text["SENTENCE"]}</blockquote>
<p><b>For it</b> would count that {text["SUPPORT"]}. <b>Against it</b>, that {text["AGAINST"]}.</p>
<figure><div class="panels" role="img" aria-label="{seen}">
{panels}
</div><figcaption>{text["LOOK"]}</figcaption></figure>
<p><b>Measured:</b> {html.escape(finding["measured"])}.</p>
<p><b>Found:</b> {html.escape(finding["effect"])}.</p>
<p class="verdict {KINDS.get(finding["verdict"], "not")}"><strong>{html.escape(finding["verdict"]).capitalize()}</strong>:
<span>{html.escape(finding["because"])}.</span></p>
<p class="about"><b>What this cannot show.</b> {text["LIMITS"]}</p></section>"""


def answer(line: Line, study: dict[str, Any]) -> str:
    """The answer to a line of the guide, its numbers looked up and marked with where they are from."""
    missing = [name for name in re.findall(r"\[\[(\w+):", line.answer) if name not in study["claims"]]
    if missing:
        return f"Not measured in this run: <code>python examples/study.py {missing[0]}</code>."

    def look_up(match: re.Match) -> str:
        finding = study["claims"][match[1]]
        name = html.unescape(match[2])
        value = finding[name] if name in ("verdict", "because") else finding["numbers"].get(name, "not measured")
        return f'<span data-claim="{match[1]}" data-name="{html.escape(name)}">{html.escape(value)}</span>'

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
        f"<li>{html.escape(text)}<pre><code>python examples/exercises.py {name}</code></pre></li>"
        for name, text in EXERCISES.items()
    ]
    return f"<ol>{''.join(items)}</ol>"


def _how(about: dict[str, Any]) -> str:
    rates = f"{RATES[0]:.3g} to {RATES[-1]:g}, each twice the last"
    others = ", ".join(f"{k} {about[k]}" for k in ("jaxbn", "jax", "device"))
    return f"""<p>{html.escape(about["images"])}: {about["count"]} images of {about["size"]}. For each seed they are split
anew: three fifths to train, a fifth for choices (validation), a fifth for the test. Each arm of a comparison is tried at the
same {len(RATES)} learning rates ({rates}) on the same {len(TUNING_SEEDS)} splits of their own; the rate that is best on the
validation part is trained again on {about["seeds"]} other splits and seeds, which all arms share, and only there the test part
is looked at, once. "a ± b" is a mean over these and its 95 % interval (Student's t); differences are taken seed by seed. The
splits are of the same images, so that the intervals say how much the split and the seed matter, not how other images
would do. A run whose loss is not finite diverged: it is told apart, and is no low accuracy.</p>
<p>The margin: a difference in accuracy whose interval lies within 1 point of 0 is called the same.</p>
<p class="about">{html.escape(others)}. Again: <code>{html.escape(about["command"])}</code></p>"""


def markdown(study: dict[str, Any], claims: dict[str, ModuleType]) -> str:
    """The table, for a README."""
    lines = [] if not study["about"]["fast"] else ["A sketch (`--fast`), without verdicts.", ""]
    lines += ["| the guide says | found | verdict |", "|---|---|---|"]
    for name, module in claims.items():
        if name in study["claims"]:
            finding = study["claims"][name]
            found = finding["effect"].replace("|", "/")
            lines.append(f"| {module.SENTENCE} | {found} | **{finding['verdict']}**: {finding['because']} |")
    return "\n".join(lines) + "\n"
