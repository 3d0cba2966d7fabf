"""Batches of several domains, and what D separate layers make of them, in float64."""

from typing import Any

import jax
import numpy as np

import jaxbn
import jaxbn.linen
import jaxbn.nnx
from tests import reference

NUM_DOMAINS, EXAMPLES, POSITIONS, FEATURES = 3, 12, 2, 4


def state(*, affine=True, count=False):
    """Parameters and statistics that differ between domains."""
    rng = np.random.default_rng(0)
    rows = (NUM_DOMAINS, FEATURES)
    params = {k: rng.normal(size=rows if affine else FEATURES).astype(np.float32) for k in ("scale", "bias")}
    stats = {"mean": rng.normal(size=rows).astype(np.float32), "var": np.exp(rng.normal(size=rows)).astype(np.float32)}
    if count:
        stats["count"] = np.arange(NUM_DOMAINS * FEATURES, dtype=np.int32).reshape(rows)
    return params, stats


def batch(seed=0):
    """Sorted, far from 0, with an outlier first: x, dy and a mask."""
    rng = np.random.default_rng(seed)
    x = 30 + 3 * np.sort(rng.normal(size=(EXAMPLES, POSITIONS, FEATURES)), 0)
    x[0] += 20
    mask = (np.arange(EXAMPLES) % 3 > 0).reshape(-1, 1, 1)
    return x.astype(np.float32), rng.normal(size=x.shape).astype(np.float32), mask


def row(tree, d):
    return {k: v[d] if np.ndim(v) > 1 else v for k, v in tree.items()}


def separate(params, stats, x, dy, domains, mask=None, chunk=None, momentum: Any = 0.9, unbiased=False):
    """What layers of their own give, each for its part of the batch: y, the state, dx, dscale and dbias."""
    y, dx = np.zeros(x.shape), np.zeros(x.shape)
    new = {k: np.array(v, np.float64) for k, v in stats.items()}
    dparams = {k: np.zeros(v.shape) for k, v in params.items()}
    size = len(x) // len(domains)
    batches = None if chunk is None else [range(i, i + chunk) for i in range(0, size, chunk)]
    for i, d in enumerate(domains):
        part = slice(i * size, (i + 1) * size)
        p, s, m = row(params, d), row(stats, d), None if mask is None else mask[part]
        y[part] = reference.train(p, s, x[part], mask=m, batches=batches)
        moments = reference.moments(x[part], mask=m)
        for k, v in reference.update(s, *moments, momentum=momentum, unbiased=unbiased).items():
            new[k][d] = v
        gradients = reference.gradients(p, s, x[part], dy[part], mask=m, batches=batches)
        dx[part] = gradients["x"]
        for k in dparams:
            dparams[k][d if params[k].ndim > 1 else ...] += gradients[k]
    return {"y": y, **new, "dx": dx, **{f"d{k}": v for k, v in dparams.items()}}


def found(params, stats, x, dy, domain, **options):
    """The same by jaxbn, the domain traced where it is an array."""

    @jax.jit
    def run(params, x, traced):
        def layer(params, x):
            d = domain if traced is None else traced
            return jaxbn.batch_norm(params, stats, x, use_running_average=False, domain=d, **options)

        y, vjp, new = jax.vjp(layer, params, x, has_aux=True)
        return y, new, vjp(dy)

    y, new, (dparams, dx) = run(params, x, domain if isinstance(domain, jax.Array) else None)
    return {"y": y, **new, "dx": dx, **{f"d{k}": v for k, v in dparams.items()}}


def close(got, want, atol=1e-5):
    assert set(got) == set(want)
    for name, value in want.items():
        scale = max(1.0, np.abs(value).max(initial=0))
        np.testing.assert_allclose(np.asarray(got[name], np.float64) / scale, value / scale, atol=atol, err_msg=name)


def of_linen(**fields):
    model = jaxbn.linen.BatchNorm(num_domains=NUM_DOMAINS, momentum=0.9, **fields)
    x, _, _ = batch()
    return model, model.init(jax.random.key(0), x, use_running_average=False, domain=0)
