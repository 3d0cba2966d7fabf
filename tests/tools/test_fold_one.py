"""One batch norm and one layer, folded from their arrays: the folded layer gives what the two gave."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxbn
from tests import reference

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 5, 4, 4)).astype(np.float32)
EPSILON = 0.1


def normal(*shape, dtype=np.float32):
    return jnp.asarray(RNG.normal(size=shape), dtype)


def norm(features: int):
    """The params and batch_stats of a batch norm."""
    scale, var = (jnp.asarray(RNG.uniform(0.5, 2, features), jnp.float32) for _ in range(2))
    return {"scale": scale, "bias": normal(features)}, {"mean": normal(features), "var": var}


def normalized(params, batch_stats, x):
    y = reference.normalize(params, x, batch_stats["mean"], batch_stats["var"], epsilon=EPSILON)
    return jnp.asarray(y, jnp.float32)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("features", [3, 4])
def test_a_transposed_convolution_has_its_output_features_on_the_axis_before_the_last(features, use_bias):
    fields = {"kernel_size": (2, 3), "strides": (2, 1), "transpose_kernel": True}
    layer = {"kernel": normal(2, 3, features, 4)} | ({"bias": normal(features)} if use_bias else {})
    params, batch_stats = norm(features)
    before = nn.ConvTranspose(features, **fields, use_bias=use_bias).apply({"params": layer}, X)
    folded = jaxbn.fold_into_previous(layer, params, batch_stats, epsilon=EPSILON, out_axis=-2)
    after = nn.ConvTranspose(features, **fields).apply({"params": folded}, X)
    np.testing.assert_allclose(after, normalized(params, batch_stats, before), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_convolution_of_groups_absorbs_the_batch_norm_before_it(groups):
    fields = {"kernel_size": (2, 2), "padding": "VALID", "feature_group_count": groups}
    layer = {"kernel": normal(2, 2, 4 // groups, 8), "bias": normal(8)}
    params, batch_stats = norm(4)
    before = nn.Conv(8, **fields).apply({"params": layer}, normalized(params, batch_stats, X))
    folded = jaxbn.fold_into_next(params, batch_stats, layer, epsilon=EPSILON, feature_group_count=groups)
    np.testing.assert_allclose(nn.Conv(8, **fields).apply({"params": folded}, X), before, rtol=1e-5, atol=1e-5)


def test_kernel_and_bias_keep_a_dtype_each():
    params, batch_stats = norm(4)
    layer = {"kernel": normal(4, 4, dtype=jnp.bfloat16), "bias": normal(4)}
    for folded in (
        jaxbn.fold_into_previous(layer, params, batch_stats),
        jaxbn.fold_into_next(params, batch_stats, layer),
    ):
        assert (folded["kernel"].dtype, folded["bias"].dtype) == (jnp.bfloat16, jnp.float32)


def test_a_kernel_that_was_not_finite_is_folded_as_it_is():
    params, batch_stats = norm(4)
    folded = jaxbn.fold_into_previous({"kernel": normal(4, 4).at[0, 1].set(jnp.inf)}, params, batch_stats)
    assert np.argwhere(~np.isfinite(folded["kernel"])).tolist() == [[0, 1]]
