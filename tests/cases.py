"""A table of named batches, each with what batch norm is asked to do with it, and one program that does all of it."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxbn
from tests import reference

STEPS = 3


class Case(NamedTuple):
    """What to normalize, and how."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    mask: str | None = None
    """bool, weights, int, per_channel (with an empty channel) or lower_rank"""
    poison: bool = False
    """NaN and Inf stand under the mask"""
    keys: tuple[str, ...] = ("scale", "bias")
    residual: bool = False
    options: dict[str, Any] = {}  # noqa: RUF012
    """keyword arguments of `jaxbn.batch_norm`"""

    @property
    def x64(self):
        """Whether it needs float64, which JAX has on request."""
        return self.dtype in ("float64", "complex128")

    @property
    def axis(self):
        return self.options.get("axis", -1)


def half_life(count):
    """A momentum schedule."""
    return 1 - 0.5 ** (1 + count.astype(jnp.float32))


CASES = {
    "vector": Case((5,), options={"epsilon": 0.5}),
    "dense": Case((8, 3), options={"momentum": 0.9}),
    "images": Case((4, 3, 5, 2)),
    "channels first": Case((4, 3, 5, 2), options={"axis": 1, "momentum": 0.5}),
    "first axis": Case((3, 7), options={"axis": 0, "epsilon": 0.1}),
    "two axes": Case((4, 3, 2), options={"axis": (0, -1)}),
    "one example": Case((1, 3), options={"unbiased": True, "epsilon": 0.5}),
    "two passes": Case((6, 3), options={"use_fast_variance": False}),
    "no scale": Case((8, 3), keys=("bias",)),
    "no bias": Case((8, 3), keys=("scale",)),
    "no parameters": Case((8, 3), keys=()),
    "unbiased": Case((8, 3), options={"unbiased": True, "momentum": 0.0}),
    "frozen": Case((8, 3), options={"momentum": 1.0}),
    "cumulative": Case((8, 3), options={"momentum": None}),
    "schedule": Case((8, 3), options={"momentum": half_life}),
    "mask": Case((6, 4, 3), mask="bool", poison=True),
    "mask, first axis, two passes": Case(
        (3, 9), mask="bool", poison=True, options={"axis": 0, "use_fast_variance": False}
    ),
    "weights": Case((6, 4, 3), mask="weights", options={"unbiased": True}),
    "integer weights": Case((6, 3), mask="int", poison=True),
    "mask per channel": Case((6, 4, 3), mask="per_channel", poison=True),
    "mask of lower rank": Case((6, 4, 3), mask="lower_rank", poison=True),
    "residual": Case((6, 3), residual=True),
    "virtual batches": Case((6, 2, 3), options={"virtual_batch_size": 3}),
    "masked virtual batches": Case((6, 2, 3), mask="weights", options={"virtual_batch_size": 2}),
    "bfloat16": Case((16, 3), "bfloat16"),
    "float16": Case((16, 3), "float16", residual=True),
    "bfloat16, mask": Case((16, 2, 3), "bfloat16", mask="bool", poison=True),
    "bfloat16 to float32": Case((16, 3), "bfloat16", options={"dtype": np.dtype("float32")}),
    "float64": Case((6, 2, 3), "float64", mask="bool", poison=True, residual=True),
    "complex128": Case((8, 3), "complex128", mask="weights", options={"momentum": None}),
    "complex64": Case((8, 3), "complex64"),
    "complex64, mask, residual": Case((8, 2, 3), "complex64", mask="bool", poison=True, residual=True),
}


class Data(NamedTuple):
    """The arrays of a case, NumPy; a leading axis of STEPS where each step has its own."""

    params: dict
    batch_stats: dict
    x: np.ndarray
    mask: Any
    residual: np.ndarray | None
    dy: np.ndarray
    """cotangents of the output"""
    dstats: dict
    """cotangents of the new statistics"""


