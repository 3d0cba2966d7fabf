"""Batch norm in float64 NumPy, slow and obvious, from the formulas of the papers: the only oracle.

Everything is computed in float64 (complex128) with the channels kept as axes of the input, so that nothing needs a
reshape: a statistic is an array of the rank of `x` with size 1 on every reduction axis, until it is returned as [C].

References:
  Ioffe & Szegedy 2015, "Batch normalization", algorithms 1 and 2, and section 3 for the derivative.
"""

from typing import Any

import numpy as np


def wide(x):
    """float64 or complex128."""
    x = np.asarray(x)
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def rows(x, axis) -> tuple[int, ...]:
    """The reduction axes: all that are not feature axes."""
    axes = (axis,) if isinstance(axis, int) else axis
    return tuple(a for a in range(np.ndim(x)) if a not in [b % np.ndim(x) for b in axes])


def cleaned(x, mask):
    """`x` with 0 in place of what is both masked out and not finite, and the weights, of the shape of x."""
    x = wide(x)
    weights = np.broadcast_to(1.0 if mask is None else np.asarray(mask).astype(np.float64), x.shape)
    return np.where((weights == 0) & ~np.isfinite(x), 0, x), weights


def moments(x, *, axis=-1, mask=None):
    """count, mean and biased variance, each [C]; all three are 0 where there is no example."""
    reduced = rows(x, axis)
    x, weights = cleaned(x, mask)
    count = weights.sum(reduced, keepdims=True)
    divisor = np.where(count == 0, 1, count)
    mean = (weights * x).sum(reduced, keepdims=True) / divisor
    var = (weights * np.abs(x - mean) ** 2).sum(reduced, keepdims=True) / divisor
    return tuple(np.squeeze(v, reduced) for v in (count, mean, var))


def normalize(params, x, mean, var, *, axis=-1, epsilon=1e-5):
    """(x - mean) / sqrt(var + epsilon) * scale + bias."""
    expanded = [np.expand_dims(wide(v), rows(x, axis)) for v in (mean, var, *_scale_and_bias(params, mean))]
    mean, var, scale, bias = expanded
    return (wide(x) - mean) / np.sqrt(var + epsilon) * scale + bias


def _scale_and_bias(params, like):
    return params.get("scale", np.ones(np.shape(like))), params.get("bias", np.zeros(np.shape(like)))


def _batches(x, axis, mask, batches):
    """Index, input and weights of each batch: of index set i along the first reduction axis, or of all."""
    x, weights = cleaned(x, mask)
    if batches is None:
        yield ..., x, weights
    for members in batches or ():
        index = tuple(list(members) if a == rows(x, axis)[0] else slice(None) for a in range(x.ndim))
        yield index, x[index], weights[index]


def statistics(x, weights, batch_stats, axis):
    """count, mean and var with which a batch is normalized: its own, or the running ones where it has no example."""
    count, mean, var = moments(x, axis=axis, mask=weights)
    return count, np.where(count == 0, batch_stats["mean"], mean), np.where(count == 0, batch_stats["var"], var)


def train(params, batch_stats, x, *, axis=-1, mask=None, epsilon=1e-5, batches=None):
    """The output in training: each batch by its own statistics.

    Args:
      batches: index sets along the first reduction axis, each of which is normalized by itself (groups of devices,
        virtual batches); all of `x` where None.
    """
    y = np.zeros(x.shape, wide(x).dtype)
    for index, part, weights in _batches(x, axis, mask, batches):
        _, mean, var = statistics(part, weights, batch_stats, axis)
        y[index] = normalize(params, part, mean, var, axis=axis, epsilon=epsilon)
    return y


def old_weight(batch_stats, momentum) -> Any:
    """The weight of the old statistics: None is the cumulative average, a callable is called with the count."""
    if momentum is None:
        return batch_stats["count"] / (batch_stats["count"] + 1)
    return momentum(batch_stats["count"]) if callable(momentum) else momentum


def update(batch_stats, count, mean, var, *, momentum=0.99, unbiased=False):
    """The new running statistics, momentum * old + (1 - momentum) * new, in channels that are finite and not empty."""
    usable = (count > 0) & np.isfinite(mean) & np.isfinite(var)
    if unbiased:
        var = var * count / np.maximum(count - 1, 1)
    weight = old_weight(batch_stats, momentum)
    new = {
        name: np.where(usable, weight * wide(batch_stats[name]) + (1 - weight) * value, wide(batch_stats[name]))
        for name, value in (("mean", mean), ("var", var))
    }
    if "count" in batch_stats:
        new["count"] = batch_stats["count"] + (usable if np.ndim(batch_stats["count"]) else usable.any())
    return new


def gradients(params, batch_stats, x, dy, *, axis=-1, mask=None, epsilon=1e-5, batches=None, dmean=0.0, dvar=0.0):
    """dx, dscale and dbias of sum(y dy) + sum(mean dmean) + sum(var dvar).

    Ioffe & Szegedy 2015, section 3, with weights, and with cotangents of the moments.

    Args:
      dy: the cotangent of y, of the shape of x, complex where y is (as JAX has it: not conjugated).
      dmean, dvar: [C], those of the moments of all of `x` (which is one batch then: `batches` is None).

    Returns:
      {'x': of the shape of x, 'scale': [C], 'bias': [C]}.
    """
    scale, _ = _scale_and_bias(params, batch_stats["mean"])
    reduced = rows(x, axis)
    dx = np.zeros(x.shape, wide(x).dtype)
    dscale, dbias = 0, 0
    scale, dmean, dvar = (np.expand_dims(np.broadcast_to(wide(v), scale.shape), reduced) for v in (scale, dmean, dvar))
    for index, part, weights in _batches(x, axis, mask, batches):
        g = wide(dy)[index]
        count, mean, var = (np.expand_dims(v, reduced) for v in statistics(part, weights, batch_stats, axis))
        centred, inverse = part - mean, 1 / np.sqrt(var + epsilon)
        # Of the statistics of this batch, through its output and by themselves.
        of_mean = dmean - (g * scale * inverse).sum(reduced, keepdims=True)
        of_var = dvar - np.real(g * scale * centred).sum(reduced, keepdims=True) * inverse**3 / 2
        of_each = weights / np.where(count == 0, 1, count)
        dx[index] = g * scale * inverse + of_each * (of_mean + 2 * np.conj(centred) * of_var)
        dscale = dscale + (g * centred * inverse).sum(reduced)
        dbias = dbias + g.sum(reduced)
    # A real scale or bias of a complex x moves along the real axis.
    real = {name: np.isrealobj(params.get(name, 0.0)) for name in ("scale", "bias")}
    replaced = (cleaned(x, mask)[1] == 0) & ~np.isfinite(wide(x))
    return {
        "x": np.where(replaced, 0, dx),
        "scale": np.real(dscale) if real["scale"] else dscale,
        "bias": np.real(dbias) if real["bias"] else dbias,
    }
