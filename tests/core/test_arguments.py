"""A wrong argument of any public function is an error that names it and says what came; a right one runs.

    python -m tests.core.test_arguments

prints how many calls are clear (such an error), unclear (another one) and silent (none), and lists the last two.
"""

import functools
import inspect
import sys
import warnings
from collections import Counter
from collections.abc import Callable

import jax
import numpy as np
import pytest

import jaxbn
import jaxbn.linen
import jaxbn.nnx
import jaxbn.testing
from jaxbn import interop
from tests.argument_calls import Row
from tests.argument_kinds import KINDS, Traced
from tests.argument_rows import ROWS

CHECKED = [(row, argument) for row in ROWS for argument in row.kinds]
EXEMPT = {
    "jaxbn.LayerSummary": "what a function returns",
    "jaxbn.Summary": "what a function returns",
    "jaxbn.Moments": "a plain tuple",
    "jaxbn.save_only_moments": "called by JAX",
    "jaxbn.nnx.BatchMoments": "a type of variables",
    "jaxbn.interop.AfterFlatten": "a plain tuple, checked where it is used",
    "jaxbn.interop.ConvTranspose": "a plain tuple, checked where it is used",
    "jaxbn.interop.Depthwise": "a plain tuple, checked where it is used",
}
"""Public names that check nothing, and why."""
OF_FLAX = {"rngs", "bias_init", "scale_init", "bias_metadata", "scale_metadata", "promote_dtype", "parent", "name"}
"""Arguments that Flax reads, or that are callables of the user."""


def call(row: Row, argument: str, value):
    """The function with that value, under `jit` where it is to be traced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if isinstance(value, Traced):
            return jax.jit(lambda v: row.call(**{**row.arguments, argument: v}))(value.value)
        return row.call(**{**row.arguments, argument: value})


def outcome(row: Row, argument: str, value) -> str:
    """'clear', 'unclear: ...' or 'silent', as the call with that value ends."""
    try:
        call(row, argument, value)
    except (ValueError, TypeError) as problem:
        text = str(problem)
        # `params['scale']` names `params` too.
        if any(f"`{argument}{end}" in text for end in "`[.(") and "got " in text.lower():
            return "clear"
        return f"unclear: {type(problem).__name__}: {text.splitlines()[0] if text else ''}"[:200]
    except Exception as problem:
        return f"unclear: {type(problem).__name__}: {problem}"[:200]
    return "silent"


@functools.cache
def outcomes(index: int) -> list[tuple[str, str]]:
    """The value and the outcome of each wrong one."""
    row, argument = CHECKED[index]
    return [(shown(v), outcome(row, argument, v)) for v in KINDS[row.kinds[argument]].wrong]


def shown(value) -> str:
    if isinstance(value, np.ndarray | jax.Array):
        return f"{value.dtype}{list(value.shape)}"
    if inspect.isfunction(value):
        return f"{value.__name__} of line {value.__code__.co_firstlineno} of {value.__code__.co_filename}"
    return " ".join(repr(value).split())[:80]


def name_of(row_and_argument) -> str:
    row, argument = row_and_argument
    return f"{row.name}: {argument}"


@pytest.mark.parametrize("index", range(len(CHECKED)), ids=map(name_of, CHECKED))
def test_a_wrong_argument_is_named_and_shown(index):
    wrong = [f"{value}: {result}" for value, result in outcomes(index) if result != "clear"]
    assert not wrong, "\n".join([f"{len(wrong)} of {len(outcomes(index))} values are not told clearly:", *wrong])


@pytest.mark.parametrize(("row", "argument"), CHECKED, ids=map(name_of, CHECKED))
def test_a_right_argument_runs(row, argument):
    """The last of its values: the first ones are often what stands there by default."""
    check_that_they_run(row, argument, KINDS[row.kinds[argument]].right[-1:])


@pytest.mark.exhaustive  # 20 seconds, of compilers
@pytest.mark.parametrize(("row", "argument"), CHECKED, ids=map(name_of, CHECKED))
def test_every_right_argument_runs(row, argument):
    check_that_they_run(row, argument, KINDS[row.kinds[argument]].right[:-1])


def check_that_they_run(row: Row, argument: str, values: list) -> None:
    for value in values:
        try:
            call(row, argument, value)
        except Exception as problem:
            raise AssertionError(f"{shown(value)}: {type(problem).__name__}: {problem}"[:500]) from problem


def public() -> dict[str, Callable]:
    """Every public name that can be called."""
    found = {f"jaxbn.{name}": getattr(jaxbn, name) for name in jaxbn.__all__}
    found |= {f"jaxbn.interop.{name}": getattr(interop, name) for name in interop.__all__}
    for module in (jaxbn.linen, jaxbn.nnx, jaxbn.testing):
        mine = inspect.getmembers(module, lambda v: callable(v) and getattr(v, "__module__", "").startswith("jaxbn"))
        found |= {
            f"{module.__name__}.{name}": v
            for name, v in mine
            if not name.startswith("_") and v.__module__ == module.__name__
        }
    return {name: v for name, v in found.items() if callable(v)}


def test_every_public_function_has_a_row():
    rows = {row.name.split(" ")[0] for row in ROWS}
    errors = {name for name, v in public().items() if isinstance(v, type) and issubclass(v, Exception)}
    assert not set(public()) - rows - set(EXEMPT) - errors


def test_every_argument_has_a_kind():
    kinds: dict[str, set[str]] = {}
    for row in ROWS:
        kinds.setdefault(row.name.split(" ")[0], set()).update(row.kinds)
    missing = {}
    for name, value in public().items():
        if name in kinds:
            parameters = inspect.signature(value).parameters.values()
            own = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
            missing[name] = own - kinds[name] - OF_FLAX
    missing["jaxbn.linen.BatchNorm"] -= {"use_running_average"}  # None in one place where it is given in the other
    assert not {name: arguments for name, arguments in missing.items() if arguments}


def main() -> None:
    """Prints the counts and the calls that are not clear."""
    counts = Counter()
    for index, row_and_argument in enumerate(CHECKED):
        for value, result in outcomes(index):
            counts[result.partition(":")[0]] += 1
            if result != "clear":
                print(f"{name_of(row_and_argument)} = {value}: {result}")
    failed = 0
    for row, argument in CHECKED:
        for value in KINDS[row.kinds[argument]].right:
            try:
                call(row, argument, value)
            except Exception as problem:
                failed += 1
                print(
                    f"{row.name}: {argument} = {shown(value)} is right, but {type(problem).__name__}: {problem}"[:250]
                )
    print(f"{sum(counts.values())} wrong calls: {dict(counts)}; right calls that fail: {failed}")


if __name__ == "__main__":
    sys.exit(main())
