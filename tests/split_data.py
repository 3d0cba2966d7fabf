"""The batches that are split: for each the float64 answer of the whole of it on one device."""

from typing import Any, NamedTuple

import numpy as np

from tests.splits import MEMBERS

MOMENTUM, EPSILON = 0.9, 1e-5


class Data(NamedTuple):
    """One batch and what is asked of it."""

    x: np.ndarray
    """[8, ...] float32; a member has 2 examples"""
    mask: np.ndarray | None = None
    axis: int | tuple[int, ...] = -1
    groups: tuple[tuple[int, ...], ...] | None = None

    def options(self) -> dict[str, Any]:
        """Static arguments of batch norm."""
        return {"axis": self.axis, "momentum": MOMENTUM, "epsilon": EPSILON}


def _data() -> dict[str, Data]:
    rng = np.random.default_rng(0)
    # Members differ in their means, so that a mean of means or of variances is wrong.
    x = rng.normal(size=(8, 4, 6)) + np.repeat(rng.normal(size=(4, 1, 6)), 2, 0)
    image = rng.normal(size=(8, 3, 4, 2)) + np.repeat(rng.normal(size=(4, 3, 1, 2)), 2, 0)
    x, image = x.astype(np.float32), image.astype(np.float32)
    mask = rng.random((8, 4, 1)) < np.repeat([0.9, 0.6, 0.3, 0.8], 2)[:, None, None]
    mask[4] = [[True], [False], [False], [False]]
    without_second = mask.copy()
    without_second[2:4] = False
    weights = (rng.random((8, 4, 6)) * (rng.random((8, 4, 6)) < 0.7)).astype(np.float32)
    weights[..., 2] = 0
    weights[2:4, :, 4] = 0
    poison = np.array([np.nan, np.inf, -np.inf], np.float32)[rng.integers(0, 3, x.shape)]
    return {
        "plain": Data(x),
        "offset of 100 deviations": Data(x + np.float32(100)),
        "mask": Data(x, mask),
        "mask, one member empty": Data(x, without_second),
        "mask, all members empty": Data(x, np.zeros_like(mask)),
        "mask over NaN and Inf": Data(np.where(mask, x, poison), mask),
        "weights per channel": Data(x, weights),
        "axis 1": Data(np.moveaxis(x, 2, 1), axis=1),
        "axes 1 and 3, mask": Data(image, mask[:, None], axis=(1, 3)),
        "groups": Data(x, np.ones_like(mask), groups=((0, 3), (1, 2))),
        "groups, mask": Data(x, mask, groups=((0, 3), (1, 2))),
        "groups, mask, one group empty": Data(
            x, np.repeat([True, False, False, True], 2)[:, None, None] & mask, groups=((0, 3), (1, 2))
        ),
    }


DATA = _data()


def arguments(data: Data) -> dict[str, Any]:
    """Parameters, statistics and cotangents for a batch, float32 arrays; `dstats` has a row for each member."""
    rng = np.random.default_rng(1)
    axes = (data.axis,) if isinstance(data.axis, int) else data.axis
    shape = tuple(data.x.shape[a] for a in axes)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    return {
        "params": {"scale": normal(*shape) + 2, "bias": normal(*shape)},
        "stats": {"mean": normal(*shape), "var": np.exp(normal(*shape))},
        "dy": normal(*data.x.shape),
        "dstats": {"mean": normal(MEMBERS, *shape), "var": normal(MEMBERS, *shape)},
    }
