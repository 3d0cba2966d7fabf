"""Wherever Flax's layers run, ours run, and lie no further from float64 than theirs, or than 2e-5.

What is random is drawn from the table of `tests.flax_cases`; the ways of running are those of `tests.flax_ways`. A
failure ends with a line to paste.
"""

import warnings
import zlib
from typing import Any

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, reject, seed, settings

import jaxbn.linen
import jaxbn.nnx
from tests import reference
from tests.flax_cases import SIZES, Case, Data, cases, data
from tests.flax_ways import WAYS, run

THEIRS: dict[str, Any] = {"linen": flax.linen.BatchNorm, "nnx": flax.nnx.BatchNorm}
OURS: dict[str, Any] = {"linen": jaxbn.linen.BatchNorm, "nnx": jaxbn.nnx.BatchNorm}


def expected(case: Case, d: Data) -> dict[str, tuple[np.ndarray, float]]:
    """Each value in float64, and its unit: the largest value, or that of the terms that it is a sum of."""
    options: dict[str, Any] = {"axis": case.axes, "epsilon": case.epsilon}
    found: dict[str, list] = {}

    def add(name, value, *terms):
        finite = [np.abs(v)[np.isfinite(v)].max(initial=0) for v in (np.asarray(value), *map(np.asarray, terms))]
        found.setdefault(name, []).append((value, max(1.0, *finite)))

    def add_gradients(prefix, gradients, x, dy, mean, var):
        rows = reference.rows(x, case.axes)
        steep = np.expand_dims(d.params.get("scale", np.ones(())) / np.sqrt(reference.wide(var) + case.epsilon), rows)
        add(f"{prefix}dx", gradients["x"], dy * steep)
        ones = {"scale": np.ones(case.features)}
        plain = reference.normalize(ones, x, mean, var, **options)
        for name, terms in (("scale", dy * plain), ("bias", reference.wide(dy))):
            if name in d.params:
                add(f"{prefix}d{name}", gradients[name], np.sqrt((np.abs(terms) ** 2).sum(rows)))

    stats = d.batch_stats
    for x, dy in zip(d.x, reference.wide(d.dy), strict=True):
        count, mean, var = reference.moments(x, axis=case.axes, mask=d.mask)
        _, of_mean, of_var = reference.statistics(x, reference.cleaned(x, d.mask)[1], stats, case.axes)
        add("y", reference.train(d.params, stats, x, mask=d.mask, **options))
        gradients = reference.gradients(d.params, stats, x, dy, mask=d.mask, **options)
        add_gradients("", gradients, x, dy, of_mean, of_var)
        stats = reference.update(stats, count, mean, var, momentum=case.momentum)
    found = {k: [(np.stack([a[0], b[0]]), max(a[1], b[1]))] for k, (a, b) in found.items()}
    for name in ("mean", "var"):
        add(name, stats[name])
    mean, var = d.batch_stats["mean"], d.batch_stats["var"]
    x, dy = d.x[0], reference.wide(d.dy[0])
    add("evaluated", reference.normalize(d.params, x, mean, var, **options))
    empty = np.zeros((1,) * x.ndim)  # without an example: normalized with the running statistics
    gradients = reference.gradients(d.params, d.batch_stats, x, dy, mask=empty, **options)
    add_gradients("evaluated ", gradients, x, dy, mean, var)
    return {name: values[0] for name, values in found.items()}


def error(got: np.ndarray, want: np.ndarray, unit: float) -> float:
    """The largest, in that unit, where float64 is finite; infinite where a value is not finite or not there."""
    if got.shape != want.shape:
        return np.inf
    finite = np.isfinite(want)
    difference = np.abs(reference.wide(got)[finite] - want[finite])
    return float(np.where(np.isfinite(difference), difference, np.inf).max(initial=0)) / unit


def check(case: Case) -> bool:
    """Runs both; False where Flax's layer does not run.

    Flax runs under standard dtype promotion, ours under the strict one that tests have.
    """
    d = data(case)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                theirs = run(THEIRS[case.layer], case, d)
        except Exception:
            return False
        paste = f"\n\nimport tests.conftest; from tests.core.test_against_flax import *; check({case!r})"
        try:
            ours = run(OURS[case.layer], case, d)
        except Exception as problem:
            what = f"Flax runs, ours does not: {type(problem).__name__}: {problem}"
            raise AssertionError(what[:600] + paste) from problem
        wrong = []
        for name, (want, unit) in expected(case, d).items():
            rounding = max(2e-5, 0.6 * float(jnp.finfo(ours[name].dtype).eps))
            found, flax_error = error(ours[name], want, unit), error(theirs[name], want, unit)
            if not found <= (max(flax_error, rounding) if np.isfinite(flax_error) else rounding):
                wrong.append(f"{name}: {found:.2g} of {unit:.3g}, Flax {flax_error:.2g}")
            if name in ("y", "evaluated") and ours[name].dtype != theirs[name].dtype:
                wrong.append(f"{name}: {ours[name].dtype}, Flax {theirs[name].dtype}")
    assert not wrong, "error against float64: " + "; ".join(wrong) + paste
    return True


def check_many(way: str, examples: int, sizes, phases) -> None:
    """As many cases of one way as that, the same each time."""

    @seed(zlib.crc32(way.encode()))
    @settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, phases=phases,
        suppress_health_check=list(HealthCheck), print_blob=False,
    )  # fmt: skip
    @given(cases(way, divides=WAYS[way].divides, sizes=sizes))
    def run_cases(case):
        if not check(case):
            reject()

    run_cases()


@pytest.mark.parametrize("way", WAYS)
def test_flax_is_matched(way):
    check_many(way, 2 if WAYS[way].slow else 4, (3, 4, 1, 7, 0, 16), (Phase.generate,))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_flax_is_matched_in_many_cases_of_every_size(way):
    check_many(way, 60, SIZES, (Phase.generate, Phase.shrink))
