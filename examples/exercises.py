"""Exercises with batch norm: each changes one thing, trains for a minute, and prints the result.

    python examples/exercises.py bias                 # a bias before batch norm: what becomes of it?
    python examples/exercises.py mean_only            # subtract the mean, and do not divide
    python examples/exercises.py variance_only        # divide by the standard deviation, and subtract nothing
    python examples/exercises.py no_scale_and_bias    # scale 1 and bias 0 throughout
    python examples/exercises.py batch_of_two         # batches of 2, four times the steps

A dense network of six layers, trained on scikit-learn's digits, five splits and seeds at each of five learning rates.
"""

import argparse
import os
import sys

import numpy as np
from rich.console import Console
from rich.table import Table

from claims.claim import interval
from claims.network import Network
from claims.training import Plan, Runs, train
from data import Images, read_digits
from study_page.guide import AFTERWARDS

RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
SEEDS = range(5)
BATCH_NORM = Network()
EXERCISES: dict[str, dict[str, tuple[Network, int]]] = {
    # name: {arm: (network, batch size)}
    "bias": {"batch norm": (BATCH_NORM, 64), "and a bias before it": (Network(bias=True), 64)},
    "mean_only": {
        "batch norm": (BATCH_NORM, 64),
        "the mean only": (Network(statistics="mean"), 64),
        "no norm": (Network(norm="none"), 64),
    },
    "variance_only": {
        "batch norm": (BATCH_NORM, 64),
        "the variance only": (Network(statistics="variance"), 64),
        "no norm": (Network(norm="none"), 64),
    },
    "no_scale_and_bias": {"batch norm": (BATCH_NORM, 64), "scale 1, bias 0": (Network(affine=False), 64)},
    "batch_of_two": {
        "batch norm, batches of 64": (BATCH_NORM, 64),
        "batch norm, batches of 2": (BATCH_NORM, 2),
        "layer norm, batches of 2": (Network(norm="layer"), 2),
    },
}


def measure(network: Network, size: int, images: Images, steps: int) -> tuple[np.ndarray, float]:
    """Test accuracy [seeds, rates], and the largest change of a bias before a norm, NaN where there is none."""
    plan = Plan(steps, size, evaluations=1)
    out = train(network, plan, images, Runs.grid(SEEDS, RATES))
    biases = [np.abs(layer["bias"]).max() for layer in out.params[:-1] if "bias" in layer and "norm" in layer]
    accuracy = np.where(out.diverged, np.nan, out.test_accuracy)
    return accuracy.reshape(len(SEEDS), len(RATES)), float(max(biases, default=np.nan))


def cell(accuracy: np.ndarray) -> str:
    """The accuracy [seeds] at one rate, and how many runs diverged, which are NaN."""
    diverged = int(np.isnan(accuracy).sum())
    if diverged > len(accuracy) - 2:  # too few for an interval
        return f"{diverged} of {len(accuracy)} diverged"
    return interval(100 * accuracy).number(1) + (f", {diverged} diverged" if diverged else "")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exercise", choices=list(EXERCISES))
    parser.add_argument("--steps", type=int, default=400, help="of training, with batches of 64 (default %(default)s)")
    args = parser.parse_args(arguments)
    if args.steps < 1:
        parser.error(f"--steps must be at least 1, got {args.steps}")
    images = read_digits()
    table = Table(title="test accuracy [%] by learning rate, ± 95 % interval", title_justify="left")
    table.add_column("network")
    for rate in RATES:
        table.add_column(f"{rate:g}", justify="right")
    notes = []
    try:
        for name, (network, size) in EXERCISES[args.exercise].items():
            print(f"{name}: compiles and trains {len(SEEDS) * len(RATES)} networks", file=sys.stderr)
            accuracy, bias = measure(network, size, images, args.steps * (4 if size < 64 else 1))
            table.add_row(name, *map(cell, accuracy.T))
            if np.isfinite(bias):
                notes.append(f"The largest bias before a norm, which began at 0, ended at {bias:.1e}.")
    except KeyboardInterrupt:
        sys.exit("\nstopped")
    Console(width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "120"))).print(table)
    print("\n".join([*notes, AFTERWARDS[args.exercise]]))


if __name__ == "__main__":
    main()
