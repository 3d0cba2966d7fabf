"""Claim 2: higher learning rates, and less sensitivity to the initial weights."""

import time
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

from claims.claim import Finding, Results, Setting, interval
from claims.network import Network
from claims.training import Plan, Runs, train

TITLE = "Learning rate and initialization"
CLAIM = "Mean and variance of the mini-batch allow higher learning rates, and less sensitivity to the initial weights."
RATES = tuple(2.0**k for k in range(-10, 4))
SCALES = tuple(2.0**k for k in range(-5, 6))
ENOUGH = 0.9
NETWORKS = {"batch": Network(norm="batch"), "none": Network(norm="none")}


def parts(setting: Setting):
    plan = Plan(setting.steps(200), evaluations=1)
    rates, scales = setting.some(RATES), setting.some(SCALES)

    def measured(network):
        def measure():
            out = train(network, plan, setting.data, Runs.grid(setting.seeds, rates, scales))
            accuracy = np.nan_to_num(np.asarray(out.test_accuracy)[:, -1])
            return {
                "rates": rates,
                "scales": scales,
                "accuracy": accuracy.reshape(setting.seeds, len(rates), len(scales)),
            }

        return measure

    def saved():
        """25 runs in one program, and one after the other with a program for one."""
        runs = Runs.grid(5, RATES[2:12:2])
        network, plan = NETWORKS["batch"], Plan(setting.steps(200), evaluations=1)
        single = [Runs(*(v[i : i + 1] for v in runs)) for i in range(len(runs.seed))]

        def timed(work):
            jax.block_until_ready(work())
            start = time.perf_counter()
            found = jax.block_until_ready(work())
            return found, time.perf_counter() - start

        together, seconds_together = timed(lambda: train(network, plan, setting.data, runs).test_accuracy)
        apart, seconds_apart = timed(lambda: [train(network, plan, setting.data, run).test_accuracy for run in single])
        difference = np.abs(np.asarray(together) - np.concatenate([np.asarray(a) for a in apart])).max()
        return {"runs": len(single), "ratio": seconds_apart / seconds_together, "difference": float(difference)}

    return {**{name: measured(network) for name, network in NETWORKS.items()}, "vmap": saved}


def _trains(result) -> np.ndarray:
    """[seeds, rates, scales] bool."""
    return np.asarray(result["accuracy"]) >= ENOUGH


def _octaves(result) -> tuple[np.ndarray, np.ndarray]:
    """[seeds]: how many octaves of learning rate train at the usual scale, and of scale at the best learning rate."""
    trains = _trains(result)
    rates, scales = (np.log2(result[k]) for k in ("rates", "scales"))
    usual = int(np.abs(scales).argmin())
    step_rate, step_scale = rates[1] - rates[0], scales[1] - scales[0]
    return trains[:, :, usual].sum(1) * step_rate, trains.sum(2).max(1) * step_scale


def finding(results: Results) -> Finding:
    share = {name: _trains(results[name]).mean((1, 2)) for name in NETWORKS}
    rates, scales = ({name: _octaves(results[name])[i] for name in NETWORKS} for i in (0, 1))
    highest = {
        name: max([r for i, r in enumerate(results[name]["rates"]) if _trains(results[name])[:, i].all(0).any()] or [0])
        for name in NETWORKS
    }
    wider = interval(share["batch"] - share["none"])
    holds = wider.mean - wider.half > 0
    higher = highest["batch"] > highest["none"]
    return Finding(
        f"share of the map (learning rate x scale of the initial weights) that ends above {ENOUGH:.0%} test accuracy",
        f"{interval(share['batch']).percent()} of the map with, {interval(share['none']).percent()} without; octaves "
        f"of learning rate {interval(rates['batch']).number(1)} against {interval(rates['none']).number(1)}, of scale "
        f"{interval(scales['batch']).number(1)} against {interval(scales['none']).number(1)}; highest rate that trains "
        f"with all seeds: {highest['batch']:g} against {highest['none']:g}",
        "holds" if holds and higher else "holds in part: " + ("a wider map" if holds else "no wider map"),
    )


def draw(results: Results):
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained", sharey=True)
    image: Any = None
    for ax, (name, title) in zip(axes, {"batch": "with batch norm", "none": "without"}.items(), strict=True):
        r = results[name]
        accuracy = 100 * np.asarray(r["accuracy"]).mean(0).T
        image = ax.imshow(accuracy, origin="lower", cmap="cividis", vmin=0, vmax=100, aspect="auto")
        columns, rows = np.arange(len(r["rates"])), np.arange(len(r["scales"]))
        ax.contour(columns, rows, accuracy, levels=[100 * ENOUGH], colors="white", linewidths=1.5)
        ax.set_xticks(columns[::3], [f"$2^{{{round(np.log2(v))}}}$" for v in r["rates"][::3]])
        ax.set_yticks(rows[::2], [f"$2^{{{round(np.log2(v))}}}$" for v in r["scales"][::2]])
        ax.set(title=title, xlabel="learning rate")
        ax.grid(visible=False)
    axes[0].set_ylabel("scale of the initial weights\n[multiples of He's]")
    figure.colorbar(image, ax=axes, label="test accuracy [%], mean of the seeds")
    return figure
