"""From one set of statistics to one for each domain and back: linen, nnx and plain trees, stacks, folding."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxbn
import jaxbn.linen
import jaxbn.nnx

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32) + 2


class Net(nn.Module):
    """A batch norm with domains, if there are some, after one without."""

    num_domains: int | None = None
    affine: bool = False

    @nn.compact
    def __call__(self, x, train, domain=None):
        x = nn.Dense(4)(x)
        x = jaxbn.linen.BatchNorm(not train, name="plain")(x)
        x = nn.Dense(4)(x)
        norm = jaxbn.linen.BatchNorm(
            not train, num_domains=self.num_domains, affine_per_domain=self.affine, momentum=0.5, name="norm"
        )
        return norm(x, domain=domain)


class NnxNet(nnx.Module):
    def __init__(self, rngs, **fields):
        self.linear = nnx.Linear(3, 4, rngs=rngs)
        self.norm = jaxbn.nnx.BatchNorm(4, momentum=0.5, rngs=rngs, **fields)

    def __call__(self, x, **call):
        return self.norm(self.linear(x), **call)


def trained():
    """Variables of `Net` whose statistics are not 0 and 1."""
    variables = Net().init(jax.random.key(0), X, False)
    _, updates = Net().apply(variables, X, True, mutable=["batch_stats"])
    return variables | updates


@pytest.mark.parametrize("affine", [True, False])
def test_a_trained_model_takes_domains_and_each_begins_where_it_was(affine):
    variables = trained()
    model = Net(num_domains=2, affine=affine)
    several = jaxbn.add_domains(variables, 2, affine_per_domain=affine, layers="norm")
    fresh = model.init(jax.random.key(0), X, False, 0)
    assert jax.tree.map(jnp.shape, several) == jax.tree.map(jnp.shape, fresh)
    for d in range(2):
        np.testing.assert_array_equal(model.apply(several, X, False, d), Net().apply(variables, X, False))
    # One domain learns, and is taken out again.
    _, updates = model.apply(several, 3 * X, True, 1, mutable=["batch_stats"])
    for d in range(2):
        one = jaxbn.select_domain(several | updates, d)
        np.testing.assert_allclose(
            Net().apply(one, X, False), model.apply(several | updates, X, False, d), rtol=1e-6, atol=1e-6
        )
    jax.tree.map(np.testing.assert_array_equal, jaxbn.select_domain(several, 0), variables)


@pytest.mark.parametrize("affine", [True, False])
def test_the_same_in_nnx_and_its_state(affine):
    model = NnxNet(nnx.Rngs(0))
    model(X)
    want = model(X, use_running_average=True)
    several = jaxbn.add_domains(model, 2, affine_per_domain=affine)
    assert model.norm.num_domains is None
    assert model.norm.mean[...].shape == (4,)
    fresh = NnxNet(nnx.Rngs(1), num_domains=2, affine_per_domain=affine)
    nnx.update(fresh, jaxbn.add_domains(nnx.state(model), 2, affine_per_domain=affine))
    for m in (several, fresh):
        np.testing.assert_array_equal(m(X, use_running_average=True, domain=1), want)
        m(3 * X, domain=1)
        one = jaxbn.select_domain(m, 1)
        fields = [(layer.norm.num_domains, layer.norm.affine_per_domain) for layer in (m, one)]
        assert fields == [(2, affine), (None, False)]
        np.testing.assert_allclose(
            one(X, use_running_average=True), m(X, use_running_average=True, domain=1), rtol=1e-6, atol=1e-6
        )
        np.testing.assert_array_equal(jaxbn.select_domain(m, 0)(X, use_running_average=True), want)


def test_sharding_names_stay_with_their_axes():
    """The axis of domains is new, and not split."""

    class Split(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_partitioning(nn.initializers.ones, ("model",))
            return jaxbn.linen.BatchNorm(use_running_average=True, scale_init=init, name="norm")(x)

    variables = Split().init(jax.random.key(0), X)
    several = jaxbn.add_domains(variables, 2, affine_per_domain=True)
    assert nn.get_partition_spec(several)["params"]["norm"]["scale"] == P(None, "model")
    assert several["params"]["norm"]["scale"].value.shape == (2, 3)
    one = jaxbn.select_domain(several, 1)
    assert nn.get_partition_spec(one) == nn.get_partition_spec(variables)

    mesh = jax.make_mesh((1,), ("model",), devices=jax.devices()[:1], axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        layer = jaxbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0), scale_metadata={"out_sharding": ("model",)})
        for model in (layer, nnx.state(layer)):
            several = jaxbn.add_domains(model, 2, affine_per_domain=True)
            one = jaxbn.select_domain(several, 1)
            of_both = [m if isinstance(m, nnx.State) else nnx.state(m) for m in (several, one)]
            assert [s["scale"].out_sharding for s in of_both] == [(None, "model"), ("model",)]


def test_sharding_names_of_stacked_layers_stay_with_their_axes():
    def box(value):
        return nn.Partitioned(value, names=("stage", "model"))

    params, stats = jax.tree.map(box, jaxbn.init((2, 3)))
    variables = {"params": {"bn": params}, "batch_stats": {"bn": stats}}
    several = jaxbn.add_domains(variables, 4, affine_per_domain=True)
    specs = jax.tree.leaves(nn.get_partition_spec(several), is_leaf=lambda v: isinstance(v, P))
    assert specs == [P("stage", None, "model")] * 4
    assert nn.get_partition_spec(jaxbn.select_domain(several, 1)) == nn.get_partition_spec(variables)


def test_a_module_knows_whether_it_has_domains():
    model = nnx.Sequential(
        jaxbn.nnx.BatchNorm(4, num_domains=2, rngs=nnx.Rngs(0)),
        nnx.vmap(lambda rngs: jaxbn.nnx.BatchNorm(4, rngs=rngs))(nnx.Rngs(0).split(2)),
    )
    one = jaxbn.select_domain(model, 1)
    assert [layer.mean[...].shape for layer in one.layers] == [(4,), (2, 4)]
    with pytest.raises(ValueError, match=r"do not have `num_domains` yet, .* jaxbn.nnx.BatchNorm at layers/0"):
        jaxbn.add_domains(model, 3)
    with pytest.raises(ValueError, match=r"batch norms of jaxbn .* got flax.nnx.* at \."):
        jaxbn.add_domains(nnx.BatchNorm(4, rngs=nnx.Rngs(0)), 3)
    assert jaxbn.add_domains(model, 3, layers="layers/1").layers[1].mean[...].shape == (2, 3, 4)


def test_of_stacked_layers_the_domains_stand_before_the_features():
    params, stats = jaxbn.init((5, 4), use_count=True)  # as nn.scan stacks five layers
    stats["mean"] += np.arange(5, dtype=np.float32)[:, None]
    variables = {"params": {"bn": params}, "batch_stats": {"bn": stats}}
    several = jaxbn.add_domains(variables, 3, affine_per_domain=True)
    assert {v.shape for v in jax.tree.leaves(several)} == {(5, 3, 4)}
    rows = jaxbn.summary(several, stacked=True)
    assert [r.layer for r in rows] == [f"bn[{i}][{d}]" for i in range(5) for d in range(3)]
    jax.tree.map(np.testing.assert_array_equal, jaxbn.select_domain(several, 2), variables)


def test_a_summary_tells_several_feature_axes_from_domains():
    params, stats = jaxbn.init((4, 2), num_domains=3)
    params["scale"] = params["scale"].at[1].set(0)
    variables = {"params": params, "batch_stats": stats}
    rows = jaxbn.summary(variables, stacked=True, num_feature_axes=2)
    assert [(r.layer, r.num_features, r.dead) for r in rows] == [(f".[{d}]", 8, 2) for d in range(3)]
    with pytest.raises(ValueError, match=r"`num_feature_axes` .* got 1 for .* \[4, 2\] and a mean \[3, 4, 2\]"):
        jaxbn.summary(variables, stacked=True)


def test_an_old_count_of_all_channels_becomes_one_of_each():
    params, stats = jaxbn.init(4)
    several = jaxbn.add_domains({"params": params, "batch_stats": {**stats, "count": jnp.int32(7)}}, 2)
    np.testing.assert_array_equal(several["batch_stats"]["count"], np.full((2, 4), 7))
    jaxbn.batch_norm(
        params, several["batch_stats"], jnp.ones((3, 4)), use_running_average=False, momentum=None, domain=1
    )


def test_folding_leaves_a_layer_with_domains_and_says_so():
    model, variables = Net(num_domains=2), jaxbn.add_domains(trained(), 2, layers="norm")
    want = model.apply(variables, X, False, 1)
    pairs = jaxbn.foldable_pairs(model, variables, X, False, 1)
    assert pairs == [("Dense_0", "plain")]
    assert "jaxbn.select_domain" in pairs.left["norm"]
    folded = jaxbn.fold(model, variables, X, False, 1)
    np.testing.assert_allclose(model.apply(folded, X, False, 1), want, atol=1e-5)
    folded = jaxbn.fold(Net(), jaxbn.select_domain(variables, 1), X, False)
    np.testing.assert_allclose(Net().apply(folded, X, False), want, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda v: jaxbn.add_domains(v, 0), "`num_domains` must be at least 1, got 0"),
        (lambda v: jaxbn.add_domains(v, 2, num_feature_axes=2), r"`num_feature_axes` must be .*, got 2 for \[4\] at"),
        (lambda v: jaxbn.add_domains(v, 2, layers="encoder/*"), "`layers` must match a batch norm, norm, plain, got"),
        (lambda v: jaxbn.select_domain(v, 0), "`layers` must name batch norms with statistics"),
        (lambda v: jaxbn.select_domain(jaxbn.add_domains(v, 2), 2), r"`domain` must be an integer in \[0, 2\), got 2"),
        (
            lambda v: jaxbn.select_domain(jaxbn.add_domains(jaxbn.add_domains(v, 2, layers="norm"), 3, layers="p*"), 0),
            "the same number of domains, got",
        ),
    ],
)
def test_bad_input_is_named_and_the_model_stays(call, says):
    variables = trained()
    before = jax.tree.map(np.array, variables)
    with pytest.raises(ValueError, match=says):
        call(variables)
    jax.tree.map(np.testing.assert_array_equal, variables, before)


def test_an_export_takes_one_domain():
    variables = jaxbn.add_domains(trained(), 2, layers="norm")
    with pytest.raises(ValueError, match=r"statistics \[C\], got .*mean \[2, 4\]; .*jaxbn.select_domain"):
        jaxbn.interop.to_torch(variables)
    assert jaxbn.interop.to_torch(jaxbn.select_domain(variables, 1))["norm.running_mean"].shape == (4,)
