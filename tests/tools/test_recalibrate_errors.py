"""What cannot be recalibrated says so, and nothing has changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
import jaxbn.linen
import jaxbn.nnx

X = np.arange(6, dtype=np.float32).reshape(3, 2)


@pytest.fixture
def variables():
    params, stats = jaxbn.init(2)
    return {"params": {"bn": params}, "batch_stats": {"bn": stats}}


def forward(variables, x):
    return None, {"bn": jaxbn.batch_moments(x)}


def test_an_empty_data_set_is_an_error(variables):
    with pytest.raises(ValueError, match=r"at least one batch, got none\. The statistics are as they were"):
        jaxbn.recalibrate(forward, variables, [])


def test_a_data_set_without_a_valid_example_is_an_error(variables):
    with pytest.raises(ValueError, match="at least one example to a batch norm, got none in 2 batches"):
        jaxbn.recalibrate(
            lambda v, x: (None, {"bn": jaxbn.batch_moments(x, mask=jnp.zeros((3, 1), bool))}), variables, [X, X]
        )


@pytest.mark.parametrize("sequential", [False, True])
def test_a_layer_without_a_channel_has_none_that_lacks_an_example(sequential):
    params, stats = jaxbn.init(0, use_count=True)
    model = {"params": {"bn": params}, "batch_stats": {"bn": stats}}
    got = jaxbn.recalibrate(forward, model, [X[:, :0]], sequential=sequential)["batch_stats"]["bn"]
    assert {name: v.shape for name, v in got.items()} == dict.fromkeys(("mean", "var", "count"), (0,))


def test_data_that_can_be_read_once_are_an_error_in_sequence(variables):
    with pytest.raises(ValueError, match=r"same batches each time it is iterated.*got list_iterator"):
        jaxbn.recalibrate(forward, variables, iter([X]), sequential=True)


def test_a_channel_that_is_not_finite_is_an_error_and_damages_nothing():
    model = jaxbn.nnx.BatchNorm(2, rngs=nnx.Rngs(0))
    before = nnx.to_pure_dict(nnx.state(model))
    bad = X.copy()
    bad[0, 1] = np.inf
    with pytest.raises(ValueError, match=r"must be finite over `batches`, got channels that are not: {'\.': '1 of 2'}"):
        jaxbn.recalibrate(lambda model, x: model(x), model, [X, bad])
    assert type(model) is jaxbn.nnx.BatchNorm
    jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(model)))


def test_data_that_break_off_damage_nothing():
    model = jaxbn.nnx.BatchNorm(2, rngs=nnx.Rngs(0))

    def broken():
        yield X
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="disk"):
        jaxbn.recalibrate(lambda model, x: model(x), model, broken())
    np.testing.assert_array_equal(model.mean[...], np.zeros(2))


def test_a_forward_without_moments_is_an_error(variables):
    with pytest.raises(ValueError, match=r"must return \(y, moments\) with the moments of .* bn, got none"):
        jaxbn.recalibrate(lambda v, x: x, variables, [X])


def test_moments_in_a_place_without_batch_norm_are_an_error(variables):
    with pytest.raises(ValueError, match=r"batch norms of the model, bn, got some at \['norm'\]"):
        jaxbn.recalibrate(lambda v, x: (x, {"norm": jaxbn.batch_moments(x)}), variables, [X])


def test_a_model_without_batch_norm_is_an_error():
    with pytest.raises(ValueError, match="must have a batch norm"):
        jaxbn.recalibrate(forward, {"params": {}, "batch_stats": {}}, [X])
    with pytest.raises(ValueError, match="must have a batch norm"):
        jaxbn.recalibrate(lambda m, x: m(x), nnx.LayerNorm(2, rngs=nnx.Rngs(0)), [X])


def test_parameters_alone_are_an_error(variables):
    with pytest.raises(TypeError, match=r"\{'params': ..., 'batch_stats': ...\}.*got keys \['bn'\]"):
        jaxbn.recalibrate(forward, variables["params"], [X])
    state = nnx.state(nnx.BatchNorm(2, rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError, match="an nnx module, which `forward` can call"):
        jaxbn.recalibrate(forward, state, [X])


def test_an_nnx_forward_that_calls_no_batch_norm_is_an_error():
    model = nnx.Sequential(jaxbn.nnx.BatchNorm(2, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"must call a batch norm of the model, such as layers/0, got no call of one"):
        jaxbn.recalibrate(lambda model, x: x, model, [X])


def test_progress_is_shown_on_request(variables, capsys):
    jaxbn.recalibrate(forward, variables, [X, X])
    assert capsys.readouterr().out == ""
    jaxbn.recalibrate(forward, variables, [X, X], progress=True)
    assert "Recalibrating" in capsys.readouterr().out


def test_layers_that_forward_does_not_reach_keep_their_statistics(variables):
    params, stats = jaxbn.init(5)
    both = {"params": {**variables["params"], "aux": params}, "batch_stats": {**variables["batch_stats"], "aux": stats}}
    new = jaxbn.recalibrate(forward, both, [X])["batch_stats"]
    assert new["bn"]["mean"].tolist() == [2, 3]
    assert new["aux"]["var"].tolist() == [1] * 5
