"""What a person could pass for an argument: for each kind of argument, values that are wrong and values that are right.

The batch is X [4, 3] float32 throughout, three features.
"""

import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxbn

X = np.arange(12, dtype=np.float32).reshape(4, 3)
VECTOR = np.ones(3, np.float32)
KEYS = jax.random.split(jax.random.key(0), 3)
PARAMS = {"scale": VECTOR, "bias": VECTOR}
STATS = {"mean": 0 * VECTOR, "var": VECTOR}
COUNTED = {**STATS, "count": np.zeros(3, np.int32)}
BY_DOMAIN = {"mean": np.zeros((2, 3), np.float32), "var": np.ones((2, 3), np.float32)}
NAN, INF = float("nan"), float("inf")
MOMENTS = jaxbn.Moments(jnp.float32(4), jnp.asarray(VECTOR), jnp.asarray(VECTOR))


class Traced(NamedTuple):
    """Stands for a tracer of that value: the call is made under `jax.jit`."""

    value: Any


class Kind(NamedTuple):
    """Values of one kind of argument."""

    wrong: list
    right: list = []  # noqa: RUF012


def nothing(*_):
    """A callable that returns None."""


JUNK: list = ["x", 3, 1.5, None, [1, 2], (), {}, object(), np.tanh, nothing]
"""What is wrong for every argument that is no number, string, sequence, mapping or callable."""


def junk(*without) -> list:
    """All of it but values of these types."""
    return [v for v in JUNK if not (isinstance(v, tuple(without)) or (callable(v) and "callable" in without))]


FLAG = Kind(
    ["yes", "", None, 0, 1, 0.0, [], [True], np.ones(3), np.ones(3, bool), jnp.tanh, Traced(True)], [True, False]
)
CALLABLE = Kind(junk(types.FunctionType, np.ufunc))
MODEL = Kind([*junk(), nothing, np.ones(3), [{"params": {}}]])
NUMBER = ["1e-5", None, [1e-5], np.ones(3, np.float32), NAN, INF, -INF, True, 1j, {}, np.tanh, Traced(1e-5)]

