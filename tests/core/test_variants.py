"""Chex variants of the functions on arrays: with and without jit, arrays of NumPy and of a device, pmap over eight."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

import jaxbn
from tests import reference

RNG = np.random.default_rng(0)
X, DY = RNG.normal(2, 3, (2, 6, 4, 3)).astype(np.float32)
MASK = RNG.random(X.shape) < 0.7
PARAMS = {"scale": np.float32([1, 2, -1]), "bias": np.float32([0, 1, 2])}
STATS = {"mean": np.float32([1, 2, 3]), "var": np.float32([0.5, 1, 1.5]), "count": np.int32([4, 0, 2])}
DENSE = {"kernel": RNG.normal(size=(3, 3)).astype(np.float32), "bias": RNG.normal(size=3).astype(np.float32)}


def train(params, stats, x, mask):
    return jaxbn.batch_norm(params, stats, x, use_running_average=False, mask=mask, momentum=None)


def evaluate(params, stats, x, mask):
    return jaxbn.batch_norm(params, stats, x, use_running_average=True)


def gradients(params, stats, x, mask, dy):
    _, vjp, _ = jax.vjp(lambda params, x: train(params, stats, x, mask), params, x, has_aux=True)
    return vjp(jnp.asarray(dy))


def in_two_parts(x, mask):
    return jaxbn.merge_moments(*(jaxbn.batch_moments(x[i:j], mask=mask[i:j]) for i, j in ((0, 2), (2, 6))))


def commit(stats, moments):
    return jaxbn.commit_moments({"a": [stats, stats]}, {"a": [moments, {}]}, momentum=None)


def replicas(x):
    parts = [jaxbn.batch_moments(x[i:j]) for i, j in ((0, 2), (2, 6))]
    return jaxbn.merge_batch_stats([{"mean": m.mean, "var": m.var} for m in parts], jnp.stack([m.count for m in parts]))


def wanted():
    """What each function makes of its arguments, by the reference."""
    moments = reference.moments(X, mask=MASK)
    by_name = dict(zip(("count", "mean", "var"), moments, strict=True))
    _, mean, var = reference.moments(X)
    y = reference.train(PARAMS, STATS, X, mask=MASK)
    new = reference.update(STATS, *moments, momentum=None)
    gradient = reference.gradients(PARAMS, STATS, X, DY, mask=MASK)
    evaluated = reference.normalize(PARAMS, X, STATS["mean"], STATS["var"])
    slope = reference.normalize(PARAMS, np.ones(3), STATS["mean"], STATS["var"])
    offset = reference.normalize(PARAMS, np.zeros(3), STATS["mean"], STATS["var"])
    kernel, bias = DENSE["kernel"], DENSE["bias"]
    slope -= offset
    return {
        "batch_norm in training": (train, (PARAMS, STATS, X, MASK), (y, new)),
        "batch_norm in evaluation": (evaluate, (PARAMS, STATS, X, MASK), (evaluated, STATS)),
        "the gradients": (
            gradients,
            (PARAMS, STATS, X, MASK, DY),
            ({name: gradient[name] for name in PARAMS}, gradient["x"]),
        ),
        "normalize_batch": (
            lambda params, stats, x, mask: jaxbn.normalize_batch(params, stats, x, mask=mask),
            (PARAMS, STATS, X, MASK),
            (y, jaxbn.Moments(*moments)),
        ),
        "normalize": (jaxbn.normalize, (PARAMS, X, STATS["mean"], STATS["var"]), evaluated),
        "batch_moments": (lambda x, mask: jaxbn.batch_moments(x, mask=mask), (X, MASK), jaxbn.Moments(*moments)),
        "merge_moments": (in_two_parts, (X, MASK), jaxbn.Moments(*moments)),
        "update_batch_stats": (
            lambda stats, *moments: jaxbn.update_batch_stats(stats, jaxbn.Moments(*moments), momentum=None),
            (STATS, *map(np.float32, moments)),
            new,
        ),
        "commit_moments": (commit, (STATS, jax.tree.map(np.float32, by_name)), {"a": [new, STATS]}),
        "merge_batch_stats": (replicas, (X,), {"mean": mean, "var": var}),
        "fold_into_previous": (
            jaxbn.fold_into_previous,
            (DENSE, PARAMS, STATS),
            {"kernel": kernel * slope, "bias": bias * slope + offset},
        ),
        "fold_into_next": (
            jaxbn.fold_into_next,
            (PARAMS, STATS, DENSE),
            {"kernel": kernel * slope[:, None], "bias": bias + offset @ kernel},
        ),
    }


class FunctionsTest(chex.TestCase):
    @chex.all_variants
    @parameterized.named_parameters((name, name) for name in wanted())
    def test_each_variant_gives_what_the_reference_does(self, name):
        function, arguments, want = wanted()[name]
        got = self.variant(function)(*arguments)
        want = jax.tree.map(lambda want, got: np.asarray(want, got.dtype), want, got)
        chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-5)

    @chex.all_variants
    def test_each_variant_returns_a_state_of_the_same_tree_shapes_and_dtypes(self):
        _, new = self.variant(train)(PARAMS, STATS, X, MASK)
        chex.assert_trees_all_equal_shapes_and_dtypes(new, STATS)


def test_a_training_loop_from_a_new_layer_traces_its_step_once():
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, stats, x, momentum):
        y, stats = jaxbn.batch_norm(params, stats, x, use_running_average=False, momentum=momentum)
        return y, stats

    params, stats = jaxbn.init(3, use_count=True)
    for x, momentum in zip(X, itertools.cycle([0.9, 0.99]), strict=False):
        _, stats = step(params, stats, x, momentum)


def test_evaluation_does_not_depend_on_how_the_statistics_move():
    """So that a change of what only training uses compiles nothing."""
    traced = []

    def activation(x):
        traced.append(x)
        return x * x

    params, stats = jaxbn.init(3, use_count=True)
    numbers = []
    for options in (
        {},
        {"momentum": 0.5},
        {"momentum": jnp.float32(0.5)},
        {"unbiased": True},
        {"renorm": jaxbn.Renorm()},
    ):
        jaxbn.batch_norm(params, stats, X[0], use_running_average=True, activation=activation, **options)
        numbers.append(len(traced))
    # Each call tries the activation once, to check it.
    assert np.diff(numbers).tolist() == [1] * 4


def test_a_loop_without_jit_traces_a_layer_once():
    traced, numbers = [], []

    def activation(x):
        traced.append(x)
        return x * x

    params, stats = jaxbn.init(3)
    for x, momentum in zip(X, jnp.linspace(0.9, 1, len(X)), strict=True):
        _, stats = jaxbn.batch_norm(
            params, stats, x, use_running_average=False, momentum=momentum, activation=activation
        )
        numbers.append(len(traced))
    # Each call tries the activation once, to check it.
    assert np.diff(numbers).tolist() == [1] * (len(X) - 1)
