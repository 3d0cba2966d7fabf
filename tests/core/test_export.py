"""`jax.export`: one program for any number of examples, and arrays that are donated to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
from tests.oracle import check_step

FLOAT = jnp.float32


def batch(shape, offset=3):
    return (np.random.default_rng(0).normal(size=shape) + offset).astype(np.float32)


def exported(text, text_of_mask=None):
    """Makes a function of (params, stats, x, dy, mask) one that went through a file, with x of a symbolic shape."""

    def run(f):
        def call(params, stats, x, dy, mask):
            scope = jax.export.SymbolicScope()
            fixed = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), (params, stats))
            of_x = jax.ShapeDtypeStruct(jax.export.symbolic_shape(text, scope=scope), FLOAT)
            of_mask = None
            if text_of_mask is not None:
                of_mask = jax.ShapeDtypeStruct(jax.export.symbolic_shape(text_of_mask, scope=scope), mask.dtype)
            program = jax.export.export(jax.jit(f))(*fixed, of_x, of_x, of_mask)
            return jax.export.deserialize(program.serialize()).call(params, stats, x, dy, mask)

        return call

    return run


@pytest.mark.parametrize(
    ("text", "shape", "axis"),
    [
        ("b, 3", (7, 3), -1),
        ("b, h, w, 3", (5, 4, 6, 3), -1),
        ("b, 3, l", (5, 3, 7), 1),
    ],
)
@pytest.mark.parametrize("options", [{}, {"use_fast_variance": False}, {"unbiased": True}], ids=str)
def test_a_training_step_is_exported_for_any_number_of_examples(text, shape, axis, options):
    check_step(batch(shape), axis=axis, run=exported(text), **options)


@pytest.mark.parametrize("text_of_mask", ["b, 1, 1", "b, l, 1", "b, l, 3", "1, l, 1"])
def test_so_is_a_masked_one(text_of_mask):
    shape = [{"b": 6, "l": 5}.get(n) or int(n) for n in text_of_mask.split(", ")]
    mask = np.random.default_rng(1).random(shape) < 0.7
    check_step(batch((6, 5, 3)), mask=mask, run=exported("b, l, 3", text_of_mask))


def test_so_are_weights():
    weights = np.random.default_rng(1).random((6, 1, 1)).astype(np.float32)
    check_step(batch((6, 5, 3)), mask=weights, run=exported("b, l, 3", "b, 1, 1"))


@pytest.mark.parametrize("text", ["b, 3", "b, l, 3"])
def test_so_is_evaluation_with_its_gradient(text):
    x = batch((5, 3) if text == "b, 3" else (5, 4, 3))
    params, stats = jaxbn.init(3)

    def loss(x):
        return jnp.sin(jaxbn.batch_norm(params, stats, x, use_running_average=True)[0]).sum()

    of_x = jax.ShapeDtypeStruct(jax.export.symbolic_shape(text), FLOAT)
    program = jax.export.export(jax.jit(jax.value_and_grad(loss)))(of_x)
    for got, want in zip(program.call(x), jax.value_and_grad(loss)(x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_so_are_moments():
    of_x = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, l, 3"), FLOAT)
    x = batch((5, 4, 3))
    for got, want in zip(
        jax.export.export(jax.jit(jaxbn.batch_moments))(of_x).call(x), jaxbn.batch_moments(x), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_statistics_and_moments_are_donated():
    params, stats = jaxbn.init(3)
    x = jnp.asarray(batch((8, 3)))
    step = jax.jit(lambda stats, x: jaxbn.batch_norm(params, stats, x, use_running_average=False)[1], donate_argnums=0)
    new = step(stats, x)
    assert all(v.is_deleted() for v in stats.values())
    np.testing.assert_allclose(step(new, x)["mean"], (1 - 0.99**2) * np.asarray(x).mean(0), rtol=1e-4)

    moments = jaxbn.zero_moments({"layer": jaxbn.init(3)[1]})
    doubled = jax.jit(lambda m: jax.tree.map(lambda v: v + 1, m), donate_argnums=0)(moments)
    assert all((v == 1).all() for v in jax.tree.leaves(doubled))
