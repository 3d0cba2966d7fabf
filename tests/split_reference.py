"""What a split batch must give: each group's whole batch on one device, in float64 NumPy."""

import numpy as np

from tests.split_data import EPSILON, MOMENTUM, Data
from tests.splits import MEMBERS


def one_batch(x, mask, axis, params, stats, dy, dstats):
    """y, the new statistics and the gradients of sum(y dy) + sum(new_stats dstats), in closed form.

    References: Ioffe & Szegedy 2015, section 3, with weights, and with the cotangents of the running statistics.
    """
    axes = tuple(a % x.ndim for a in ((axis,) if isinstance(axis, int) else axis))
    rows = tuple(a for a in range(x.ndim) if a not in axes)
    vectors = (params["scale"], params["bias"], stats["mean"], stats["var"], dstats["mean"], dstats["var"])
    scale, bias, old_mean, old_var, dmean, dvar = (np.expand_dims(np.float64(v), rows) for v in vectors)
    w = np.broadcast_to(np.float64(1.0 if mask is None else mask), x.shape)
    dy = np.float64(dy)
    replaced = (w == 0) & ~np.isfinite(x)
    x = np.where(replaced, 0, np.float64(x))

    def total(v):
        return v.sum(rows, keepdims=True)

    n = total(w)
    some = n > 0
    m = total(w * x) / np.where(some, n, 1)
    v = total(w * (x - m) ** 2) / np.where(some, n, 1)
    new = {
        "mean": np.where(some, MOMENTUM * old_mean + (1 - MOMENTUM) * m, old_mean),
        "var": np.where(some, MOMENTUM * old_var + (1 - MOMENTUM) * v, old_var),
    }
    m, v = np.where(some, m, old_mean), np.where(some, v, old_var)
    inverse = 1 / np.sqrt(v + EPSILON)
    dm = (1 - MOMENTUM) * dmean - total(dy) * scale * inverse
    dv = (1 - MOMENTUM) * dvar - total(dy * (x - m)) * scale * inverse**3 / 2
    dx = dy * scale * inverse + w / np.where(some, n, 1) * (dm + 2 * (x - m) * dv)
    gradients = {"scale": total(dy * (x - m)) * inverse, "bias": total(dy)}

    def squeezed(tree):
        return {k: np.squeeze(value, rows) for k, value in tree.items()}

    y = (x - m) * inverse * scale + bias
    return y, squeezed(new), np.where(replaced, 0, dx), squeezed(gradients)


def expected(data: Data, args) -> dict[str, np.ndarray]:
    """Over all groups: y and dx whole, the statistics a row for each member, the gradients of scale and bias summed."""
    x, dy = data.x, args["dy"]
    y, dx = np.zeros(x.shape), np.zeros(x.shape)
    shape = args["stats"]["mean"].shape
    found = {k: np.zeros((MEMBERS, *shape)) for k in ("mean", "var")} | {k: np.zeros(shape) for k in ("scale", "bias")}
    size = len(x) // MEMBERS
    for group in data.groups or (tuple(range(MEMBERS)),):
        members = list(group)
        rows = np.concatenate([np.arange(i * size, (i + 1) * size) for i in members])
        dstats = {k: v[members].sum(0) for k, v in args["dstats"].items()}
        mask = None if data.mask is None else data.mask[rows]
        y[rows], new, dx[rows], gradients = one_batch(
            x[rows], mask, data.axis, args["params"], args["stats"], dy[rows], dstats
        )
        for k in ("mean", "var"):
            found[k][members] = new[k]
        for k in ("scale", "bias"):
            found[k] += gradients[k]
    return {"y": y, "dx": dx} | found
