"""Trains a small residual network with batch norm on images, on all devices there are.

    python examples/digits.py                               # scikit-learn's handwritten digits
    python examples/digits.py --norm group                  # the same network with another norm
    python examples/digits.py --data my_images              # my_images/cat/*.jpg, my_images/dog/*.jpg, ...

Watches the accuracy on validation images while it trains: choose the norm, the learning rate or the number of epochs
by it. At the end it prints the accuracy on the test images, which are looked at once (batch norm evaluates with its
running statistics), and saves one figure: the curves, and test images with what the network says they are.

The batch is split over the devices. The network does not need to know: under `jit` the statistics are those of the
whole batch, so batch norm is synchronized without further ado.
"""

import argparse
import functools
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

import resnet_functional
import resnet_linen
import resnet_nnx
from data import Dataset, load_digits, load_folder
from figures import save, training_figure

CREATE = {"linen": resnet_linen.create, "nnx": resnet_nnx.create, "functional": resnet_functional.create}
NORMS = ("batch", "layer", "group", "instance", "none")
ENOUGH = 200
"""steps, for running statistics and weights to settle"""
VALIDATION = 0.1
"""share of the images of each class"""


class State(NamedTuple):
    """Everything that training changes."""

    params: Any
    batch_stats: Any
    opt_state: Any


@functools.partial(jax.jit, static_argnames=("apply", "optimizer"), donate_argnames="state")
def train_step(apply, optimizer, state: State, x, y):
    """One step of the optimizer on images `x` [n, height, width, channels] with labels `y` [n]."""

    def loss_fn(params):
        logits, batch_stats = apply(params, state.batch_stats, x, True)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return loss, (batch_stats, (logits.argmax(-1) == y).mean())

    (loss, (batch_stats, accuracy)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    return State(optax.apply_updates(state.params, updates), batch_stats, opt_state), loss, accuracy


@functools.partial(jax.jit, static_argnames="apply")
def evaluate(apply, params, batch_stats, x):
    """Logits in evaluation mode: batch norm with the running statistics."""
    return apply(params, batch_stats, x, False)[0]


def predict(apply, state: State, x: np.ndarray, batch_size: int, sharding) -> np.ndarray:
    """Probabilities [n, classes] of images [n, height, width, channels], in batches of equal size."""
    padded = np.pad(x, ((0, -len(x) % batch_size), (0, 0), (0, 0), (0, 0)))
    batches = [jax.device_put(batch, sharding) for batch in padded.reshape(-1, batch_size, *x.shape[1:])]
    logits = [evaluate(apply, state.params, state.batch_stats, batch) for batch in batches]
    return np.asarray(jax.nn.softmax(jnp.concatenate(logits)))[: len(x)]


def shifted(rng: np.random.Generator, x: np.ndarray, by: int) -> np.ndarray:
    """Each image shifted at random by up to `by` pixels in each direction, with its border repeated."""
    padded = np.pad(x, ((0, 0), (by, by), (by, by), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, x.shape[1:3], axis=(1, 2))
    row, column = rng.integers(0, 2 * by + 1, (2, len(x)))
    return windows[np.arange(len(x)), row, column].transpose(0, 2, 3, 1)


def train(data: Dataset, args: argparse.Namespace):
    """Trains for `args.epochs`; returns the probabilities of the test images at the end, and the curves."""
    per_epoch = len(data.train_x) // args.batch_size
    params, batch_stats, apply = CREATE[args.api](args.seed, data.train_x.shape[-1], len(data.classes), args.norm)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, args.learning_rate, min(per_epoch, args.epochs * per_epoch // 2), args.epochs * per_epoch
    )
    optimizer = optax.adamw(schedule, weight_decay=args.weight_decay)

    mesh = Mesh(np.array(jax.devices()), ("data",))
    split, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    state = jax.device_put(State(params, batch_stats, optimizer.init(params)), everywhere)

    rng = np.random.default_rng(args.seed)
    curves = {"training loss": [], "training accuracy": [], "validation accuracy": []}
    with tqdm(total=args.epochs * per_epoch, unit="step", desc="compiles") as bar:
        for epoch in range(args.epochs):
            order = rng.permutation(len(data.train_x))[: per_epoch * args.batch_size]
            losses, hits = [], []
            for batch in order.reshape(per_epoch, args.batch_size):
                x, y = shifted(rng, data.train_x[batch], args.shift), data.train_y[batch]
                state, loss, accuracy = train_step(apply, optimizer, state, *jax.device_put((x, y), split))
                losses.append(loss)
                hits.append(accuracy)
                bar.set_description("trains", refresh=False)
                bar.update()
            loss = float(np.mean(losses))
            if not np.isfinite(loss):
                raise FloatingPointError(f"the loss became {loss} in epoch {epoch + 1}: try a lower --learning-rate")
            predicted = predict(apply, state, data.validation_x, args.batch_size, split).argmax(-1)
            curves["training loss"].append(loss)
            curves["training accuracy"].append(float(np.mean(hits)))
            curves["validation accuracy"].append(float((predicted == data.validation_y).mean()))
            bar.set_postfix(loss=f"{loss:.3f}", validation=f"{curves['validation accuracy'][-1]:.2%}")
    return predict(apply, state, data.test_x, args.batch_size, split), curves


def at_least(low: int, kind: type):
    """For argparse: a finite number of that kind that is at least `low`."""

    def convert(text: str):
        if not low <= (value := kind(text)) < float("inf"):
            raise argparse.ArgumentTypeError(f"must be at least {low} and finite, got {text}")
        return value

    convert.__name__ = kind.__name__
    return convert


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options]", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # fmt: off
    add = parser.add_argument_group("network").add_argument
    add("--norm", choices=NORMS, default="batch", help="norm after each convolution (default %(default)s)")
    add("--api", choices=CREATE, default="linen",
        help="which of the three versions of the same network (default %(default)s)")
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=at_least(1, int), default=30, metavar="N",
        help="passes over the training images (default %(default)s)")
    add("--batch-size", type=at_least(1, int), metavar="N",
        help="images per step on all devices together, a multiple of their number (default 64, or what comes near)")
    add("--learning-rate", type=at_least(0, float), default=3e-3, metavar="R",
        help="of AdamW: the highest, after one epoch of warm-up, before a decay to 0 (default %(default)s)")
    add("--weight-decay", type=at_least(0, float), default=0.5, metavar="R", help="of AdamW (default %(default)s)")
    add("--shift", type=at_least(0, int), default=1, metavar="N",
        help="training images are moved at random by up to N pixels (default %(default)s)")
    add("--seed", type=at_least(0, int), default=0, metavar="N",
        help="of weights, order and shifts; the split is always the same (default %(default)s)")
    add = parser.add_argument_group("files").add_argument
    add("--output", type=Path, default=Path("runs/digits"), metavar="FOLDER",
        help="where the figure goes (default %(default)s)")
    add("--data", type=Path, metavar="FOLDER",
        help="your own images, one subfolder per class; of each, a tenth validates and a fifth is for the test")
    add("--image-size", type=at_least(1, int), default=32, metavar="N",
        help="with --data: height and width that images are resized to (default %(default)s)")
    add("--grayscale", action="store_true", help="with --data: one channel instead of three")
    # fmt: on
    return parser.parse_args(arguments)


