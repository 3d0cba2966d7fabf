"""Many runs as one program: seeds, learning rates and scales of the initial weights train side by side under `vmap`."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from claims import network as net
from claims.network import Network
from data import Images, split_rows

BLOCK = 10
"""runs of one program; more are made block by block, so that each network is compiled once"""


class Plan(NamedTuple):
    """How to train; hashable."""

    steps: int
    batch_size: int = 64
    train_images: int | None = None
    """the first so many of the training part; all where None"""
    evaluations: int = 10
    """how often the validation part is looked at, at even distances, last at the end"""
    momentum: float = 0.9
    """of the running statistics"""
    optimizer: str = "sgd"
    """'sgd', with a momentum of 0.9, or 'adam'"""
    decay: bool = True
    """the learning rate falls to 0 along a cosine, so that no arm ends in the noise of its last steps"""


class Runs(NamedTuple):
    """What differs between runs; arrays [runs]."""

    seed: np.ndarray
    """of the split, the weights, the order of the images and the noise"""
    learning_rate: np.ndarray
    scale: np.ndarray
    """of the hidden layers' initial weights, as a multiple of He's"""

    @classmethod
    def grid(cls, seeds: Iterable[int], learning_rates: Iterable[float], scales: Iterable[float] = (1.0,)) -> "Runs":
        """All combinations, the scale varying fastest: what comes out reshapes to [seeds, rates, scales, ...]."""
        rates, scales = (np.array(list(v), np.float32) for v in (learning_rates, scales))
        axes = np.meshgrid(np.array(list(seeds)), rates, scales, indexing="ij")
        return cls(*(a.ravel() for a in axes))


class Seen(NamedTuple):
    """The images as one run sees them, scaled with the mean and deviation of its training part."""

    train_x: Any
    train_y: Any
    validation_x: Any
    validation_y: Any


class Trained(NamedTuple):
    """What training gives; each array with a leading axis [runs]."""

    params: Any
    batch_stats: Any
    loss: Any
    """[runs, steps] of each batch, as training saw it"""
    validation_loss: Any
    """[runs, evaluations], in evaluation mode"""
    validation_accuracy: Any
    train_loss: Any
    """[runs] of the training part at the end, in evaluation mode"""
    test_loss: Any
    """[runs] at the end"""
    test_accuracy: Any
    probed: Any
    """[runs, evaluations, ...] what the probe returned, None without one"""

    @property
    def diverged(self) -> np.ndarray:
        """[runs] bool: a loss that is not finite, of a batch or at the end."""
        finite = np.isfinite(self.loss).all(-1) & np.isfinite(self.train_loss) & np.isfinite(self.test_loss)
        return ~np.asarray(finite)


class Look(NamedTuple):
    """What a probe is given."""

    seen: Seen
    params: Any
    batch_stats: Any
    learning_rate: Any
    noise_key: Any


def announce(text: str) -> None:
    """Is told what is going on; a program with a progress bar puts its own function here."""
    del text


Probe = Callable[[Network, Look], Any]


def loss_of(network: Network, params, batch_stats, x, y, momentum: float = 0.9, noise_key=None):
    """Cross-entropy of a batch in training mode, and the new statistics."""
    out = net.apply(network, params, batch_stats, x, train=True, momentum=momentum, noise_key=noise_key)
    loss = optax.softmax_cross_entropy_with_integer_labels(out.logits, y).mean()
    return loss, out.batch_stats


def evaluate(network: Network, params, batch_stats, x, y) -> tuple[jax.Array, jax.Array]:
    """Loss and accuracy with the running statistics."""
    logits = net.apply(network, params, batch_stats, x, train=False).logits
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
    return loss, (logits.argmax(-1) == y).mean()


class _Inputs(NamedTuple):
    """What one run is given; stacked along the first axis, what all runs are given."""

    params: Any
    batch_stats: Any
    train: np.ndarray
    """rows of the training part, and so on"""
    validation: np.ndarray
    test: np.ndarray
    batches: np.ndarray
    """[steps, batch_size] places in the training part"""
    mean: np.ndarray
    deviation: np.ndarray
    learning_rate: np.ndarray
    seed: np.ndarray


def inputs(network: Network, plan: Plan, images: Images, runs: Runs) -> _Inputs:
    """The inputs of all runs, in NumPy; runs of one seed share the split, the weights and the order of the images."""

    def of_seed(seed: int) -> _Inputs:
        parts = split_rows(images.y, seed)
        train = parts.train[: plan.train_images]
        pixels = images.x[parts.train]
        params, batch_stats = net.init(seed, network, images.x.shape[1:], len(images.classes))
        return _Inputs(
            params, batch_stats, train, parts.validation, parts.test, _batches(plan, len(train), seed),
            pixels.mean(dtype=np.float64).astype(np.float32),
            np.maximum(pixels.std(dtype=np.float64), 1e-6).astype(np.float32), np.zeros((), np.float32),
            np.array(seed, np.uint32),
        )  # fmt: skip

    of_seeds = {seed: of_seed(seed) for seed in set(runs.seed.tolist())}
    stacked: _Inputs = jax.tree.map(lambda *v: np.stack(v), *(of_seeds[seed] for seed in runs.seed.tolist()))
    for layer in stacked.params[:-1]:
        kernel = layer["kernel"]
        layer["kernel"] = kernel * runs.scale.reshape(-1, *(1,) * (kernel.ndim - 1))
    return stacked._replace(learning_rate=runs.learning_rate)


def _batches(plan: Plan, images: int, seed: int) -> np.ndarray:
    """[steps, batch_size]: the images in a new order each epoch."""
    rng = np.random.default_rng([seed, 2])
    needed = plan.steps * plan.batch_size
    epochs = [rng.permutation(images) for _ in range(-(-needed // images))]
    return np.concatenate(epochs)[:needed].reshape(plan.steps, plan.batch_size).astype(np.int32)


def part_of(images: Images, own: _Inputs, rows) -> tuple[Any, Any]:
    """The images of some rows, scaled, and their labels."""
    return (jnp.asarray(images.x)[rows] - own.mean) / own.deviation, jnp.asarray(images.y)[rows]


def train_one(network: Network, plan: Plan, images: Images, probe: Probe | None, own: _Inputs) -> Trained:
    """One run."""
    seen = Seen(*part_of(images, own, own.train), *part_of(images, own, own.validation))
    make = {"sgd": functools.partial(optax.sgd, momentum=0.9), "adam": optax.adam}[plan.optimizer]
    optimizer = make(optax.cosine_decay_schedule(own.learning_rate, plan.steps) if plan.decay else own.learning_rate)
    key = jax.random.key(own.seed, impl="threefry2x32")

    def step(state, batch):
        params, batch_stats, opt_state, number = state
        noise_key = jax.random.fold_in(key, number) if network.noise else None

        def value(params):
            x, y = seen.train_x[batch], seen.train_y[batch]
            return loss_of(network, params, batch_stats, x, y, plan.momentum, noise_key)

        (loss, batch_stats), grads = jax.value_and_grad(value, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), batch_stats, opt_state, number + 1), loss

    def period(state, batches):
        state, losses = jax.lax.scan(step, state, batches)
        params, batch_stats, _, number = state
        noise_key = jax.random.fold_in(key, number) if network.noise else None
        probed = probe(network, Look(seen, params, batch_stats, own.learning_rate, noise_key)) if probe else None
        return state, (losses, *evaluate(network, params, batch_stats, seen.validation_x, seen.validation_y), probed)

    batches = own.batches.reshape(plan.evaluations, -1, plan.batch_size)
    state = own.params, own.batch_stats, optimizer.init(own.params), jnp.uint32(0)
    state, (losses, *curves, probed) = jax.lax.scan(period, state, batches)
    few = min(len(own.train), len(own.test))
    train_loss, _ = evaluate(network, *state[:2], seen.train_x[:few], seen.train_y[:few])
    test_loss, test_accuracy = evaluate(network, *state[:2], *part_of(images, own, own.test))
    validation_loss, validation_accuracy = curves
    return Trained(
        state[0], state[1], losses.reshape(-1), validation_loss, validation_accuracy,
        train_loss, test_loss, test_accuracy, probed,
    )  # fmt: skip


def train(network: Network, plan: Plan, images: Images, runs: Runs, probe: Probe | None = None) -> Trained:
    """Trains all runs, `BLOCK` at a time; a batch larger than the training part holds some images more than once.

    Raises:
      ValueError: the steps are no multiple of the evaluations.
    """
    if plan.steps % plan.evaluations:
        raise ValueError(f"the steps must be a multiple of the evaluations, got {plan}")
    found, out = [], None
    for first in range(0, len(runs.seed), BLOCK):
        block = Runs(*(v[first : first + BLOCK] for v in runs))
        padded = Runs(*(np.resize(v, BLOCK) for v in block))  # of one size: one program
        args = tuple(images[:2]), inputs(network, plan, images, padded)
        announce("compiles" if not first else f"run {first} of {len(runs.seed)}")
        program = _program(network, plan, images.classes, images.x.shape[1:], probe, args)
        announce(f"run {first} of {len(runs.seed)}")
        out = program(*args)
        found.append([np.asarray(v)[: len(block.seed)] for v in jax.tree.leaves(out)])
    return jax.tree.unflatten(jax.tree.structure(out), [np.concatenate(v) for v in zip(*found, strict=True)])


_programs: dict[Any, Any] = {}


def _program(network: Network, plan: Plan, classes: tuple[str, ...], shape, probe: Probe | None, args):
    """Compiled once for each of these."""
    key = network, plan, classes, shape, probe, len(args[0][1])
    if key not in _programs:

        @jax.jit
        def run(arrays, own):
            return jax.vmap(functools.partial(train_one, network, plan, Images(arrays[0], arrays[1], classes), probe))(
                own
            )

        _programs[key] = run.lower(*args).compile()
    return _programs[key]
