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
from tests import oracle, reference
from tests.flax_cases import SIZES, Case, Data, cases, data
from tests.flax_ways import WAYS, run

THEIRS: dict[str, Any] = {"linen": flax.linen.BatchNorm, "nnx": flax.nnx.BatchNorm}
OURS: dict[str, Any] = {"linen": jaxbn.linen.BatchNorm, "nnx": jaxbn.nnx.BatchNorm}


def expected(case: Case, d: Data) -> dict[str, tuple[np.ndarray, float]]:
    """What `tests.flax_layers.life` gives, in float64, each with its unit (see `tests.oracle`)."""
    options: dict[str, Any] = {"axis": case.axes, "epsilon": case.epsilon}
    stats, steps = d.batch_stats, []
    for x, dy in zip(d.x, d.dy, strict=True):
        steps.append(oracle.expected(d.params, stats, x, dy, mask=d.mask, momentum=case.momentum, **options))
        stats = {name: steps[-1].pop(name)[0] for name in ("mean", "var")}
    found = {
        k: (np.stack([a[0], b[0]]), max(a[1], b[1]))
        for (k, a), b in zip(steps[0].items(), steps[1].values(), strict=True)
    }
    found |= {name: (v, oracle.largest(v)) for name, v in stats.items()}
    x, dy, mean, var = d.x[0], d.dy[0], *d.batch_stats.values()
    evaluated = reference.normalize(d.params, x, mean, var, **options)
    found["evaluated"] = evaluated, oracle.largest(evaluated)
    no_example = np.zeros((1,) * x.ndim)  # normalized with the running statistics
    gradients = reference.gradients(d.params, d.batch_stats, x, reference.wide(dy), mask=no_example, **options)
    of_evaluation = oracle.units_of_gradients(gradients, d.params, x, dy, mean, var, **options)
    return found | {f"evaluated {name}": v for name, v in of_evaluation.items()}


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
            found, flax_error = (oracle.error(v[name], want, unit) for v in (ours, theirs))
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


@pytest.mark.exhaustive
@pytest.mark.parametrize("way", WAYS)
def test_flax_is_matched_in_many_cases_of_every_size(way):
    check_many(way, 60, SIZES, (Phase.generate, Phase.shrink))