KINDS: dict[str, Kind] = {
    "flag": FLAG,
    "choice": Kind(
        [*FLAG.wrong[:-1], jnp.ones(3, bool), Traced(X), Traced(1)], [True, False, jnp.asarray(True), Traced(True)]
    ),
    "limit of r": Kind(
        [*NUMBER[:-1], 0.5, 0, -1, nothing, lambda: 2.0, lambda count: 0.5], [1, 3.0, lambda count: 2.0]
    ),
    "limit of d": Kind([*NUMBER[:-1], -0.5, -1, nothing, lambda: 2.0, lambda count: -0.5], [0, 5.0, lambda count: 2.0]),
    "renorm": Kind([*junk(type(None)), True, 3.0, (3.0, 5.0), {"r_max": 3.0}, jaxbn.Renorm],
        [None, jaxbn.Renorm(), jaxbn.Renorm(1, 0)]),
    "domain of one set": Kind(["a", 0, 1, (0, 1), 1.5, np.ones(3), {}, nothing, jnp.tanh, Traced(0)], [None]),
    "domain": Kind(
        [
            "a", b"a", 2, -1, 1.0, True, NAN, 1j, {}, {0}, object(), nothing, np.tanh, (), (0, 0), (0, 2),
            (0, -1), (0, 1.0),
            ("a",), (True, False), [[0], [1]], np.ones(2, int), np.float32(1), np.int32, Traced(X), Traced(1.0),
            Traced(True), None,
        ],
        [0, 1, np.int64(1), np.array(1), jnp.asarray(0), Traced(1), Traced(7), (0,), (1, 0), [0, 1]],
    ),
    "domain to select": Kind(
        ["a", 2, -1, 1.0, True, None, NAN, {}, (0, 1), nothing, np.tanh, np.ones(2, int), Traced(0)],
        [0, 1, np.int32(1)],
    ),
    "batch_stats of domains": Kind(
        [
            None, 3, "a", STATS, {}, COUNTED, {"mean": X, "var": X[:2]}, {**BY_DOMAIN, "count": np.zeros(3, np.int32)},
            {**BY_DOMAIN, "count": np.int32(0)}, {"mean": np.zeros((0, 3)), "var": np.ones((0, 3))},
        ],
        [BY_DOMAIN, {**BY_DOMAIN, "count": np.zeros((2, 3), np.int32)}],
    ),
    "num_domains": Kind(["2", 0, -1, 2.0, True, [2], (2,), {}, NAN, nothing, np.tanh, int], [None, 1, 2, np.int64(2)]),
    "number of domains": Kind(["2", 0, -1, 2.0, True, None, [2], (2,), {}, NAN, nothing, np.tanh, int],
        [1, 2, np.int64(2)]),
    "num_domains, without a domain": Kind(["2", 0, -1, 2.0, 2, True, [2], {}, NAN, nothing], [None]),
    "layers": Kind([None, 3, 1.5, [3], {}, object(), nothing, np.ones(3), "encoder/*", []], ["*", ["*"], ("a", "*")]),
    "num_feature_axes": Kind(["1", 0, -1, 1.0, True, None, [1], {}, NAN, nothing, int, np.int32], [1]),
    "flag that must be False": Kind([*FLAG.wrong, True], [False]),
    "flag that must be True": Kind([*FLAG.wrong, False], [True]),
    "epsilon": Kind([*NUMBER, -1e-5, -1], [0, 0.0, 1, 1e-5, np.float32(1e-3), np.float64(1e-3)]),
    "momentum": Kind(
        [
            "0.9", [0.9], {}, np.ones(3, np.float32), NAN, INF, -0.1, 1.1, 2, True, 1j, np.complex64(0.5), Traced(X),
            Traced(True), Traced(1), np.tanh,
        ],
        [0, 1, 0.9, np.float32(0.9), jnp.float32(0.9), Traced(0.9)],
    ),
    "momentum, counted": Kind(
        [
            lambda count: 2.0, lambda count: NAN, lambda count: "x", lambda count: None, lambda: 0.5,
            lambda count: jnp.zeros(2), lambda count: jnp.zeros(3), lambda count: 1j,
        ],
        [None, jaxbn.debiased(0.9), lambda count: 0.5, lambda count: jnp.float32(0.5)],
    ),
    "axis": Kind(
        ["x", "0", None, 1.5, 1.0, [0.5], 2, 7, -3, (1, 1), (1, -1), (0, 2), (), [], {}, NAN, True, np.ones(2),
        nothing],
        [-1, 1, np.int64(1), [1], (-1,)],
    ),
    "dtype": Kind(
        ["no such", 3, 1.5, np.int32, "int8", bool, [np.float32], {}, object(), np.ones(3), nothing, str],
        [None, "float32", jnp.float32, np.float16, jnp.bfloat16, np.dtype("float32"), "complex64"],
    ),
    "param_dtype": Kind(
        ["no such", 3, 1.5, np.int32, "int8", bool, [np.float32], {}, object(), np.ones(3), nothing, str],
        ["float32", jnp.bfloat16, np.float16],
    ),
    "mask": Kind(
        [
            "x", {}, object(), nothing, np.tanh, X + 0j, np.ones(4, bool), np.ones((3, 3), bool), np.ones((2, 4, 3),
            bool),
            np.ones((4, 2)), np.array(["a", "b", "c"]), [[1, 2], [3]], np.array([None, True, True]), Traced(X[:3]),
        ],
        [
            None, X > 3, X, X.astype(np.float16), np.ones((4, 1), np.int32), np.ones(3, bool), [True, False, True],
            [[True], [True], [False], [True]], True, Traced(X), X.astype(jnp.bfloat16),
        ],
    ),
    "axis_name": Kind(["nobody", 3, 1.5, ["nobody"], [3], ("a", 3), {}, True, object(), nothing, np.ones(3)], [None]),
    "axis_name, in evaluation": Kind([3, 1.5, [3], ("a", 3), {}, True, object(), nothing, np.ones(3)], [None]),
    "axis_index_groups": Kind([3, "01", [0, 1], [[0.5]], [[0, 1]], {}, True, object(), nothing, np.ones((2, 2))],
        [None]),
    "virtual_batch_size": Kind(
        ["2", 2.0, 0, -1, 3, 8, True, [2], {}, NAN, np.ones(2), Traced(2), nothing, int], [None, 1, 2, 4, np.int64(2)]
    ),
    "activation": Kind(
        [
            "swishy", "", 3, True, ["relu"], {}, np.ones(3), object(), np.tanh, np.sin, jnp.sum, jax.nn.softmax,
            nothing,
            lambda x: x[:1], lambda x: 0, lambda x: "a", lambda x, y: x, lambda: 1, lambda x: x > 0,
            lambda x: (x, x), lambda x: x - x.max(), lambda x: x.astype(jnp.int32), lambda x: x.T,
        ],
        [None, "relu", "gelu", jnp.tanh, jax.nn.silu, jax.nn.relu, lambda x: 2 * x + 1, lambda x: jnp.where(x > 0, x,
        0 * x)],
    ),
    "residual": Kind(
        ["x", 1.0, {}, object(), nothing, X[:, :1], X[None], X.astype(np.float16), X.astype(np.int32), X + 0j, [[1.0]]],
        [None, X, Traced(X)],
    ),
    "x": Kind(
        [
            "x", None, 3, 1.5, {}, object(), nothing, X.astype(np.int32), X > 0, np.float32(1), [["a"]], [[1.0], [2.0,
            3.0]],
            np.array([None, 1.0]), X.astype(str), Traced(np.int32(1)),
        ],
        [X, X.tolist(), Traced(X), X.astype(np.float16), X.astype(jnp.bfloat16)],
    ),
    "params": Kind(
        [
            None, "x", 3, [VECTOR, VECTOR], VECTOR, object(), nothing, {"gamma": VECTOR}, {"scale": X},
            {"scale": VECTOR[:2]},
            {"scale": "x"}, {"bias": object()}, {"bias": 1.0}, {1: VECTOR}, {"scale": {}},
            {"scale": np.array(["a"] * 3)},
        ],
        [PARAMS, {}, {"scale": VECTOR}, {"bias": VECTOR}, types.MappingProxyType(PARAMS)],
    ),
    "batch_stats": Kind(
        [
            None, "x", 3, [VECTOR, VECTOR], VECTOR, object(), nothing, {}, {"mean": VECTOR}, {**STATS, "ema": VECTOR},
            {**STATS, "mean": X}, {**STATS, "mean": VECTOR[:2]}, {**STATS, "var": VECTOR[:2]}, {**STATS, "mean": "x"},
            {**STATS, "var": object()}, {**STATS, "var": None}, {**STATS, "var": VECTOR + 0j},
            {**STATS, "count": np.zeros(2, np.int32)}, {**STATS, "count": "x"}, {**STATS, "count": np.zeros(3)},
            {**STATS, "mean": np.zeros(3, np.int32)}, {**STATS, "mean": np.zeros(3, bool)},
        ],
        [STATS, COUNTED, types.MappingProxyType(STATS)],
    ),
    "mean": Kind(
        [None, "x", {}, object(), nothing, X, VECTOR[:2], 1.0, np.array(["a"] * 3), np.zeros(3, bool)],
        [VECTOR, VECTOR.tolist(), Traced(VECTOR)],
    ),
    "var": Kind([None, "x", {}, object(), nothing, X, VECTOR[:2], 1.0, VECTOR + 0j, np.zeros(3, bool)], [VECTOR]),
    "moments": Kind(
        [
            None, "x", 3, {}, object(), nothing, VECTOR, (1, 2), (4.0, VECTOR, VECTOR[:2]), MOMENTS._replace(mean=X),
            MOMENTS._replace(var=VECTOR[:2]), MOMENTS._replace(count=VECTOR[:2]), MOMENTS._replace(mean="x"),
            MOMENTS._replace(count="x"), MOMENTS._replace(var=None), MOMENTS._replace(var=-VECTOR),
            MOMENTS._replace(var=VECTOR + 0j), MOMENTS._replace(count=-1.0), STATS,
        ],
        [MOMENTS, MOMENTS._replace(count=VECTOR), MOMENTS._replace(count=0.0)],
    ),
    "pivot": Kind(["x", {}, object(), nothing, X, VECTOR[:2], 1.0, np.array(["a"] * 3)], [None, VECTOR]),
    "num_features": Kind(
        ["3", None, -1, 2.5, 3.0, [3], (3, -1), (2, 1.5), True, NAN, {}, object(), nothing, np.ones(3), Traced(3)],
        [0, 3, (2, 3), np.int64(3), (3,)],
    ),
    "debiased": Kind(
        ["0.9", None, 1.0, 1, -0.1, 1.1, NAN, INF, [0.9], {}, True, 1j, np.ones(2), nothing, Traced(0.9)],
        [0, 0.9, 0.999, np.float64(0.9)],
    ),
    "forward": Kind([*CALLABLE.wrong, nothing, lambda: 0, lambda model, batch: 3], []),
    "model": MODEL,
    "model of weights": Kind([*MODEL.wrong, {"params": 3}, {"params": {"fc": {"kernel": "x"}}}]),
    "batch": Kind(["x", object(), nothing], [X]),
    "batches": Kind([None, "x", 3, 1.5, [], (), object(), nothing, np.float32(1)], [[X], (X, X), [X, X[:2]]]),
    "counts": Kind(["x", 3, [1], [1, 2, 3], [[1, 2]], [-1, 2], [NAN, 1], [0, 0], [1j, 1], {}, object(),
        KEYS, Traced(KEYS)], [None, [1,
        2]]),
    "tree of batch_stats": Kind([None, "x", 3, object(), nothing, VECTOR], [STATS, {"a": STATS, "b": {"c": STATS}}]),
    "tree of moments": Kind(
        [None, "x", 3, object(), nothing, VECTOR, {}, {"mean": VECTOR}, {"other": MOMENTS._asdict()}],
        [MOMENTS._asdict()]
    ),
    "layer": Kind(
        [
            None, "x", 3, [X], X, object(), nothing, {}, {"bias": VECTOR}, {"kernel": "x"}, {"kernel": VECTOR},
            {"kernel": np.ones((3, 3), np.int32)},
            {"kernel": np.ones((3, 3), np.float32), "bias": np.ones(2, np.float32)},
        ],
        [{"kernel": np.ones((3, 3), np.float32)}, {"kernel": np.ones((3, 3), np.float32), "bias": VECTOR}],
    ),
    "out_axis": Kind(["x", None, 1.5, 5, -5, [0], True, NAN, {}, nothing], [-1, 1, -2]),
    "feature_group_count": Kind(["2", None, 2.0, 0, -1, 2, True, [1], NAN, {}, nothing], [1]),
    "pairs": Kind(["x", 3, [3], ["ab"], [("a",)], [("a", "b", "c")], [("no", "such")], {}, nothing, object()], [None]),
    "names": Kind(["x", 3, ["a"], {3: "x"}, {"fc": 3}, {"no such": "x"}, object(), nothing], [None, {"fc": "fc"}]),
    "prefix": Kind([None, 3, ["x"], {}, b"x", True, object(), nothing], [""]),
    "layouts": Kind(["x", 3, ["a"], {3: None}, {"fc": "x"}, {"fc": 3}, {"no such": None}, object(), nothing], [None,
        {}]),
    "path": Kind([None, 3, 1.5, [], {}, "weights.txt", "weights", True, object(), nothing], []),
    "arrays": Kind(
        [
            None, "x", 3, [X], X, object(), nothing, {"a": object()}, {"a": None}, {"a": "x"}, {3: X},
            {"a": [object()]},
            {"a": np.array([None])}, {"a": {"b": X}}, {"a": X.astype(str)},
        ],
        [{"a": X}, {}, {"a.b": X.astype(np.float16)}],
    ),
    "torch momentum": Kind(["0.9", [0.1], {}, np.ones(3), NAN, -0.1, 1.1, True, 1j, nothing], [None, 0, 0.1, 1]),
    "parts": Kind(["2", None, 1, 0, -2, 3, 2.0, True, [2], NAN, {}, nothing], [2, 4]),
    "tolerance": Kind(["x", None, -1e-4, NAN, [1e-4], {}, True, 1j, np.ones(3), nothing], [1e-4, 1, np.float32(1e-3)]),
    "loss": Kind(["x", 3, 1.5, [1], {}, object()], [None]),
    "variables": Kind(["x", 3, [1], np.ones(3), object(), nothing], [None, {"params": PARAMS, "batch_stats": STATS}]),
    "max_bytes": Kind(["1", -1, 1.5, True, [1], {}, NAN, np.ones(3), nothing], [None, 1000, np.int64(1000)]),
    "module": Kind([*junk(), nothing, np.ones(3), [{"params": {}}]]),
    "variables of linen": Kind([*junk(), nothing, np.ones(3), {"params": PARAMS}],
        [{"params": PARAMS, "batch_stats": STATS}]),
    "batch or shapes": Kind(["x", object(), nothing], [X, jax.ShapeDtypeStruct((4, 3), np.float32)]),
    "moments of a module": Kind(
        [
            None, "x", 3, {}, object(), nothing, VECTOR, (1, 2), MOMENTS._replace(mean=X), MOMENTS._replace(mean="x"),
            MOMENTS._replace(count="x"), MOMENTS._replace(var=None), MOMENTS._replace(count=-1.0), STATS,
        ],
        [MOMENTS, MOMENTS._replace(count=VECTOR)],
    ),
    "checkpoint": Kind(
        ["x", 3, 1.5, None, object(), nothing, {"fc.weight": "x"}, {"fc": {"weight": X}}, [X]],
        [{"fc.weight": np.zeros((2, 3))}, {"fc.weight": np.zeros((2, 3)), "other.bias": np.zeros(2)}],
    ),
    "weights": Kind(["x", 3, 1.5, None, object(), nothing, {}, {"fc.weight": "x"}, {3: X}, [X]], []),
    "replicas": Kind(
        [None, "x", 3, [], (), object(), nothing, VECTOR, [STATS, 3], [STATS, {}], [STATS, {"a": STATS}], {"mean": X},
            *([{**COUNTED, name: KEYS}] * 2 for name in COUNTED), {"mean": X, "var": X, "count": KEYS}],
        [[STATS], [STATS, STATS], {"mean": X, "var": X}, {"a": {"mean": X, "var": X}}],
    ),
    "moments of a summary": Kind(
        ["x", 3, 1.5, object(), nothing, VECTOR, {"other": MOMENTS}, MOMENTS._replace(mean=X), KEYS,
            *(MOMENTS._replace(**{name: KEYS}) for name in MOMENTS._fields)], [None, MOMENTS]
    ),
    "choice or None": Kind([v for v in FLAG.wrong[:-1] if v is not None], [True, False, None, Traced(True)]),
    "features of x": Kind(["3", None, -1, 2.5, 3.0, [3], (3, -1), (3, 1.5), True, NAN, {}, object(), nothing], [3,
        (3,)]),
    "axis_name of a test": Kind([None, 3, 1.5, ["d", 3], {}, True, object(), nothing], ["batch"]),
}  # fmt: skip
