"""Many runs as one program: seeds, learning rates and scales of the initial weights train side by side under `vmap`."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from claims import network as net
from claims.network import Network
from data import Dataset


class Plan(NamedTuple):
    """How to train; hashable."""

    steps: int
    batch_size: int = 64
    train_images: int | None = None
    """the first so many of the training images; all where None"""
    evaluations: int = 10
    """how often the test images are looked at, at even distances, last at the end"""
    momentum: float = 0.9
    """of the running statistics"""


class Runs(NamedTuple):
    """What differs between runs; arrays [runs]."""

    seed: np.ndarray
    learning_rate: np.ndarray
    scale: np.ndarray
    """of the initial weights, as a multiple of He's"""

    @classmethod
    def grid(cls, seeds, learning_rates, scales=(1.0,)) -> "Runs":
        """All combinations, the scale varying fastest: what comes out reshapes to [seeds, rates, scales, ...]."""
        rates, scales = (np.array(list(v), np.float32) for v in (learning_rates, scales))
        axes = np.meshgrid(np.arange(seeds), rates, scales, indexing="ij")
        return cls(*(a.ravel() for a in axes))


class Trained(NamedTuple):
    """What training gives; each array with a leading axis [runs]."""

    params: Any
    batch_stats: Any
    loss: Any
    """[runs, steps] of each batch"""
    train_loss: Any
    """[runs, evaluations] of training images, as many as there are test images, in evaluation mode"""
    train_accuracy: Any
    test_loss: Any
    test_accuracy: Any
    probed: Any
    """[runs, evaluations, ...] what the probe returned, None without one"""


Probe = Callable[[Network, Dataset, Any, Any], Any]
"""(network, data, params, batch_stats) -> arrays, looked at with each evaluation"""


def loss_of(network: Network, params, batch_stats, x, y, momentum: float = 0.9):
    """Cross-entropy of a batch in training mode, and the new statistics."""
    out = net.apply(network, params, batch_stats, x, train=True, momentum=momentum)
    loss = optax.softmax_cross_entropy_with_integer_labels(out.logits, y).mean()
    return loss, out.batch_stats


def evaluate(network: Network, params, batch_stats, x, y) -> tuple[jax.Array, jax.Array]:
    """Loss and accuracy with the running statistics."""
    logits = net.apply(network, params, batch_stats, x, train=False).logits
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
    return loss, (logits.argmax(-1) == y).mean()


def start(network: Network, data: Dataset, runs: Runs) -> tuple[Any, Any]:
    """Parameters and statistics of all runs, each array with a leading axis [runs]."""
    of_seed = {
        seed: net.init(seed, network, data.train_x.shape[1:], len(data.classes)) for seed in set(runs.seed.tolist())
    }
    params, batch_stats = jax.tree.map(lambda *v: np.stack(v), *(of_seed[seed] for seed in runs.seed.tolist()))
    for layer in params:
        kernel = layer["kernel"]
        layer["kernel"] = kernel * runs.scale.reshape(-1, *(1,) * (kernel.ndim - 1))
    return params, batch_stats


def batches(plan: Plan, images: int, runs: Runs) -> np.ndarray:
    """[runs, steps, batch_size] indices: the images in a new order each epoch, the same for the runs of a seed."""
    needed = plan.steps * plan.batch_size

    def order(seed: int) -> np.ndarray:
        rng = np.random.default_rng([seed, 1])
        epochs = [rng.permutation(images) for _ in range(-(-needed // images))]
        return np.concatenate(epochs)[:needed].reshape(plan.steps, plan.batch_size).astype(np.int32)

    of_seed = {seed: order(seed) for seed in set(runs.seed.tolist())}
    return np.stack([of_seed[seed] for seed in runs.seed.tolist()])


def train_one(network: Network, plan: Plan, data: Dataset, probe: Probe | None, run) -> Trained:
    """One run: its first parameters and statistics, the rows of its batches [steps, batch_size], its learning rate."""
    params, batch_stats, rows, learning_rate = run
    few = min(plan.train_images or len(data.train_x), len(data.test_x))
    optimizer = optax.sgd(learning_rate, momentum=0.9)

    def step(state, rows):
        params, batch_stats, opt_state = state
        value = functools.partial(loss_of, network, x=data.train_x[rows], y=data.train_y[rows], momentum=plan.momentum)
        (loss, batch_stats), grads = jax.value_and_grad(value, has_aux=True)(params, batch_stats)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), batch_stats, opt_state), loss

    def period(state, rows):
        state, losses = jax.lax.scan(step, state, rows)
        on = functools.partial(evaluate, network, *state[:2])
        probed = probe(network, data, *state[:2]) if probe else None
        known = on(data.train_x[:few], data.train_y[:few])
        return state, (losses, *known, *on(data.test_x, data.test_y), probed)

    rows = rows.reshape(plan.evaluations, -1, plan.batch_size)
    state = params, batch_stats, optimizer.init(params)
    (params, batch_stats, _), (losses, *curves) = jax.lax.scan(period, state, rows)
    return Trained(params, batch_stats, losses.reshape(-1), *curves)


def train(network: Network, plan: Plan, data: Dataset, runs: Runs, probe: Probe | None = None) -> Trained:
    """Trains all runs at once.

    Raises:
      ValueError: the steps are no multiple of the evaluations, or the batch is larger than the training set.
    """
    images = plan.train_images or len(data.train_x)
    if plan.steps % plan.evaluations or not 0 < plan.batch_size <= images:
        raise ValueError(f"steps must be a multiple of the evaluations, and the batch at most {images}, got {plan}")
    own = *start(network, data, runs), batches(plan, images, runs), runs.learning_rate
    return _program(network, plan, data.classes, probe)(data[:4], own)


@functools.cache
def _program(network: Network, plan: Plan, classes: tuple[str, ...], probe: Probe | None):
    @jax.jit
    def run(arrays, own):
        train_x, train_y, test_x, test_y = arrays
        data = Dataset(train_x, train_y, test_x, test_y, classes)
        return jax.vmap(functools.partial(train_one, network, plan, data, probe))(own)

    return run


def steps_to(accuracy, target: float, plan: Plan) -> np.ndarray:
    """[runs]: the step of the first evaluation that reaches `target`; infinite where none does."""
    reached = np.asarray(accuracy) >= target
    every = plan.steps // plan.evaluations
    return np.where(reached.any(-1), (reached.argmax(-1) + 1) * every, np.inf)
