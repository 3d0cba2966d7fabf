"""Swings up a pendulum with a critic that has batch norm or renorm and no target network, as CrossQ does.

    python examples/rl_critic.py           # four ways to train a critic, eight runs each
    python examples/rl_critic.py --fast    # a sketch: two runs of each, a third of the steps
    python examples/rl_critic.py --tune    # the search for the learning rates, on seeds of its own

A critic learns from stored transitions (s, a, r, s') that Q(s, a) = r + discount * Q(s', a'), where a' is what the
actor would do in s' now. Both sides of the equation move with each step. A target network, a copy of the critic that
follows it slowly, holds the right side still, and slows learning down. CrossQ (Bhatt et al. 2024) drops the copy: its
critic has batch norm, and takes (s, a) and (s', a') as one batch, so that both sides are normalized with the same
statistics. The actor sees the critic in evaluation mode, with the running statistics. Batch renorm (Ioffe 2017) trains
the critic on these values too, within limits. It needs a warm-up, until the running statistics are of more than a few
batches: the limits are schedules, with which it is batch norm for 500 updates and is let free over the next 1000.

What 32 runs of each show on this pendulum (`--seeds 32`, some minutes), each critic at the rate that was best on other
seeds: without a target network batch norm and renorm learn faster than no norm (mean return over training, less that of
no norm: +228 ± 110 and +294 ± 113). Compared with no norm and a target network, batch norm makes no measurable
difference (-21 ± 37), and renorm is a little ahead (+45 ± 43). Renorm is the first above -200, after 1750 steps in the
median, against 2250 of these two and 3375 of no norm alone, which is also the only one that does not stay there: at the
end it has -434 ± 172, the others -164 to -182. Training amplifies every rounding: eight runs differ by more, from one
version of JAX to the next too.

Prints a table and saves one figure. The agent is in `rl_agent.py`, the pendulum in `pendulum.py`.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from claims.claim import difference, interval
from figures import BLACK, BLUE, GREEN, ORANGE, STYLE, save
from rl_agent import Arm, begin, returns, train

ARMS = {
    "no norm": Arm("none", target_network=False),
    "no norm, target network": Arm("none", target_network=True),
    "batch norm": Arm("batch", target_network=False),
    "batch renorm": Arm("renorm", target_network=False),
}
COLOURS = dict(zip(ARMS, (BLACK, ORANGE, BLUE, GREEN), strict=True))
RATES = {"no norm": 0.003, "no norm, target network": 0.01, "batch norm": 0.001, "batch renorm": 0.003}
"""of critic and actor: what `--tune` found"""
CANDIDATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
TUNING_SEEDS = range(100, 106)
EVERY = 250
"""steps between evaluations"""
SOLVED = -200


def measure(name: str, seeds, rates, steps: int, bar: tqdm) -> np.ndarray:
    """Returns [runs, evaluations] of runs with these seeds and learning rates."""
    bar.set_description(f"{name}: compiling")
    keys = jax.vmap(jax.random.key)(jnp.array(seeds))
    episodes = jax.random.split(jax.random.key(0), 10)
    runs = jax.jit(jax.vmap(lambda key, rate: begin(ARMS[name], steps, key, rate)))(keys, jnp.array(rates))
    curve = []
    for first in range(0, steps, EVERY):
        runs = train(ARMS[name], EVERY, runs, jnp.array(first), keys)
        curve.append(np.asarray(returns(runs[1].actor, episodes)))
        bar.set_description(name)
        bar.update(EVERY)
    return np.stack(curve, -1)


def tune(steps: int) -> Table:
    """The mean return over a training, for each learning rate."""
    table = Table(title=f"mean return over {steps} steps, {len(TUNING_SEEDS)} seeds from {TUNING_SEEDS[0]} on")
    table.add_column("critic")
    for rate in CANDIDATES:
        table.add_column(f"{rate:g}", justify="right")
    with tqdm(total=len(ARMS) * steps, unit="step") as bar:
        for name in ARMS:
            seeds, rates = np.meshgrid(TUNING_SEEDS, CANDIDATES, indexing="ij")
            scores = measure(name, seeds.ravel(), rates.ravel(), steps, bar).mean(-1).reshape(seeds.shape)
            table.add_row(name, *(interval(v).number(0) for v in scores.T))
    return table


def steps_to_solve(curves: np.ndarray) -> np.ndarray:
    """Steps [runs] until a run first returns more than SOLVED; infinity where it never does."""
    solved = curves > SOLVED
    return np.where(solved.any(-1), (solved.argmax(-1) + 1) * EVERY, np.inf)


def report(curves: dict[str, np.ndarray]) -> Table:
    """What came of each way to train."""
    table = Table()
    for column in ("critic", "learning rate", f"steps to {SOLVED} (median)", "return at the end", "mean return"):
        table.add_column(column, justify="left" if column == "critic" else "right")
    for name, values in curves.items():
        steps = np.median(steps_to_solve(values))
        table.add_row(
            name, f"{RATES[name]:g}", f"{steps:.0f}" if np.isfinite(steps) else "not reached",
            interval(values[:, -1]).number(0), interval(values.mean(-1)).number(0),
        )  # fmt: skip
    return table


def draw(curves: dict[str, np.ndarray], steps: int):
    """Mean and 95 % interval of the return over the runs, by steps."""
    style: Any = STYLE
    with mpl.rc_context(style):
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        at = np.arange(EVERY, steps + 1, EVERY)
        for name, values in curves.items():
            mean, half = np.array([interval(v) for v in values.T]).T
            axes.plot(at, mean, color=COLOURS[name], label=name)
            axes.fill_between(at, mean - half, mean + half, color=COLOURS[name], alpha=0.2, linewidth=0)
        axes.set(
            xlabel="steps of the pendulum", ylabel="return of an episode", ylim=(-1750, 0),
            title=f"Mean of {len(next(iter(curves.values())))} runs and its 95 % interval",
        )  # fmt: skip
        axes.legend(loc="lower right")
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--seeds", type=int, default=8, metavar="N", help="runs of each critic (default %(default)s)")
    add(
        "--steps", type=int, default=5000, metavar="N", help=f"of each run, a multiple of {EVERY} (default %(default)s)"
    )
    add("--fast", action="store_true", help="2 runs of 1500 steps: a sketch")
    add("--tune", action="store_true", help="print what each learning rate gives, and stop")
    add(
        "--output",
        type=Path,
        default=Path("runs/rl_critic"),
        metavar="FOLDER",
        help="where the figure goes (default %(default)s)",
    )
    args = parser.parse_args(arguments)
    seeds, steps = (2, 1500) if args.fast else (args.seeds, args.steps)
    if seeds < 2:
        parser.error(f"--seeds must be at least 2, got {seeds}")
    if steps < EVERY or steps % EVERY:
        parser.error(f"--steps must be a multiple of {EVERY}, got {steps}")
    try:
        args.output.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    except OSError as error:
        parser.error(f"--output: {error}")
    console, start = Console(), time.perf_counter()
    try:
        if args.tune:
            console.print(tune(steps))
            return
        curves = {}
        with tqdm(total=len(ARMS) * steps, unit="step") as bar:
            for name in ARMS:
                curves[name] = measure(name, range(seeds), [RATES[name]] * seeds, steps, bar)
    except KeyboardInterrupt:
        sys.exit("\nstopped")
    console.print(report(curves))
    for other in ("no norm", "no norm, target network"):
        for name in ("batch norm", "batch renorm"):
            gain = difference(curves[name].mean(-1), curves[other].mean(-1))
            print(f"Mean return, seed by seed, of '{name}' less that of '{other}': {gain.mean:+.0f} ± {gain.half:.0f}")
    print(f"{seeds} runs each, ± is half of a 95 % interval; {time.perf_counter() - start:.0f} s")
    if args.fast:
        print("This is a sketch: two runs do not show which critic learns faster.")
    save(draw(curves, steps), args.output / "returns.png")


if __name__ == "__main__":
    main()
