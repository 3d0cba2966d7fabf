"""What a split batch must give: each group's whole batch on one device, in float64."""

import numpy as np

from tests import reference
from tests.split_data import EPSILON, MOMENTUM, Data
from tests.splits import MEMBERS


def expected(data: Data, args) -> dict[str, np.ndarray]:
    """Over all groups: y and dx whole, the statistics a row for each member, the gradients of scale and bias summed.

    The gradients are those of sum(y dy) + sum(new_stats dstats), where each member's new statistics count.
    """
    x, dy, params, stats = data.x, args["dy"], args["params"], args["stats"]
    shape = stats["mean"].shape
    found = {"y": np.zeros(x.shape), "dx": np.zeros(x.shape)}
    found |= {k: np.zeros((MEMBERS, *shape)) for k in ("mean", "var")} | {k: np.zeros(shape) for k in ("scale", "bias")}
    for group in data.groups or (tuple(range(MEMBERS)),):
        members = list(group)
        rows = np.arange(len(x)).reshape(MEMBERS, -1)[members].reshape(-1)
        options = {"axis": data.axis, "mask": None if data.mask is None else data.mask[rows]}
        found["y"][rows] = reference.train(params, stats, x[rows], epsilon=EPSILON, **options)
        new = reference.update(stats, *reference.moments(x[rows], **options), momentum=MOMENTUM)
        gradients = reference.gradients(
            params, stats, x[rows], dy[rows], epsilon=EPSILON, **options,
            **{"d" + k: (1 - MOMENTUM) * np.float64(v)[members].sum(0) for k, v in args["dstats"].items()},
        )  # fmt: skip
        found["dx"][rows] = gradients["x"]
        for k in ("mean", "var"):
            found[k][members] = new[k]
        for k in ("scale", "bias"):
            found[k] += gradients[k]
    return found
