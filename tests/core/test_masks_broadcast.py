"""Masks and weights that broadcast over any axes, and what stands under them, in training and in evaluation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
import jaxbn.linen
import jaxbn.nnx
from tests.oracle import check_step

SHAPE = (6, 3, 5, 2)
LONG = list(itertools.product([True, False], repeat=4))
AXES = [-1, 1, (1, 3), (3, 1), (2, -1), (-3, 0)]


def batch(mask=None, bad=np.nan, dtype=np.float32):
    """Sorted rows far from 0, with what is bad under the mask."""
    x = np.sort(np.random.default_rng(0).normal(size=SHAPE), 0) + 5
    if mask is not None:
        x = np.where(np.broadcast_to(mask, SHAPE), x, bad)
    return x.astype(dtype)


def a_mask(long, seed=1):
    shape = [n if is_long else 1 for n, is_long in zip(SHAPE[4 - len(long) :], long, strict=True)]
    mask = np.random.default_rng(seed).random(shape) < 0.7
    mask.reshape(-1)[0] = True
    return mask


@pytest.mark.parametrize("axis", [-1, (3, 1), (-3, 0)], ids=str)
@pytest.mark.parametrize("long", LONG[::3], ids=lambda long: "".join("n1"[not v] for v in long))
def test_a_mask_may_be_long_along_any_axes(long, axis):
    mask = a_mask(long)
    check_step(batch(mask), mask=mask, axis=axis, epsilon=0.1)


@pytest.mark.exhaustive
@pytest.mark.parametrize("options", [{}, {"use_fast_variance": False}, {"unbiased": True}], ids=str)
@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("long", LONG, ids=lambda long: "".join("n1"[not v] for v in long))
def test_so_it_may_with_any_option(long, axis, options):
    mask = a_mask(long)
    check_step(batch(mask), mask=mask, axis=axis, epsilon=0.1, **options)
    weights = mask * np.random.default_rng(2).uniform(0.1, 2, mask.shape).astype(np.float32)
    check_step(batch(mask), mask=weights, axis=axis, epsilon=0.1, **options)


@pytest.mark.parametrize("options", [{}, {"use_fast_variance": False}, {"unbiased": True}], ids=str)
def test_the_usual_mask_of_images(options):
    mask = (np.arange(6) < 4).reshape(6, 1, 1, 1)
    check_step(batch(mask), mask=mask, **options)


@pytest.mark.parametrize("long", [(True, False, True), (False, True), (True,), ()], ids=str)
def test_a_mask_may_be_of_lower_rank(long):
    mask = a_mask(long)
    check_step(batch(mask), mask=mask)
    check_step(batch(mask), mask=mask, axis=(1, 3), epsilon=0.1)


@pytest.mark.parametrize("long", [(False, True, False, False), (True, True, False, False), (True, False, False, True)])
def test_a_mask_along_one_of_two_feature_axes_counts_by_channel(long):
    mask = a_mask(long)
    weights = mask * np.float32(0.3)
    for given in (mask, weights):
        check_step(batch(mask), mask=given, axis=(1, 3), epsilon=0.1)
        count, *_ = jaxbn.batch_moments(batch(mask), axis=(1, 3), mask=given)
        np.testing.assert_allclose(
            jnp.broadcast_to(count, (3, 2)), np.broadcast_to(np.float64(given), SHAPE).sum((0, 2)), rtol=1e-6
        )


@pytest.mark.parametrize("total", [0.4, 1e-3, 1e6])
@pytest.mark.parametrize("unbiased", [False, True])
def test_only_the_ratios_of_weights_matter_to_the_output(total, unbiased):
    weights = np.random.default_rng(2).uniform(0.1, 2, (6, 1, 1, 1)).astype(np.float32)
    weights *= np.float32(total) / weights.sum()
    check_step(batch(), mask=weights, unbiased=unbiased)


@pytest.mark.parametrize("size", [2, 3])
def test_virtual_batches_take_masks_that_broadcast_along_the_examples(size):
    batches = np.arange(6).reshape(-1, size).tolist()
    for long in ((False, False, True, False), (True, False, False, False), (True, False, True, True)):
        mask = a_mask(long)
        check_step(batch(mask), mask=mask, virtual_batch_size=size, batches=batches, epsilon=0.1)


def stats_and_params():
    rng = np.random.default_rng(3)
    return (
        {name: rng.normal(size=2).astype(np.float32) for name in ("scale", "bias")},
        {"mean": np.float32([4, 6]), "var": np.float32([2, 0.5])},
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("long", [(True, False, False, False), (True, True, True, True), (False, True, True, False)])
def test_in_evaluation_nothing_under_a_mask_reaches_the_output_or_a_gradient(long, bad):
    mask = a_mask(long)
    params, stats = stats_and_params()
    dy = np.random.default_rng(4).normal(size=SHAPE).astype(np.float32)

    def run(x):
        def layer(params, x):
            return jaxbn.batch_norm(params, stats, x, use_running_average=True, mask=mask)[0]

        y, vjp = jax.vjp(layer, params, x)
        return y, *vjp(jnp.asarray(dy))

    y, dparams, dx = jax.jit(run)(batch(mask, bad))
    clean = jax.jit(run)(batch(mask, 0.0))  # a non-finite value counts as 0
    under = np.broadcast_to(mask, SHAPE)
    for v in jax.tree.leaves((y, dparams, dx)):
        assert np.isfinite(v).all()
    np.testing.assert_allclose(y, clean[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.asarray(dx)[under], np.asarray(clean[2])[under], rtol=1e-6)
    for name, v in dparams.items():
        np.testing.assert_allclose(v, clean[1][name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
@pytest.mark.parametrize("training", [True, False])
def test_what_is_not_finite_under_a_mask_is_a_constant_in_a_residual_too(training, bad):
    """Of x in one row that the mask leaves out, of the residual in another; forward and backward."""
    mask = (np.arange(6) > 1).reshape(6, 1, 1, 1)
    params, stats = stats_and_params()
    rng = np.random.default_rng(4)
    dy, tx, tr, residual = rng.normal(size=(4, *SHAPE)).astype(np.float32)
    of_x, of_residual = (np.broadcast_to((np.arange(6) == row).reshape(6, 1, 1, 1), SHAPE) for row in (0, 1))

    @jax.jit
    def run(x, residual, tx, tr):
        def layer(params, x, residual):
            return jaxbn.batch_norm(
                params, stats, x, use_running_average=not training, mask=mask, residual=residual, activation="silu"
            )[0]

        y, vjp = jax.vjp(layer, params, x, residual)
        dparams, dx, dresidual = vjp(dy)
        forward = jax.jvp(lambda x, r: layer(params, x, r), (x, residual), (tx, tr))[1]
        return {"y": y, "forward": forward, **dparams, "dx": dx, "dresidual": dresidual}

    def given(value, tangent):
        return (
            np.where(of_x, value, batch()), np.where(of_residual, value, residual),
            np.where(of_x, tangent, tx), np.where(of_residual, tangent, tr),
        )  # fmt: skip

    found = run(*given(np.float32(bad), np.float32(3)))
    want = run(*given(np.float32(0), np.float32(0)))
    want |= {"dx": np.where(of_x, 0, want["dx"]), "dresidual": np.where(of_residual, 0, want["dresidual"])}
    for name, value in want.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("empty", ["all channels", "one channel", "frozen"])
def test_an_output_of_running_statistics_has_their_gradients(empty):
    """As in evaluation; and the batch, where it counts, hides them."""
    params, stats = stats_and_params()
    x, dy = batch(), np.random.default_rng(4).normal(size=SHAPE).astype(np.float32)
    mask = {"all channels": np.zeros((6, 1, 1, 1), bool), "one channel": np.arange(2) > 0, "frozen": None}[empty]

    def loss(stats, running):
        y, new = jaxbn.batch_norm(params, stats, x, use_running_average=running, mask=mask)
        return (jnp.sin(y) * dy).sum() + new["mean"][0] ** 2 + new["var"][0] ** 3

    @jax.jit
    def derivatives(stats, frozen):
        running = frozen if empty == "frozen" else False
        training = jax.grad(loss)(stats, running), jax.jvp(lambda s: loss(s, running), (stats,), (stats,))[1]
        return training, jax.grad(loss)(stats, True)

    (gradient, forward), want = derivatives(jax.tree.map(jnp.asarray, stats), True)
    if empty == "one channel":
        want = {name: jnp.array([v[0], 0]) for name, v in want.items()}
    for name, value in want.items():
        np.testing.assert_allclose(gradient[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(forward, sum((v * stats[name]).sum() for name, v in want.items()), rtol=1e-5)


@pytest.mark.parametrize("layer", ["linen", "nnx"])
def test_so_it_is_in_the_layers(layer):
    mask = a_mask((True, False, False, False))
    params, stats = stats_and_params()
    x = jnp.asarray(batch(mask))
    if layer == "linen":
        module = jaxbn.linen.BatchNorm(use_running_average=True)

        def loss(scale, x):
            variables = {"params": {**params, "scale": scale}, "batch_stats": stats}
            return jnp.sin(module.apply(variables, x, mask=mask)).sum()
    else:
        module = jaxbn.nnx.BatchNorm(2, use_running_average=True, rngs=nnx.Rngs(0))
        module.mean[...], module.var[...] = stats["mean"], stats["var"]

        def loss(scale, x):
            mine = nnx.clone(module)
            mine.scale.set_value(scale)
            return jnp.sin(mine(x, mask=mask)).sum()

    for v in jax.tree.leaves(jax.value_and_grad(loss, argnums=(0, 1))(params["scale"], x)):
        assert np.isfinite(v).all()


@pytest.mark.parametrize("training", [True, False])
def test_a_mask_takes_no_gradient_and_may_be_traced(training):
    params, stats = stats_and_params()

    def loss(mask):
        y, _ = jaxbn.batch_norm(params, stats, batch(), use_running_average=not training, mask=mask)
        return jnp.sin(y).sum()

    gradient = jax.jit(jax.grad(loss))(np.full((6, 1, 1, 1), 0.5, np.float32))
    np.testing.assert_array_equal(gradient, np.zeros((6, 1, 1, 1)))
