"""The same network on 1, 2, 4 and 8 devices: what synchronized batch norm preserves and local batch norm loses.

    python examples/sync_batch_norm.py            # 8 simulated CPU devices where there are no real ones
    python examples/sync_batch_norm.py --fast     # a first look in half a minute

A batch of 32 of scikit-learn's digits is split over the devices, 4 examples each on 8 of them, and a small
convolutional network is trained on it in three ways:

- synchronized: every layer normalizes with the statistics of the whole batch, so the number of devices changes
  nothing, and all curves are the same;
- local: every device normalizes with its own examples, and the fewer it has, the further the curve drifts;
- in groups: pairs of devices share their statistics.

Each of them is written twice, with `jax.shard_map` (`axis_name`, `axis_index_groups`) and with plain `jax.jit` over a
sharded batch, where batch norm is synchronized automatically and `virtual_batch_size` makes it local.
The table and the figure are saved in `--output`.
"""

import argparse
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

# Has no effect where JAX finds real accelerators.
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import matplotlib as mpl
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from tqdm import tqdm

import jaxbn.linen

GROUP = 2
"""number of devices in a group"""
OPTIMIZER = optax.sgd(0.05, momentum=0.9)


class Network(nn.Module):
    """[n, 8, 8, 1] images -> [n, 10] logits."""

    norm: dict[str, Any]
    """options of batch norm: how the batch is split"""

    @nn.compact
    def __call__(self, x, *, train: bool):
        for features in (16, 32):
            x = nn.Conv(features, (3, 3), strides=2, use_bias=False)(x)
            x = jaxbn.linen.BatchNorm(not train, momentum=0.9, activation="relu", **self.norm)(x)
        return nn.Dense(10)(x.mean((1, 2)))


def norm_options(statistics: str, through: str, devices: int, batch_size: int) -> dict[str, Any]:
    """How batch norm is told whose statistics to use: this is the only difference between the runs."""
    group = min(GROUP, devices)
    if through == "jit":
        sizes = {"synchronized": None, "local": batch_size // devices, "in groups": batch_size // devices * group}
        return {"virtual_batch_size": sizes[statistics]}
    if statistics == "local":
        return {}
    groups = tuple(tuple(range(i, i + group)) for i in range(0, devices, group))
    return {"axis_name": "batch", "axis_index_groups": groups if statistics == "in groups" else None}


def update(network, state, images, labels, axis_name=None):
    """One step of gradient descent on one device's examples; everything but batch norm is as usual."""
    params, batch_stats, opt_state = state

    def loss_of(params):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updates = network.apply(variables, images, train=True, mutable=["batch_stats"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss if axis_name is None else jax.lax.pmean(loss, axis_name), updates["batch_stats"]

    (loss, batch_stats), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), batch_stats, opt_state), loss


def update_through_shard_map(network, mesh, state, images, labels):
    """The same with the batch split by hand. Statistics that are not synchronized differ: each device has a row."""

    def of_device(state, images, labels):
        params, batch_stats, opt_state = state
        state = params, jax.tree.map(lambda s: s[0], batch_stats), opt_state
        (params, batch_stats, opt_state), loss = update(network, state, images, labels, axis_name="batch")
        return (params, jax.tree.map(lambda s: s[None], batch_stats), opt_state), loss

    specs = (P(), P("batch"), P())
    split = jax.shard_map(of_device, mesh=mesh, in_specs=(specs, P("batch"), P("batch")), out_specs=(specs, P()))
    return split(state, images, labels)


def train(statistics: str, through: str, devices: int, *, steps: int, batch_size: int = 32, seed: int = 0):
    """Trains on the first `devices` devices.

    Args:
      statistics: 'synchronized', 'local' or 'in groups'.
      through: 'shard_map' or 'jit'.
      devices: how many devices the batch is split over.
      steps: number of training steps.
      batch_size: that of all devices together.
      seed: that of the weights and of the order of the examples.

    Returns:
      The weights; the running statistics (of all devices together); the loss of each step [steps]; the accuracy on
      held-out examples.
    """
    images, labels = map(np.asarray, load_digits(return_X_y=True))
    images, labels = (images.reshape(-1, 8, 8, 1) / 16).astype(np.float32), labels.astype(np.int32)
    network = Network(norm_options(statistics, through, devices, batch_size))
    variables = jax.jit(partial(network.init, train=False))(jax.random.key(seed), images[:1])
    state = variables["params"], variables["batch_stats"], OPTIMIZER.init(variables["params"])
    mesh = jax.make_mesh((devices,), ("batch",), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,))
    everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("batch"))
    if through == "jit":
        step = jax.jit(partial(update, network), in_shardings=(everywhere, split, split), out_shardings=everywhere)
    else:
        step = jax.jit(partial(update_through_shard_map, network, mesh))
        params, batch_stats, opt_state = state
        rows = jax.tree.map(lambda s: np.broadcast_to(s, (devices, *s.shape)), batch_stats)
        state = jax.device_put((params, rows, opt_state), (everywhere, split, everywhere))
    order = np.random.default_rng(seed)
    kept = len(images) * 3 // 4
    losses = []
    for _ in range(steps):
        rows = order.permutation(kept)[:batch_size]
        state, loss = step(state, *jax.device_put((images[rows], labels[rows]), split))
        losses.append(loss)
    params, batch_stats, _ = jax.device_get(state)
    if through == "shard_map":
        batch_stats = jaxbn.merge_batch_stats(batch_stats)
    evaluate = jax.jit(partial(network.apply, train=False))
    logits = evaluate({"params": params, "batch_stats": batch_stats}, images[kept:])
    return params, batch_stats, np.array(jax.device_get(losses)), float((logits.argmax(-1) == labels[kept:]).mean())


