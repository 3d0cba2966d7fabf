"""One network of two batch norms in each form, and its statistics in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxbn
import jaxbn.linen
import jaxbn.nnx

_RANDOM = np.random.default_rng(0)
DATA = (_RANDOM.normal(size=(48, 3)) * [1, 10, 0.1] + [0, 100, -0.3]).astype(np.float32)
KERNEL = _RANDOM.normal(size=(3, 4)).astype(np.float32)
CUTS = {"uneven": [16, 8, 24], "small": [8] * 6}


def batches(sizes, order=1):
    return np.split(DATA, np.cumsum(sizes)[:-1])[::order]


class Linen(nn.Module):
    layer: type = jaxbn.linen.BatchNorm
    axis_name: str | None = None
    groups: tuple | None = None

    @nn.compact
    def __call__(self, x, train, mask=None):
        options = {"axis_name": self.axis_name, "axis_index_groups": self.groups}
        x = self.layer(name="a", **options)(x, use_running_average=not train, mask=mask)
        x = jax.nn.relu(nn.Dense(4, use_bias=False, name="dense")(x))
        return self.layer(name="b", **options)(x, use_running_average=not train, mask=mask)

    def variables(self):
        stats = {"a": jaxbn.init(3), "b": jaxbn.init(4)}
        params = {k: v[0] for k, v in stats.items()} | {"dense": {"kernel": jnp.asarray(KERNEL)}}
        return {"params": params, "batch_stats": {k: v[1] for k, v in stats.items()}}


class Nnx(nnx.Module):
    def __init__(self, layer):
        rngs = nnx.Rngs(0)
        self.a, self.b = layer(3, rngs=rngs), layer(4, rngs=rngs)
        self.kernel = nnx.Param(jnp.asarray(KERNEL))

    def __call__(self, x, train):
        x = self.a(x, use_running_average=not train)
        return self.b(jax.nn.relu(x @ self.kernel[...]), use_running_average=not train)


def linen(layer):
    def recalibrated(cut, train, **options):
        model = Linen(layer)

        def forward(variables, x):
            return model.apply(variables, x, train, mutable=["batch_moments", "batch_stats"])

        return jaxbn.recalibrate(forward, model.variables(), cut, **options)["batch_stats"]

    return recalibrated


def in_nnx(layer):
    def recalibrated(cut, train, **options):
        model = jaxbn.recalibrate(lambda model, x: model(x, train), Nnx(layer), cut, **options)
        return {n: {k: getattr(getattr(model, n), k)[...] for k in ("mean", "var")} for n in "ab"}

    return recalibrated


def functional(cut, train, **options):
    def layer(variables, name, x):
        params, stats = variables["params"][name], variables["batch_stats"][name]
        if train:
            return jaxbn.normalize_batch(params, stats, x)
        return jaxbn.batch_norm(params, stats, x, use_running_average=True)[0], jaxbn.batch_moments(x)

    def forward(variables, x):
        x, a = layer(variables, "a", x)
        x, b = layer(variables, "b", jax.nn.relu(x @ variables["params"]["dense"]["kernel"]))
        return x, {"a": a, "b": b}

    return jaxbn.recalibrate(forward, Linen().variables(), cut, **options)["batch_stats"]


FORMS = {
    "functional": functional,
    "jaxbn.linen": linen(jaxbn.linen.BatchNorm),
    "flax.linen": linen(nn.BatchNorm),
    "jaxbn.nnx": in_nnx(jaxbn.nnx.BatchNorm),
    "flax.nnx": in_nnx(nnx.BatchNorm),
}


def population(parts):
    x = np.concatenate([np.asarray(p, np.float64) for p in parts])
    return {"mean": x.mean(0), "var": x.var(0)}


def hidden(x, mean, var):
    return np.maximum((x - mean) / np.sqrt(var + 1e-5) @ KERNEL.astype(np.float64), 0)


def in_training(cut):
    """Each batch is normalized with its own statistics."""
    cut = [np.asarray(x, np.float64) for x in cut]
    return {"a": population(cut), "b": population([hidden(x, x.mean(0), x.var(0)) for x in cut])}


def in_sequence():
    """All batches are normalized with the population statistics of the layer below."""
    a = population([DATA])
    return {"a": a, "b": population([hidden(DATA.astype(np.float64), a["mean"], a["var"])])}


def assert_close(got, expected):
    for name, stats in expected.items():
        for key, value in stats.items():
            np.testing.assert_allclose(got[name][key], value, rtol=1e-5, atol=1e-5, err_msg=f"{name} {key}")
