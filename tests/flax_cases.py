"""Random batches that Flax's layers accept, and how they are run: one table, from which a case is drawn.

A `Case` holds plain values, so that its `repr` can be pasted: `check(Case(...))` of `tests.core.test_against_flax`
runs it again.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

LARGEST = 30_000
"""elements of a batch"""


class Case(NamedTuple):
    """One batch, one layer and one way to run it; the defaults are the plainest."""

    way: str = "jit"
    layer: str = "linen"
    shape: tuple[int, ...] = (4, 3)
    axis: Any = -1
    split: int = 0
    """the axis that is divided among devices or members, where the way divides one"""
    parts: int = 2
    """by how many; the size of that axis is a multiple"""
    dtype: str = "float32"
    mask: tuple[bool, ...] | None = None
    """for each axis of the mask, the last ones of x, whether it is as long as that of x, or 1"""
    density: float = 0.6
    """part of the mask that is True"""
    offset: float = 0.0
    """of the mean from 0, in standard deviations"""
    order: str = "random"
    """'random' rows, 'sorted' ones, 'outliers first' or 'constant first'"""
    running: str = "other"
    """statistics before the first step: 'cold' (0 and 1), 'warm' (near those of the batch), 'other'"""
    momentum: float = 0.9
    epsilon: float = 1e-5
    use_bias: bool = True
    use_scale: bool = True
    out: str | None = None
    """the field `dtype`"""
    param_dtype: str = "float32"
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    seed: int = 0

    @property
    def axes(self) -> tuple[int, ...]:
        """The feature axes, sorted and not negative."""
        axes = (self.axis,) if isinstance(self.axis, int) else self.axis
        return tuple(sorted(a % len(self.shape) for a in axes))

    @property
    def features(self) -> tuple[int, ...]:
        return tuple(self.shape[a] for a in self.axes)

    def __repr__(self):
        """What differs from the plainest case."""
        plain = Case()._asdict()
        return f"Case({', '.join(f'{k}={v!r}' for k, v in self._asdict().items() if v != plain[k])})"


SIZES = [1, 2, 3, 4, 5, 8, 0, 7, 16, 31, 127, 257, 4099]
TABLE: dict[str, list] = {
    "layer": ["linen", "linen", "linen", "nnx"],
    "parts": [2, 4, 8],
    "dtype": ["float32", "bfloat16", "float16", "complex64"],
    "density": [0.6, 0.2, 1.0, 0.0],
    "offset": [0.0, 10.0, 1000.0, -100.0],
    "order": ["random", "sorted", "outliers first", "constant first"],
    "running": ["other", "cold", "warm"],
    "momentum": [0.9, 0.99, 0.0, 1.0],
    "epsilon": [1e-5, 0.0, 1e-3, 0.5],
    "use_bias": [True, True, False],
    "use_scale": [True, True, False],
    "out": [None, None, "float32", "bfloat16", "float16", "complex64"],
    "param_dtype": ["float32", "float32", "bfloat16", "float16"],
    "use_fast_variance": [True, False],
    "force_float32_reductions": [True, True, False],
    "seed": list(range(1000)),
}
"""Field of a case -> the values that it takes; those that depend on the shape are drawn in `cases`."""


@st.composite
def cases(draw, way: str, *, divides: str = "", sizes=tuple(SIZES)) -> Case:
    """Any case of that way.

    Args:
      divides: 'rows' where the way divides a reduction axis, 'any' where it divides any, '' where none.
      sizes: of the axes.
    """
    values = {name: draw(st.sampled_from(column)) for name, column in TABLE.items()}
    rank = draw(st.sampled_from([2, 3, 4, 5] if divides else [1, 2, 3, 4, 5]))
    shape = [draw(st.sampled_from(sizes)) for _ in range(rank)]
    axis = _axis(draw, rank, several=values["layer"] == "linen", all_of_them=not divides)
    features = [a % rank for a in ((axis,) if isinstance(axis, int) else axis)]
    rows = [a for a in range(rank) if a not in features]
    split = draw(st.sampled_from(rows if divides == "rows" else list(range(rank)))) if divides else 0
    _shrink(shape, LARGEST // values["parts"] if divides else LARGEST)
    if divides:
        shape[split] *= values["parts"]
    mask = None
    if draw(st.booleans()):
        mask = tuple(draw(st.booleans()) for _ in range(draw(st.sampled_from([rank, rank, rank - 1]))))
    if values["dtype"] == "complex64" and 0 in shape:
        values["dtype"] = "float32"  # XLA's simplifier aborts in what Flax makes of an empty complex array
    if values["dtype"] == "complex64":
        values["out"] = None if values["out"] is None else "complex64"
    elif values["out"] == "complex64":
        values["out"] = None
    if values["layer"] == "nnx":
        values["force_float32_reductions"] = True
    return Case(way=way, shape=tuple(shape), axis=axis, split=split, mask=mask, **values)


def _axis(draw, rank: int, *, several: bool, all_of_them: bool):
    """An axis, or several in any order, counted from the front or the back; without `all_of_them` a row is left."""
    count = draw(st.integers(2, rank - (not all_of_them))) if several and rank > 2 and draw(st.booleans()) else 1
    chosen = draw(st.permutations(range(rank)))[:count]
    signed = tuple(a - rank * draw(st.booleans()) for a in chosen)
    if count > 1:
        return signed
    return draw(st.sampled_from([-1, signed[0]])) if all_of_them or rank > 1 else -1


def _shrink(shape: list[int], largest: int) -> None:
    """Makes the largest axes smaller until there are at most so many elements."""
    while math.prod(shape) > largest:
        shape[int(np.argmax(shape))] = 3 if max(shape) > 3 else 1


class Data(NamedTuple):
    """The arrays of a case, NumPy."""

    params: dict[str, np.ndarray]
    batch_stats: dict[str, np.ndarray]
    x: np.ndarray
    """[2, ...], one batch a step"""
    dy: np.ndarray
    """[2, ...], cotangents of the output; multiples of 1/32, so that no dtype rounds them"""
    mask: np.ndarray | None


def data(case: Case) -> Data:
    """The same arrays each time."""
    rng = np.random.default_rng(case.seed)
    dtype, features = jnp.dtype(case.dtype), case.features
    is_complex = jnp.issubdtype(dtype, jnp.complexfloating)

    def normal(*shape):
        return rng.normal(size=shape) + (1j * rng.normal(size=shape) if is_complex else 0)

    centre, deviation = case.offset * (1 + 0.1 * rng.random(features)), np.exp(rng.normal(size=features) / 4)
    rows = tuple(a for a in range(len(case.shape)) if a not in case.axes)
    x = normal(2, *case.shape)
    if rows and math.prod(case.shape):
        x = _ordered(x, rows[0] + 1, case.order)
    x = np.expand_dims(deviation, rows) * (x + np.expand_dims(centre, rows))
    kept = jnp.dtype(jnp.float32 if case.force_float32_reductions else case.param_dtype)
    mean, var = {
        "cold": (np.zeros(features), np.ones(features)),
        "warm": (deviation * (centre + rng.normal(size=features) / 10), deviation**2),
        "other": (3 * normal(*features), np.exp(rng.normal(size=features))),
    }[case.running]
    params = {
        name: (k + rng.normal(size=features) / 3).astype(jnp.dtype(case.param_dtype))
        for name, k, used in (("scale", 1, case.use_scale), ("bias", 0, case.use_bias))
        if used
    }
    mask = None
    if case.mask is not None:
        trailing = case.shape[len(case.shape) - len(case.mask) :]
        mask = rng.random([n if long else 1 for n, long in zip(trailing, case.mask, strict=True)]) < case.density
    stats = {"mean": mean.astype(np.complex64 if is_complex else kept), "var": var.astype(kept)}
    dy = np.round(32 * normal(2, *case.shape)) / 32
    return Data(params, stats, x.astype(dtype), dy.astype(np.complex64 if is_complex else np.float32), mask)


def _ordered(x: np.ndarray, axis: int, order: str) -> np.ndarray:
    if order == "sorted":
        return np.sort(x, axis)
    first = np.index_exp[:] * axis + (slice(0, max(1, x.shape[axis] // 16)),)
    if order == "outliers first":
        x[first] *= 30
    if order == "constant first":
        x[first] = 0
    return x
