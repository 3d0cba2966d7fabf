"""Every place in which a batch norm may stand: it folds and nothing changes, or it stays and `left` says why."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fold_layers import Net, X, variables_of
from fold_obstacles import OBSTACLES, SOME
from fold_places import PLACES

import jaxbn

ALL = PLACES | OBSTACLES | SOME


@pytest.fixture(autouse=True)
def promoting():
    """Flax's own layers promote."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("name", ALL)
def test_what_can_be_folded_is_found_and_what_stays_says_why(name):
    place = ALL[name]
    # Zeros tell as much as any batch: all is read off the program. Shapes do, too.
    variables = jax.eval_shape(lambda: variables_of(place))
    pairs = jaxbn.foldable_pairs(Net(place.run), variables, jnp.zeros_like(X), False)
    assert pairs == place.pairs
    assert set(pairs.left) == set(place.left)
    for path, reason in place.left.items():
        assert reason in pairs.left[path], pairs.left


@pytest.mark.parametrize("name", PLACES | SOME)
def test_the_outputs_stay(name):
    place = ALL[name]
    model, variables = Net(place.run), variables_of(place)
    copy = jax.tree.map(jnp.copy, variables)
    folded = jaxbn.fold(model, variables, X, False)
    run = jax.jit(lambda variables: model.apply(variables, X, False))
    for before, after in zip(*(jax.tree.leaves(run(v)) for v in (variables, folded)), strict=True):
        before, after = np.asarray(before, np.float32), np.asarray(after, np.float32)
        tolerance = 2e-2 if name == "half" else 1e-5
        np.testing.assert_allclose(after, before, rtol=0, atol=tolerance * np.abs(before).max())
    jax.tree.map(np.testing.assert_array_equal, variables, copy)
    assert jax.tree.map(jnp.shape, folded) == jax.tree.map(jnp.shape, variables)
    for norm, statistics in folded["batch_stats"].items():
        changed = norm in {path for pair in place.pairs for path in pair}
        assert bool(np.any(statistics["var"] != variables["batch_stats"][norm]["var"])) == changed


@pytest.mark.parametrize("name", OBSTACLES)
def test_a_model_without_a_pair_is_told(name):
    place = OBSTACLES[name]
    variables = jax.eval_shape(lambda: variables_of(place))
    with pytest.raises(ValueError, match="no batch norm that can be folded") as error:
        jaxbn.fold(Net(place.run), variables, X, False)
    assert "\n  norm: " in str(error.value)
    assert place.left["norm"] in str(error.value)
