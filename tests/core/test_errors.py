"""A wrong argument is an error that names it, the rule and what came: eagerly and while tracing."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn

X = np.ones((4, 3), np.float32)
VECTOR = np.ones(3, np.float32)
STATS = {"mean": 0 * VECTOR, "var": VECTOR}
PARAMS = {"scale": VECTOR, "bias": VECTOR}

KEY = jax.random.key(0)
BOTH = [
    ({"x": X.astype(np.int32)}, TypeError, "`x` must be floating or complex, got int32[4, 3]"),
    ({"x": np.float32(1)}, ValueError, "`x` must have at least one axis, the feature axis, got float32[]"),
    ({"x": "x"}, TypeError, "`x` must be an array, got str"),
    ({"axis": 2}, ValueError, "`axis` must be in [-2, 2) for an input of rank 2, got 2"),
    ({"axis": -3}, ValueError, "`axis` must be in [-2, 2) for an input of rank 2, got -3"),
    ({"axis": (1, -1)}, ValueError, "`axis` must name each axis once, got (1, -1)"),
    ({"axis": ()}, ValueError, "`axis` must name at least one feature axis, got ()"),
    ({"axis": 1.0}, TypeError, "`axis` must be an integer or a sequence of integers, got 1.0"),
    ({"axis": 0}, ValueError, "must have the feature shape of x, [4] (axis (0,) of float32[4, 3]), got float32[3]"),
    ({"params": {"scale": X}}, ValueError, "`params['scale']` must have the feature shape of x, [3]"),
    ({"params": {"gamma": VECTOR}}, ValueError, "`params` may hold 'scale' and 'bias' and nothing else, got ['gamma']"),
    ({"params": None}, TypeError, "`params` must be a dict with 'scale' and 'bias' (or without), got NoneType"),
    ({"batch_stats": None}, TypeError, "`batch_stats` must be a dict with 'mean' and 'var', got NoneType"),
    ({"batch_stats": {}}, ValueError, "missing ['mean', 'var']"),
    ({"batch_stats": {**STATS, "ema": VECTOR}}, ValueError, "unknown ['ema']"),
    ({"epsilon": True}, TypeError, "`epsilon` must be a number known at trace time, got True"),
    ({"epsilon": -1e-5}, ValueError, "`epsilon` must be finite and not negative, got -1e-05"),
    ({"epsilon": float("nan")}, ValueError, "`epsilon` must be finite and not negative, got nan"),
    ({"epsilon": "small"}, TypeError, "`epsilon` must be a number known at trace time, got 'small'"),
    ({"dtype": np.int32}, TypeError, "`dtype` must be floating or complex, got int32"),
    ({"x": X + 0j, "batch_stats": {**STATS, "mean": VECTOR + 0j}, "dtype": np.float32}, TypeError, "`dtype` must be c"),
    ({"activation": "swishy"}, ValueError, "`activation` must be one of relu, leaky_relu, relu6, silu, gelu, tanh, si"),
    ({"activation": 3}, TypeError, "`activation` must be None, a name or an elementwise callable, got 3"),
    ({"activation": jnp.sum}, ValueError, "`activation` must be elementwise"),
    ({"residual": X[:, :1]}, ValueError, "`residual` must be of the shape and dtype of y, float32[4, 3], got float32["),
    ({"residual": X.astype(np.float16)}, ValueError, "`residual` must be of the shape and dtype of y, float32[4, 3],"),
    ({"use_running_average": None}, TypeError, "`use_running_average` must be True, False or a boolean array [], got"),
]
"""Arguments that are wrong in training and in evaluation."""

TRAINING = [
    ({"batch_stats": {k: v[:2] for k, v in STATS.items()}}, ValueError, "`batch_stats['mean']` must have the feature"),
    (
        {"batch_stats": {**STATS, "count": VECTOR}},
        ValueError,
        "`batch_stats['count']`, the updates of each channel, must be integers of shape [3]",
    ),
    ({"x": X + 0j}, TypeError, "`batch_stats['mean']` must be complex for a complex x (complex64[4, 3]), got float32["),
    ({"momentum": 1.5}, ValueError, "`momentum`, the weight of the old value, must be in [0, 1], got 1.5"),
    ({"momentum": -0.1}, ValueError, "`momentum`, the weight of the old value, must be in [0, 1], got -0.1"),
    ({"momentum": float("nan")}, ValueError, "`momentum`, the weight of the old value, must be in [0, 1], got nan"),
    ({"momentum": VECTOR}, ValueError, "`momentum` must be a scalar, got float32[3]"),
    ({"momentum": "0.9"}, TypeError, "`momentum` must be a number, None or a callable of the count, got '0.9'"),
    ({"momentum": None}, ValueError, "`momentum` None or a callable of the count needs batch_stats['count']"),
    (
        {
            "batch_stats": {**STATS, "count": np.zeros(3, np.int32)},
            "momentum": lambda count: jnp.where(count == 1, 1.5, 0.5),
        },
        ValueError,
        "`momentum`, the weight of the old value, must be in [0, 1], a number or a callable that gives one, got 1.5",
    ),
    ({"mask": X[:3]}, ValueError, "`mask` must broadcast to x, float32[4, 3], got float32[3, 3]"),
    ({"mask": X[None]}, ValueError, "`mask` must broadcast to x, float32[4, 3], got float32[1, 4, 3]"),
    ({"mask": X + 0j}, TypeError, "`mask` must be boolean or real, non-negative weights, got complex64[4, 3]"),
    (
        {"mask": X - 2 * np.eye(4, 3, dtype=np.float32)},
        ValueError,
        "`mask` must hold non-negative weights, got float32[4",
    ),
    (
        {"mask": X * np.nan},
        ValueError,
        "`mask` must hold non-negative weights, got float32[4, 3] with some that are not",
    ),
    (
        {"mask": X + np.inf},
        ValueError,
        "`mask` must hold non-negative weights, got float32[4, 3] with some that are not",
    ),
    ({"mask": KEY}, TypeError, "`mask` must be an array of numbers, got key<"),
    ({"momentum": KEY}, TypeError, "`momentum` must be a number known at trace time, got"),
    ({"epsilon": KEY}, TypeError, "`epsilon` must be a number known at trace time, got"),
    ({"mask": -np.eye(4, 3, dtype=int)}, ValueError, "`mask` must hold non-negative weights, got int"),
    ({"axis_name": "batch"}, ValueError, "`axis_name` must be bound by an enclosing jax.vmap, jax.pmap or jax.shard_m"),
    ({"axis_index_groups": [[0]]}, ValueError, "`axis_index_groups` needs an `axis_name` to group, got groups [[0]]"),
    ({"virtual_batch_size": 3}, ValueError, "`virtual_batch_size` must divide the number of examples, 4 in float32[4,"),
    ({"virtual_batch_size": 0}, ValueError, "`virtual_batch_size` must divide the number of examples, 4 in float32[4,"),
    ({"virtual_batch_size": 2.0}, TypeError, "`virtual_batch_size` must be an integer or None, got 2.0"),
]
"""Arguments that only training reads."""


def call(arguments, *, traced, training):
    given = {"params": dict(PARAMS), "batch_stats": dict(STATS), "x": X, "use_running_average": not training}
    given |= arguments
    positional = [given.pop(name) for name in ("params", "batch_stats", "x")]
    if not traced:
        return jaxbn.batch_norm(*positional, **given)
    if not isinstance(positional[2], np.ndarray):
        return jax.jit(lambda: jaxbn.batch_norm(*positional, **given))()
    return jax.jit(lambda x: jaxbn.batch_norm(*positional[:2], x, **given))(positional[2])


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(
    ("arguments", "error", "message", "training"),
    [(*row, True) for row in BOTH + TRAINING] + [(*row, False) for row in BOTH],
)
def test_a_wrong_argument_is_named_with_the_rule_and_what_came(arguments, error, message, training, traced):
    with pytest.raises(error, match=re.escape(message)):
        call(arguments, traced=traced, training=training)
    # Nothing is half-written.
    assert PARAMS == {"scale": VECTOR, "bias": VECTOR}
    assert np.array_equal(STATS["mean"], 0 * VECTOR)


def test_a_traced_epsilon_and_a_traced_number_for_a_flag_are_errors():
    with pytest.raises(TypeError, match="`epsilon` must be a number known at trace time"):
        jax.jit(lambda e: call({"epsilon": e}, traced=False, training=True))(1e-5)
    with pytest.raises(TypeError, match="`use_running_average` must be True, False or a boolean"):
        jax.jit(lambda t: call({"use_running_average": t}, traced=False, training=True))(1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1,), ValueError, "`num_features` must not be negative, got -1"),
        ((2.0,), TypeError, "`num_features` must be an integer or a tuple of integers, got 2.0"),
        ((2, True, True, np.int32), TypeError, "`param_dtype` must be floating or complex, got int32"),
    ],
)
def test_init_checks_what_it_is_given(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        jaxbn.init(*arguments)


def test_moments_of_another_layer_do_not_merge_or_update():
    moments, other = jaxbn.batch_moments(X), jaxbn.batch_moments(X[:, :2])
    with pytest.raises(ValueError, match=re.escape("`moments` must have mean and var of shape [3]")):
        jaxbn.merge_moments(moments, other)
    with pytest.raises(ValueError, match=re.escape("`moments` must have mean and var of shape [3]")):
        jaxbn.update_batch_stats(STATS, other, momentum=0.9)
    with pytest.raises(TypeError, match=re.escape("`moments` must be jaxbn.Moments(count, mean, var), got dict")):
        jaxbn.update_batch_stats(STATS, {}, momentum=0.9)
    with pytest.raises(TypeError, match="takes at least one `Moments`, got none"):
        jaxbn.merge_moments()


@pytest.mark.parametrize("name", ["count", "var"])
@pytest.mark.parametrize("run", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_moments_of_numpy_below_0_are_told(run, name):
    moments = jaxbn.Moments(np.float32(4), VECTOR, VECTOR)._replace(**{name: np.float32([1, 1, -1])})
    with pytest.raises(ValueError, match=f"`moments.{name}` must not be negative, got float32"):
        run(lambda stats: jaxbn.update_batch_stats(stats, moments, momentum=0.9))(STATS)


@pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("mask", [[[1.0], [1], [-1], [0]], -1.0, np.int32([[1], [-1], [0], [1]])], ids=str)
def test_negative_weights_are_told_whatever_holds_the_numbers(mask, run):
    with pytest.raises(ValueError, match="`mask` must hold non-negative weights, got"):
        run(lambda x: jaxbn.batch_moments(x, mask=mask))(X)


@pytest.mark.parametrize("name", ["scale", "bias", "mean", "x"])
def test_a_real_result_of_anything_complex_is_told(name):
    arrays = {k: jnp.ones(3, jnp.complex64 if k == name else jnp.float32) for k in ("scale", "bias", "mean", "x")}
    params, stats = {k: arrays[k] for k in ("scale", "bias")}, {"mean": arrays["mean"], "var": jnp.ones(3)}
    x = jnp.broadcast_to(arrays["x"], (4, 3))
    if name == "x":
        stats["mean"] = stats["mean"].astype(jnp.complex64)
    with pytest.raises(TypeError, match="`dtype` must be complex where x, scale, bias or mean is, got float32"):
        jaxbn.batch_norm(params, stats, x, use_running_average=True, dtype=jnp.float32)


def test_evaluation_does_not_need_its_axis_name_to_be_bound():
    options = {"axis_name": "devices", "axis_index_groups": ((0, 1), (2, 3))}
    y, _ = jaxbn.batch_norm(PARAMS, STATS, X, use_running_average=True, **options)
    assert y.shape == X.shape
    with pytest.raises(ValueError, match="axis_name"):
        jaxbn.batch_norm(PARAMS, STATS, X, use_running_average=False, **options)
