"""The pieces of HTML that stand in files beside this one, with their blanks filled."""

import re
from pathlib import Path

HERE = Path(__file__).parent
MINUS = "\N{MINUS SIGN}"


def read(name: str) -> str:
    """The text of a file of this folder."""
    return (HERE / name).read_text().strip()


def fill(name: str, /, **values: object) -> str:
    """A file of this folder, each `{{blank}}` replaced by the value of that name.

    Raises:
      KeyError: a blank has no value.
    """
    return re.sub(r"\{\{(\w+)\}\}", lambda blank: str(values[blank[1]]), read(name))


def short(value: float, digits: int = 4) -> str:
    """A number as the page's scripts write it: no zeros at the end, a real minus sign."""
    return f"{value:.{digits}f}".rstrip("0").rstrip(".").replace("-", MINUS)


def unbroken(text: str) -> str:
    """Keeps 'mean ± interval unit' on one line."""
    return re.sub(r" (±|%|points) ?", lambda m: m[0].replace(" ", "\N{NO-BREAK SPACE}", 1), text).replace(
        "± ", "±\N{NO-BREAK SPACE}"
    )