def normal(rng, shape, dtype):
    """Standard normal of that dtype; both parts where it is complex."""
    values = rng.normal(size=shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        values = values + 1j * rng.normal(size=shape)
    return values.astype(dtype)


def _mask(case: Case, rng) -> np.ndarray | None:
    axes = tuple(a for a in range(len(case.shape)) if a not in reference.rows(np.empty(case.shape), case.axis))
    per_example = tuple(1 if a in axes else n for a, n in enumerate(case.shape))
    if case.mask == "weights":
        return np.where(rng.random(per_example) < 0.3, 0, rng.uniform(0.5, 2, per_example)).astype(np.float32)
    if case.mask == "int":
        return rng.integers(0, 3, per_example)
    if case.mask == "per_channel":
        return (rng.random(case.shape) < 0.7) & (np.arange(case.shape[-1]) > 0)
    if case.mask == "lower_rank":
        return np.arange(case.shape[-2])[:, None] % 2 == 0
    return rng.random(per_example) < 0.6


def data(case: Case) -> Data:
    """The same each time: random rows, then sorted ones, then some with an outlier in front; statistics not 0 and 1."""
    rng = np.random.default_rng(0)
    dtype, shape = jnp.dtype(case.dtype), (STEPS, *case.shape)
    size = tuple(n for a, n in enumerate(case.shape) if a not in reference.rows(np.empty(case.shape), case.axis))
    wide = dtype if dtype.itemsize > 2 else jnp.dtype(np.float32)
    params, stats = jaxbn.init(size, param_dtype=wide, use_count=True)
    stats["mean"], stats["var"] = normal(rng, size, wide), np.exp(rng.normal(size=size)).astype(stats["var"].dtype)
    params = {k: normal(rng, size, wide) for k in params if k in case.keys}
    if not (case.options.get("momentum", 0) is None or callable(case.options.get("momentum"))):
        del stats["count"]
    x = (3 * normal(rng, shape, wide) + 2 * normal(rng, size, wide).reshape(
        [n if a not in reference.rows(np.empty(case.shape), case.axis) else 1 for a, n in enumerate(case.shape)]
    )).astype(dtype)  # fmt: skip
    for first in reference.rows(np.empty(case.shape), case.axis)[:1]:
        x[1] = np.sort(x[1], first)
        np.moveaxis(x[2], first, 0)[0] *= 8
    mask = None if case.mask is None else _mask(case, rng)
    if case.poison:
        bad = rng.choice([np.nan, np.inf, -np.inf, 7.0], case.shape)
        assert mask is not None
        x = np.where(np.broadcast_to(mask, case.shape) > 0, x, bad.astype(dtype))
    out = jnp.dtype(case.options.get("dtype", dtype))
    dstats = {"mean": normal(rng, size, wide), "var": rng.normal(size=size).astype(stats["var"].dtype)}
    if "count" in stats:
        dstats["count"] = np.zeros(stats["count"].shape, jax.dtypes.float0)
    return Data(
        params,
        jax.tree.map(np.asarray, stats),
        x,
        mask,
        normal(rng, shape, out) if case.residual else None,
        normal(rng, shape, out),
        dstats,
    )


class Found(NamedTuple):
    """What jaxbn made of it: all steps, and evaluation of the first batch after them."""

    y: Any
    batch_stats: dict
    """after each step"""
    gradients: dict
    """of each step: 'x', 'residual' and those of params"""
    evaluated: Any


@functools.cache
def found(name: str) -> Found:
    """The whole life of a layer in one program: `lax.scan` over steps of forward and backward pass, then evaluation."""
    case = CASES[name]
    with jax.enable_x64(case.x64):
        return _found(case, data(case))


def _found(case: Case, d: Data) -> Found:
    x = d.x

    @jax.jit
    def program(d: Data):
        def step(stats, inputs):
            x, residual, dy = inputs

            def layer(params, x, residual):
                return jaxbn.batch_norm(
                    params, stats, x, use_running_average=False, mask=d.mask, residual=residual, **case.options
                )

            (y, new), vjp = jax.vjp(layer, d.params, x, residual)
            params, dx, dresidual = vjp((dy, d.dstats))
            return new, (y, new, {**params, "x": dx, "residual": dresidual})

        stats, steps = jax.lax.scan(step, d.batch_stats, (d.x, d.residual, d.dy))
        options = {k: v for k, v in case.options.items() if k in ("axis", "epsilon", "dtype")}
        evaluated, same = jaxbn.batch_norm(
            d.params, stats, jnp.asarray(to_evaluate(x)), use_running_average=True, **options
        )
        assert same is stats
        y, states, gradients = steps
        return Found(y, states, gradients, evaluated)

    return jax.tree.map(np.asarray, program(jax.tree.map(jnp.asarray, d._replace(dstats={}))._replace(dstats=d.dstats)))


def to_evaluate(x):
    """The first batch, with 0 where it is not finite."""
    return reference.cleaned(x[0], 0)[0].astype(x.dtype)


@functools.cache
def expected(name: str) -> Found:
    """The same from the float64 reference."""
    case = CASES[name]
    with jax.enable_x64(case.x64):
        d = data(case)
    options = {"axis": case.axis, "epsilon": case.options.get("epsilon", 1e-5)}
    chunk = case.options.get("virtual_batch_size")
    batches = None if chunk is None else np.arange(case.shape[0]).reshape(-1, chunk).tolist()
    momentum, unbiased = case.options.get("momentum", 0.99), case.options.get("unbiased", False)
    stats, steps = d.batch_stats, []
    for i, x in enumerate(d.x):
        y = reference.train(d.params, stats, x, mask=d.mask, batches=batches, **options)
        y = y if d.residual is None else y + reference.wide(d.residual[i])
        count, mean, var = reference.moments(x, axis=case.axis, mask=d.mask)
        weight = reference.old_weight(stats, momentum)
        bessel = count / np.maximum(count - 1, 1) if unbiased else 1.0
        cotangents = {"dmean": (1 - weight) * d.dstats["mean"], "dvar": (1 - weight) * bessel * d.dstats["var"]}
        of_y = reference.gradients(d.params, stats, x, d.dy[i], mask=d.mask, batches=batches, **options)
        of_stats = reference.gradients(d.params, stats, x, 0 * d.dy[i], mask=d.mask, **options, **cotangents)
        stats = reference.update(stats, count, mean, var, momentum=momentum, unbiased=unbiased)
        gradients = {k: of_y[k] for k in d.params} | {"x": of_y["x"] + of_stats["x"]}
        steps.append((y, stats, gradients | ({} if d.residual is None else {"residual": d.dy[i]})))
    y, states, gradients = jax.tree.map(lambda *values: np.stack(values), *steps)
    return Found(
        y, states, gradients, reference.normalize(d.params, to_evaluate(d.x), stats["mean"], stats["var"], **options)
    )
