"""Networks as other people write them: what folds keeps the outputs, and the number of what stays is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from fold_models import filled

import jaxbn
from jaxbn.linen import BatchNorm

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 4)), jnp.float32)


def norm():
    return BatchNorm(True)


class UNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        down = nn.relu(norm()(nn.Conv(4, (3, 3))(x)))
        deep = nn.relu(norm()(nn.Conv(8, (3, 3))(nn.max_pool(down, (2, 2), (2, 2)))))
        up = norm()(nn.ConvTranspose(4, (2, 2), (2, 2))(deep))
        return nn.Conv(2, (1, 1))(nn.relu(norm()(nn.Conv(4, (3, 3))(jnp.concatenate([down, up], -1)))))


class SqueezeExcite(nn.Module):
    """A block of MobileNetV3."""

    @nn.compact
    def __call__(self, x):
        y = nn.hard_swish(norm()(nn.Conv(8, (3, 3), feature_group_count=4)(x)))
        gate = nn.sigmoid(nn.Dense(8)(nn.relu(nn.Dense(2)(y.mean((1, 2))))))
        return norm()(nn.Conv(4, (1, 1))(y * gate[:, None, None])) + x


class PreActivation(nn.Module):
    """Of each block the second batch norm folds, the first stands behind a sum and before a ReLU."""

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            y = nn.Conv(4, (3, 3), use_bias=False)(nn.relu(norm()(x)))
            x = x + nn.Conv(4, (3, 3), use_bias=False)(nn.relu(norm()(y)))
        return x


class DenseNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = jnp.concatenate([x, nn.Conv(2, (3, 3))(nn.relu(norm()(x)))], -1)
        return nn.Dense(3)(norm()(x).mean((1, 2)))


class Autoencoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        hidden = nn.relu(norm()(nn.Dense(8)(x.reshape(len(x), -1))))
        mean = nn.Dense(3)(hidden)
        return norm()(nn.Dense(8)(mean + jax.random.normal(self.make_rng("noise"), mean.shape))), mean


class Critic(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(norm()(nn.relu(nn.Dense(8)(norm()(x.reshape(len(x), -1))))))


class Critics(nn.Module):
    """An ensemble: its variables are stacked."""

    @nn.compact
    def __call__(self, x):
        axes, split = {"params": 0, "batch_stats": 0}, {"params": True}
        return nn.vmap(Critic, axes, split_rngs=split, in_axes=None, axis_size=2)()(x)


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x.reshape(2, 64, 4)
        y = norm()(x)
        x = norm()(x + nn.MultiHeadDotProductAttention(2)(y, y, y))
        return nn.Dense(2)(norm()(x + nn.Dense(4)(nn.gelu(nn.Dense(12)(x)))))


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = norm()(nn.Dense(6)(x.reshape(2, 8, -1)))
        return norm()(nn.Dense(3)(nn.RNN(nn.GRUCell(5))(x)))


class Setup(nn.Module):
    def setup(self):
        self.first, self.norm, self.rest = nn.Dense(4), norm(), [nn.Dense(4), norm()]

    def __call__(self, x):
        return self.rest[1](self.rest[0](nn.relu(self.norm(self.first(x)))))


NETWORKS = {
    UNet: (4, 0),
    SqueezeExcite: (2, 0),
    PreActivation: (2, 2),
    DenseNet: (1, 2),
    Autoencoder: (2, 0),
    Critic: (2, 0),
    Critics: (0, 2),
    Transformer: (4, 1),
    Recurrent: (2, 0),
    Setup: (2, 0),
}
"""-> how many pairs there are, and how many batch norms stay"""


@pytest.mark.exhaustive
@pytest.mark.parametrize("network", NETWORKS)
def test_networks_as_other_people_write_them(network):
    model, rngs = network(), {"noise": jax.random.key(1)}
    variables = filled(jax.eval_shape(lambda: model.init({"params": jax.random.key(0), **rngs}, X)))
    pairs = jaxbn.foldable_pairs(model, variables, X, rngs=rngs)
    assert (len(pairs), len(pairs.left)) == NETWORKS[network], pairs.left
    if not pairs:
        return
    folded = jaxbn.fold(model, variables, X, rngs=rngs)
    run = jax.jit(lambda variables: model.apply(variables, X, rngs=rngs))
    for before, after in zip(*(jax.tree.leaves(run(v)) for v in (variables, folded)), strict=True):
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())
