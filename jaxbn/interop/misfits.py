"""A checkpoint that does not fit: the first few misfits, how many there are, and which names would fit."""

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxbn.interop.layout import Framework
from jaxbn.interop.names import TABLES, by_shape
from jaxbn.interop.slots import Opened

SHOWN = 8
"""how many misfits, and how many rows of a proposal, are shown"""


class Misfit(NamedTuple):
    """One entry that does not fit."""

    what: str
    """'missing', 'left over', 'of another shape', ..."""
    key: str
    """its name in the checkpoint"""
    path: str | None
    """that of the layer in the model; None if it has none"""
    text: str


def explain(
    framework: Framework,
    misfits: list[Misfit],
    opened: Opened,
    arrays: Mapping[str, np.ndarray],
    attempt: Callable[..., Any],
) -> str:
    """The message of the error.

    Args:
      attempt: a function (names, prefix) -> (values, misfits), with which proposals are tried.
    """
    numbers = ", ".join(f"{n} {what}" for what, n in Counter(m.what for m in misfits).items())
    lines = [f"  {m.what}: {m.text}" for m in misfits[:SHOWN]]
    if len(misfits) > SHOWN:
        lines.append(f"  ... and {len(misfits) - SHOWN} more")
    proposal = _proposal(framework, misfits, opened, arrays, attempt)
    return "\n".join(
        [
            f"`{framework.weights}` must fit the model, got weights of {framework.name} that do not; nothing was "
            f"imported ({numbers}):",
            *lines,
            *proposal,
        ]
    )


def _proposal(framework: Framework, misfits, opened: Opened, arrays, attempt) -> list[str]:
    def fits(names, prefix) -> bool:
        with contextlib.suppress(ValueError):
            return not attempt(names, prefix)[1]
        return False

    def leaves_others_only(prefix) -> bool:
        with contextlib.suppress(ValueError):
            return all(m.what == "left over" and not m.key.startswith(prefix) for m in attempt(None, prefix)[1])
        return False

    prefixes = {"", *_prefixes(misfits, arrays)}
    found = [f"prefix={p!r}" for p in sorted(prefixes) if p and fits(None, p)]
    partly = [] if found else [f"prefix={p!r}" for p in sorted(prefixes) if p and leaves_others_only(p)]
    if partly:
        return [f"  The whole model is there with {' or with '.join(partly)}: leave out the entries without it."]
    if framework.name == "PyTorch":
        found += [
            f"names=interop.{name}" + (f", prefix={p!r}" if p else "")
            for name, table in TABLES.items()
            for p in sorted({*prefixes, *_first_parts(arrays)})
            if fits(table, p)
        ]
    if found:
        return [f"  All of it fits with {' or with '.join(found)}."]
    return _by_shape(framework, misfits, opened, arrays, fits)


def _by_shape(framework: Framework, misfits, opened: Opened, arrays, fits) -> list[str]:
    ours, theirs = _shapes_of_model(opened, framework), _shapes(framework, arrays)
    missing = {m.path for m in misfits if m.what == "missing"}
    left = {m.key.rpartition(framework.separator)[0] for m in misfits if m.what == "left over"}
    guess = by_shape({p: ours[p] for p in ours if p in missing}, {n: theirs[n] for n in theirs if n in left})
    if not guess:
        return []
    rows = dict(list(guess.items())[:SHOWN])
    more = f", and {len(guess) - SHOWN} more rows" if len(guess) > SHOWN else ""
    whole = "Then all of it fits" if fits(guess, "") else f"{len(missing) - len(guess)} layers find no partner so"
    return [f"  By kind, shape and order it may be names={rows}{more}. {whole}; check it before you rely on it."]


def _prefixes(misfits: list[Misfit], arrays) -> set[str]:
    """The prefix in front of the names of entries that are missing."""
    keys = [m.key for m in misfits if m.what == "missing"][:1]
    return {name.removesuffix(key) for key in keys for name in arrays if name.endswith(f".{key}")}


def _first_parts(arrays) -> set[str]:
    return (
        {f"{name.partition('.')[0]}." for name in arrays} if len({n.partition(".")[0] for n in arrays}) == 1 else set()
    )


def _shapes(framework: Framework, arrays: Mapping[str, np.ndarray]) -> dict[str, object]:
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, array in arrays.items():
        name, _, leaf = key.rpartition(framework.separator)
        if not key.endswith(framework.ignored):
            layers.setdefault(name, {})[leaf] = tuple(sorted(array.shape))
    return {name: sorted(leaves.items()) for name, leaves in layers.items()}


def _shapes_of_model(opened: Opened, framework: Framework) -> dict[str, object]:
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for _, parts, leaf, value in opened.variables:
        path = "/".join(map(str, parts))
        norm = framework.norm_leaves if opened.kinds[path] in ("batch norm", "other") else {}
        if leaf != "count":
            layers.setdefault(path, {})[(framework.leaves | norm).get(leaf, leaf)] = tuple(sorted(value.shape))
    return {path: sorted(leaves.items()) for path, leaves in layers.items()}
