"""A claim's figures as SVG that goes into the page: in the page's colours, without a word to anything outside it."""

import io
import re
from pathlib import Path
from types import ModuleType

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image

from claims.claim import Results
from claims.drawing import COLOURS, INK, STYLE

VARIABLES = {colour: f"var(--{norm})" for norm, colour in COLOURS.items()}
VARIABLES |= {INK: "var(--ink)", "#ffffff": "var(--paper)", "#cccccc": "var(--line)", "#000000": "var(--ink)"}


def drawn(claim: ModuleType, results: Results) -> list[Figure]:
    """The panels of a claim."""
    with mpl.rc_context(STYLE):
        return claim.draw(results)


def inline(figure: Figure, name: str) -> str:
    """One `<svg>`: the same figure gives the same text; ids are its own on the page."""
    with mpl.rc_context(STYLE), io.StringIO() as file:
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    text = text.replace("<svg", '<svg aria-hidden="true"', 1)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(f": {colour}", f": {variable}")
    return text.strip()


def save(figures: list[Figure], path: Path, columns: int = 2) -> None:
    """The panels as one PNG file, side by side and below each other."""
    panels = []
    with mpl.rc_context(STYLE):
        for figure in figures:
            file = io.BytesIO()
            figure.savefig(file, format="png", transparent=False, facecolor="white", metadata={"Software": None})
            panels.append(Image.open(file))
    width, height = (max(panel.size[i] for panel in panels) for i in (0, 1))
    rows = -(-len(panels) // columns)
    whole = Image.new("RGB", (width * min(columns, len(panels)), height * rows), "white")
    for i, panel in enumerate(panels):
        whole.paste(panel, (width * (i % columns), height * (i // columns)))
    whole.save(path)
