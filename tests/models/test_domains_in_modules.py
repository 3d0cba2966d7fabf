"""The modules of linen and nnx with statistics per domain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
import jaxbn.linen
import jaxbn.nnx
from tests.domain_cases import FEATURES, NUM_DOMAINS, batch, close, of_linen, state


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("domain", [2, (2, 0)])
def test_the_modules_give_what_the_functions_give(domain, affine):
    params, stats = state(affine=affine)
    x, _, _ = batch()
    want = jaxbn.batch_norm(params, stats, x, use_running_average=False, domain=domain, momentum=0.9)
    model, variables = of_linen(affine_per_domain=affine)
    given_variables = {"params": params, "batch_stats": stats}
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, given_variables)
    y, updates = model.apply(given_variables, x, use_running_average=False, domain=domain, mutable=["batch_stats"])
    close({"y": y, **updates["batch_stats"]}, {"y": np.asarray(want[0]), **jax.tree.map(np.asarray, want[1])})

    layer = jaxbn.nnx.BatchNorm(
        FEATURES, num_domains=NUM_DOMAINS, affine_per_domain=affine, momentum=0.9, rngs=nnx.Rngs(0)
    )
    for name, value in {**params, **stats}.items():
        variable = getattr(layer, name)
        assert variable[...].shape == value.shape
        variable[...] = jnp.asarray(value)
    y = layer(x, domain=domain)
    found = {"y": y, "mean": layer.mean[...], "var": layer.var[...]}
    close(found, {"y": np.asarray(want[0]), **jax.tree.map(np.asarray, want[1])})


def test_a_module_wants_a_domain_if_it_has_several_and_only_then():
    x, _, _ = batch()
    model, variables = of_linen()
    with pytest.raises(ValueError, match="`domain` is given in the call if the module has `num_domains`"):
        model.apply(variables, x, use_running_average=True)
    with pytest.raises(ValueError, match="`domain` is given in the call if the module has `num_domains`"):
        jaxbn.nnx.BatchNorm(FEATURES, rngs=nnx.Rngs(0))(x, domain=0)


def test_initialization_checks_the_domain_and_takes_a_batch_of_any_size():
    model, want = of_linen()
    x = batch()[0][:1]
    variables = model.init(jax.random.key(0), x, use_running_average=False, domain=(0, 2))
    jax.tree.map(np.testing.assert_array_equal, variables, want)
    for wrong, error in ((NUM_DOMAINS, ValueError), ("x", TypeError), ((), ValueError)):
        with pytest.raises(error, match="`domain` must be an integer in"):
            model.init(jax.random.key(0), x, use_running_average=False, domain=wrong)


def test_moments_of_another_shape_are_told():
    model, variables = of_linen()
    stale = jaxbn.zero_moments({"mean": jnp.zeros(FEATURES), "var": jnp.ones(FEATURES)})
    with pytest.raises(ValueError, match=r"`batch_moments` must have the shape of `batch_stats`, \[3, 4\], got \[4\]"):
        model.apply(
            {**variables, "batch_moments": stale}, batch()[0], use_running_average=False, domain=0,
            mutable=["batch_moments"],
        )  # fmt: skip