def runs(counts: list[int]):
    """(statistics, through, devices) of all runs, the single device first."""
    yield "synchronized", "jit", 1
    for through in ("jit", "shard_map"):
        for statistics in ("synchronized", "in groups", "local"):
            yield from ((statistics, through, n) for n in counts if n > (GROUP if statistics == "in groups" else 1))


def draw(results: dict, path: Path) -> None:
    """The curves on the left; on the right, how far each is from that of the single device."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    # Okabe and Ito's colours, which the colour-blind can tell apart; dashes tell the number of devices.
    colours = {"synchronized": "#0072B2", "in groups": "#E69F00", "local": "#D55E00"}
    dashes = {1: "-", 2: "--", 4: "-.", 8: ":"}
    single = results["synchronized", "jit", 1][0]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for (statistics, through, devices), (losses, _) in results.items():
        if through == "shard_map" or devices == 1:
            style = {"color": colours[statistics], "linestyle": dashes.get(devices, "-"), "linewidth": 1.5}
            if statistics == "in groups":
                # Groups of two devices are the halves of a batch on four: their curve lies on a local one.
                style |= {
                    "linestyle": "",
                    "marker": "os"[devices > 4],
                    "markersize": 4,
                    "fillstyle": "none",
                    "markevery": 5,
                }
            steps = np.arange(1, len(losses) + 1)
            left.plot(steps, losses, label=f"{statistics}, {devices}", **style)
            if devices > 1:
                right.semilogy(steps, np.maximum(np.abs(losses - single), 1e-9), **style)
    left.set(xlabel="training step", ylabel="training loss", title="Synchronized: one curve")
    right.set(
        xlabel="training step",
        ylabel="|loss - loss on one device|",
        title="Distance from one device (0 is drawn as 1e-9)",
    )
    left.legend(title="statistics, devices", fontsize="small", ncols=2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv=None) -> None:
    """Runs everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="training steps of each run (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="of all devices together (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches (default: %(default)s)")
    parser.add_argument("--fast", action="store_true", help="20 steps, on 1 and 4 devices")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/sync_batch_norm"), help="folder (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    steps = 20 if args.fast else args.steps
    counts = [n for n in ((1, 4) if args.fast else (1, 2, 4, 8)) if n <= jax.device_count()]
    if args.batch_size % counts[-1]:
        parser.error(f"--batch-size {args.batch_size} must be a multiple of the number of devices, {counts[-1]}")
    try:
        args.output.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    except OSError as error:
        parser.error(f"--output: {error}")
    results = {}
    for run in tqdm(list(runs(counts)), desc="training"):
        *_, losses, accuracy = train(*run, steps=steps, batch_size=args.batch_size, seed=args.seed)
        results[run] = losses, accuracy
    single = results["synchronized", "jit", 1][0]
    table = Table(title=f"{args.batch_size} examples a step on {jax.devices()[0].platform}, after {steps} steps")
    for column in ("statistics", "through", "devices", "loss", "largest distance from one device", "accuracy"):
        table.add_column(column, justify="left" if column in ("statistics", "through") else "right")
    for (statistics, through, devices), (losses, accuracy) in results.items():
        distance = f"{np.abs(losses - single).max():.1e}"
        table.add_row(statistics, through, str(devices), f"{losses[-1]:.4f}", distance, f"{accuracy:.1%}")
    draw(results, args.output / "curves.png")
    curves = {", ".join(map(str, run)): losses.tolist() for run, (losses, _) in results.items()}
    (args.output / "curves.json").write_text(json.dumps(curves))
    console = Console()
    console.print(table)
    console.print(f"Figure and curves: {args.output}")


if __name__ == "__main__":
    main()