def load(args: argparse.Namespace) -> Dataset:
    """The images; ValueError if they, or batches of the given size, are not available."""
    if args.data:
        data = load_folder(args.data, args.image_size, args.grayscale, validation_fraction=VALIDATION)
    else:
        data = load_digits(validation_fraction=VALIDATION)
    devices = jax.device_count()
    if args.batch_size is None:
        args.batch_size = max(1, min(64, len(data.train_x)) // devices) * devices
    if args.batch_size > len(data.train_x):
        raise ValueError(
            f"--batch-size must be at most {len(data.train_x)}, the number of training images, got {args.batch_size}"
        )
    if args.batch_size % devices:
        raise ValueError(f"--batch-size must be a multiple of {devices}, the number of devices, got {args.batch_size}")
    return data


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    try:
        data = load(args)
        args.output.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    images = "x".join(map(str, data.train_x.shape[1:]))
    print(
        f"{len(data.train_x)} training, {len(data.validation_x)} validation and {len(data.test_x)} test images, "
        f"{images}, {len(data.classes)} classes; "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}; norm: {args.norm}, api: {args.api}"
    )
    steps = args.epochs * (len(data.train_x) // args.batch_size)
    if steps < ENOUGH:
        print(
            f"warning: only {steps} training steps, fewer than {ENOUGH}, are likely to end too early: "
            "try a higher --epochs or a lower --batch-size"
        )
    start = time.perf_counter()
    try:
        probabilities, curves = train(data, args)
    except FloatingPointError as error:
        sys.exit(f"error: {error}")
    title = f"test accuracy {(probabilities.argmax(-1) == data.test_y).mean():.2%}"
    how = " with the running statistics" if args.norm == "batch" else ""
    print(f"{title}{how}, after {time.perf_counter() - start:.0f} s")
    figure = training_figure(data, probabilities, curves, f"norm: {args.norm}, api: {args.api}: {title}", args.norm)
    save(figure, args.output / "training.png")


if __name__ == "__main__":
    main()
