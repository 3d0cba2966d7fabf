"""One training step of `jaxbn.batch_norm` with its gradients, the same in float64, and how far the two are apart."""

from typing import Any

import jax
import numpy as np

import jaxbn
from tests import reference


def step(params, stats, x, dy, **options) -> dict[str, Any]:
    """'y', the new 'mean' and 'var', and the gradients 'dx', 'dscale', 'dbias' of sum(y dy)."""

    def layer(params, x):
        return jaxbn.batch_norm(params, stats, x, use_running_average=False, **options)

    y, vjp, new = jax.vjp(layer, params, x, has_aux=True)
    dparams, dx = vjp(dy.astype(y.dtype))
    return {"y": y, **new, "dx": dx, **{f"d{name}": v for name, v in dparams.items()}}


def expected(
    params, stats, x, dy, *, axis: Any = -1, mask=None, momentum=0.99, epsilon=1e-5, unbiased=False, batches=None
) -> dict[str, tuple[np.ndarray, float]]:
    """The same in float64; with each value its unit, that of `largest`.

    Args:
      batches: index sets along the first reduction axis, each normalized by itself, as in `tests.reference`.
    """
    options: dict[str, Any] = {"axis": axis, "mask": mask, "epsilon": epsilon}
    y = reference.train(params, stats, x, batches=batches, **options)
    new = reference.update(stats, *reference.moments(x, axis=axis, mask=mask), momentum=momentum, unbiased=unbiased)
    gradients = reference.gradients(params, stats, x, reference.wide(dy), batches=batches, **options)
    weights = reference.cleaned(x, mask)[1]
    _, mean, var = reference.statistics(reference.cleaned(x, mask)[0], weights, stats, axis)
    return {
        "y": (y, largest(y)),
        **{name: (new[name], largest(new[name])) for name in ("mean", "var")},
        **units_of_gradients(gradients, params, x, dy, mean, var, axis=axis, epsilon=epsilon),
    }


def units_of_gradients(gradients, params, x, dy, mean, var, *, axis, epsilon) -> dict[str, tuple[np.ndarray, float]]:
    """'dx', 'dscale', 'dbias' with their units: those of the terms that they are sums of, for they may cancel."""
    rows, dy = reference.rows(x, axis), reference.wide(dy)
    steep = np.expand_dims(params.get("scale", np.ones(())) / np.sqrt(reference.wide(var) + epsilon), rows)
    found = {"dx": (gradients["x"], largest(gradients["x"], dy * steep))}
    normalized = reference.normalize({}, reference.cleaned(x, 0)[0], mean, var, axis=axis, epsilon=epsilon)
    for name, terms in (("scale", dy * normalized), ("bias", dy)):
        if name in params:
            walk = np.sqrt((np.abs(terms) ** 2).sum(rows))
            found[f"d{name}"] = gradients[name], largest(gradients[name], walk)
    return found


def largest(*values) -> float:
    """The largest finite absolute value, or 1 if that is larger."""
    return max(1.0, *(np.abs(v)[np.isfinite(v)].max(initial=0) for v in map(np.asarray, values)))


def error(got, want: np.ndarray, unit: float) -> float:
    """The largest, in that unit, where float64 is finite; infinite where a value is not finite or not there."""
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
        return np.inf
    finite = np.isfinite(want)
    difference = np.abs(reference.wide(got)[finite] - want[finite])
    return float(np.where(np.isfinite(difference), difference, np.inf).max(initial=0)) / unit


def assert_close(found, want, tolerance: float = 1e-5) -> None:
    """Each value of `want`, to that many units."""
    errors = {name: error(found[name], *value) for name, value in want.items()}
    wrong = {name: f"{e:.2g}" for name, e in errors.items() if not e <= tolerance}
    assert not wrong, f"error against float64, in units of the largest value: {wrong}, allowed {tolerance}"


def check_step(x, *, mask=None, axis: Any = -1, run=jax.jit, tolerance=1e-5, batches=None, stats=None, **options):
    """Runs a step on `x` with parameters and cotangents of its own, and compares everything.

    Args:
      run: makes a function of (params, stats, x, dy, mask) one that runs, as `jax.jit` does.
      stats: running statistics, NumPy; other than 0 and 1 where None.
    """
    rng = np.random.default_rng(0)
    features = tuple(n for a, n in enumerate(x.shape) if a not in reference.rows(x, axis))
    params = {name: (rng.normal(size=features) + k).astype(np.float32) for name, k in (("scale", 1), ("bias", 0))}
    if stats is None:
        stats = {"mean": rng.normal(size=features).astype(np.float32), "var": np.full(features, 2, np.float32)}
    dy = (np.round(32 * rng.normal(size=x.shape)) / 32).astype(np.float32)
    program = run(lambda params, stats, x, dy, mask: step(params, stats, x, dy, mask=mask, axis=axis, **options))
    found = program(params, stats, x, dy, mask)
    same = {k: v for k, v in options.items() if k in ("momentum", "epsilon", "unbiased")}
    with np.errstate(all="ignore"):
        want = expected(params, stats, x, dy, axis=axis, mask=mask, batches=batches, **same)
    assert_close(found, want, tolerance)
    return found
