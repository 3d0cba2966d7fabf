"""What is kept for the backward pass: x, the residual and per-channel vectors, and no second activation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    "masked",
    [False, True],
)
def test_only_what_came_in_and_vectors_are_kept(activation, masked, residual):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 4, 3)), jnp.bfloat16)
    params, stats = jaxbn.init(3)
    added = x + 1 if residual else None
    mask = jnp.arange(16).reshape(16, 1, 1) > 3 if masked else None

    def layer(params, x, residual):
        return jaxbn.batch_norm(
            params, stats, x, use_running_average=False, activation=activation, mask=mask, residual=residual
        )

    _, vjp = jax.vjp(layer, params, x, added)
    kept = [leaf for leaf in jax.tree.leaves(vjp) if leaf.size >= x.size]
    assert len(kept) <= 1 + residual
    assert all(leaf.dtype == x.dtype for leaf in kept)
    assert all(leaf.size <= 16 for leaf in jax.tree.leaves(vjp) if leaf.size < x.size)
