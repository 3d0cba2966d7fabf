"""A run that is broken off, saved with orbax and resumed goes on bit for bit as if nothing had been, in the middle of
an epoch too: the order of the data is a function of the step, and the step is in the checkpoint."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import jaxbn
import jaxbn.linen
import jaxbn.nnx

DATA = np.random.default_rng(0).normal(1, 2, size=(12, 3)).astype(np.float32)
BATCHES_PER_EPOCH, BATCH = 4, 3
OPTIMIZER = optax.sgd(0.1, momentum=0.9)


def batch_of(step):
    """The batch of that step: a new order of all examples in each epoch, and nothing to remember but the step."""
    epoch, number = divmod(int(step), BATCHES_PER_EPOCH)
    order = np.random.default_rng([7, epoch]).permutation(len(DATA))
    return DATA[order[number * BATCH : (number + 1) * BATCH]]


def save_and_load(directory, state, like):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory / "checkpoint", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(directory / "checkpoint", like)


class Linen(nn.Module):
    momentum: object

    @nn.compact
    def __call__(self, x):
        x = jaxbn.linen.BatchNorm(use_running_average=False, momentum=self.momentum)(nn.Dense(4)(x))
        return nn.Dense(1)(nn.Dropout(0.5, deterministic=False)(x))


class LinenRun:
    def __init__(self, momentum, seed):
        model = Linen(momentum)
        variables = model.init(jax.random.key(seed), DATA)
        self.state = {
            "variables": variables,
            "optimizer": OPTIMIZER.init(variables["params"]),
            "key": jax.random.key(seed),
            "step": jnp.int32(0),
        }

        @jax.jit
        def train_step(state, x):
            def loss(params):
                variables = {**state["variables"], "params": params}
                rngs = {"dropout": jax.random.fold_in(state["key"], state["step"])}
                y, updates = model.apply(variables, x, rngs=rngs, mutable=["batch_stats"])
                return (y**2).mean(), updates

            params = state["variables"]["params"]
            gradient, updates = jax.grad(loss, has_aux=True)(params)
            change, optimizer = OPTIMIZER.update(gradient, state["optimizer"], params)
            variables = {"params": optax.apply_updates(params, change), **updates}
            return {"variables": variables, "optimizer": optimizer, "key": state["key"], "step": state["step"] + 1}

        self.train_step = train_step

    def step(self):
        self.state = self.train_step(self.state, batch_of(self.state["step"]))

    def restore(self, directory, saved):
        self.state = save_and_load(directory, saved, self.state)


class Nnx(nnx.Module):
    def __init__(self, momentum, rngs):
        self.layers = nnx.List(
            [
                nnx.Linear(3, 4, rngs=rngs),
                jaxbn.nnx.BatchNorm(4, momentum=momentum, rngs=rngs),
                nnx.Dropout(0.5, rngs=rngs),
                nnx.Linear(4, 1, rngs=rngs),
            ]
        )

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class NnxRun:
    def __init__(self, momentum, seed):
        self.model = Nnx(momentum, nnx.Rngs(seed))
        self.optimizer = nnx.Optimizer(self.model, OPTIMIZER, wrt=nnx.Param)

        @nnx.jit
        def train_step(model, optimizer, x):
            optimizer.update(model, nnx.grad(lambda model: (model(x) ** 2).mean())(model))

        self.train_step = train_step

    @property
    def state(self):
        return nnx.state((self.model, self.optimizer))

    def step(self):
        self.train_step(self.model, self.optimizer, batch_of(self.optimizer.step[...]))

    def restore(self, directory, saved):
        nnx.update((self.model, self.optimizer), save_and_load(directory, saved, self.state))


@pytest.mark.parametrize("run", [LinenRun, NnxRun])
def test_a_resumed_run_is_bit_equal(run, tmp_path):
    momentum = jaxbn.debiased(0.9)  # with a count, which has to be restored too
    straight = run(momentum, seed=0)
    for _ in range(3):
        straight.step()
    resumed = run(momentum, seed=1)
    resumed.restore(tmp_path, straight.state)
    for _ in range(3):
        straight.step()
        resumed.step()
    assert jax.tree.structure(straight.state) == jax.tree.structure(resumed.state)
    for a, b in zip(jax.tree.leaves(straight.state), jax.tree.leaves(resumed.state), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b, strict=True)


def test_the_order_of_the_data_differs_between_epochs_and_covers_each():
    epochs = [np.concatenate([batch_of(e * BATCHES_PER_EPOCH + i) for i in range(BATCHES_PER_EPOCH)]) for e in (0, 1)]
    assert not np.array_equal(*epochs)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch, 0), np.sort(DATA, 0))
