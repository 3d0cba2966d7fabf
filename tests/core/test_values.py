"""Output, statistics and gradients of every case, over several training steps and in evaluation, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import CASES, data, expected, found

# Parametrized by module, so that all tests of a case follow each other in one worker, which compiles it once.


def close(got, want, tolerance, name):
    """To `tolerance` in the unit of the largest value, or of 1 if that is larger."""
    assert got.shape == want.shape, name
    unit = max(1, np.abs(want).max())
    got = got.astype(want.dtype)
    np.testing.assert_allclose(got / unit, want / unit, rtol=0, atol=tolerance, err_msg=name)


def rounding(dtype):
    """1e-5, and that of the dtype itself; 1e-9 in float64."""
    bits = jnp.finfo(dtype).bits
    return {16: float(jnp.finfo(dtype).eps), 32: 1e-5, 64: 1e-9}[bits]


@pytest.mark.parametrize("name", CASES, scope="module")
def test_output_statistics_and_gradients_are_those_of_the_reference(name):
    got, want = found(name), expected(name)
    close(got.y, want.y, rounding(got.y.dtype), "y")
    close(got.evaluated, want.evaluated, rounding(got.y.dtype), "evaluated")
    for key, value in want.batch_stats.items():
        close(got.batch_stats[key], value, rounding(got.batch_stats["var"].dtype), key)
    for key, value in want.gradients.items():
        close(got.gradients[key], value, rounding(got.gradients[key].dtype), f"gradient of {key}")


@pytest.mark.parametrize("name", CASES, scope="module")
def test_a_step_keeps_every_dtype_and_shape(name):
    with jax.enable_x64(CASES[name].x64):
        d, got = data(CASES[name]), found(name)
    assert got.y.dtype == CASES[name].options.get("dtype", d.x.dtype)
    assert got.evaluated.dtype == got.y.dtype

    def types(tree):
        return jax.tree.map(lambda v: (v.shape, v.dtype), tree)

    assert types(jax.tree.map(lambda v: v[-1], got.batch_stats)) == types(d.batch_stats)
    given = {**d.params, "x": d.x[0], "residual": None if d.residual is None else d.residual[0]}
    assert types(jax.tree.map(lambda v: v[-1], got.gradients)) == types(given)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.poison], scope="module")
def test_what_stands_under_a_mask_is_normalized_to_finite_values_and_reaches_nothing(name):
    with jax.enable_x64(CASES[name].x64):
        assert not np.isfinite(data(CASES[name]).x).all()
    for leaf in jax.tree.leaves(found(name)):
        assert np.isfinite(leaf).all()
