"""Claim 6: saturating activations become usable, and ReLU units do not die."""

import functools

import jax
import matplotlib.pyplot as plt
import numpy as np

from claims import network as net
from claims.claim import Finding, Results, Setting, best, interval
from claims.network import Network
from claims.training import Plan, Runs, train
from figures import BLUE, ORANGE

TITLE = "Freedom of activation"
CLAIM = "Saturating activations become usable, and ReLU units do not die."
ACTIVATIONS = ("sigmoid", "tanh", "relu", "leaky_relu")
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
DEPTH = 10


def parts(setting: Setting):
    plan = Plan(setting.steps(300), evaluations=1)
    rates = setting.some(RATES)

    def measured(network):
        @jax.jit
        @functools.partial(jax.vmap, in_axes=(0, 0, None))
        def dead_share(params, batch_stats, x):
            out = net.apply(network, params, batch_stats, x, train=False)
            idle = [(~(h > 0)).all(0).mean() for h in out.outputs]  # in a run that diverged, all of them
            return sum(idle) / len(idle)

        def measure():
            out = train(network, plan, setting.data, Runs.grid(setting.seeds, rates))
            shape = (setting.seeds, len(rates))
            dead = dead_share(out.params, out.batch_stats, setting.data.train_x)
            found = {"accuracy": out.test_accuracy[:, -1], "dead": dead}
            return {"rates": rates} | {k: np.asarray(v).reshape(shape) for k, v in found.items()}

        return measure

    return {
        f"{activation}, {norm}": measured(Network(depth=DEPTH, norm=norm, activation=activation))
        for activation in ACTIVATIONS
        for norm in ("batch", "none")
    }


def _at_best(result, name: str) -> np.ndarray:
    return np.asarray(result[name])[:, best(result["accuracy"])]


def finding(results: Results) -> Finding:
    def accuracy(activation, norm):
        return interval(_at_best(results[f"{activation}, {norm}"], "accuracy"))

    def dead(norm):
        """At the highest learning rate, where units die."""
        return interval(np.asarray(results[f"relu, {norm}"]["dead"])[:, -1])

    gain = interval(_at_best(results["sigmoid, batch"], "accuracy") - _at_best(results["sigmoid, none"], "accuracy"))
    usable = gain.mean - gain.half > 0 and accuracy("sigmoid", "batch").mean > 0.9
    alive = dead("batch").mean + dead("batch").half < dead("none").mean - dead("none").half
    texts = [
        f"{a.replace('_', ' ')} {accuracy(a, 'batch').percent()} with, {accuracy(a, 'none').percent()} without"
        for a in ACTIVATIONS
    ]
    rate = results["relu, batch"]["rates"][-1]
    return Finding(
        f"test accuracy of a dense network of {DEPTH} layers at each one's best learning rate; share of ReLU units "
        f"that are zero on all training images, at learning rate {rate:g}",
        f"{'; '.join(texts)}; dead units {dead('batch').percent()} with, {dead('none').percent()} without",
        {
            (True, True): "holds",
            (True, False): "holds in part: sigmoid becomes usable; no fewer ReLU units die",
            (False, True): "holds in part: fewer ReLU units die; sigmoid stays unusable",
            (False, False): "does not hold here",
        }[bool(usable), bool(alive)],
    )


def draw(results: Results):
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    places = np.arange(len(ACTIVATIONS))
    for i, (norm, colour, label) in enumerate((("batch", BLUE, "with batch norm"), ("none", ORANGE, "without"))):
        values = [interval(100 * _at_best(results[f"{a}, {norm}"], "accuracy")) for a in ACTIVATIONS]
        axes[0].bar(
            places + 0.4 * i - 0.2, [v.mean for v in values], 0.38, yerr=[v.half for v in values],
            color=colour, label=label, hatch="//" * i, edgecolor="white", error_kw={"linewidth": 1},
        )  # fmt: skip
        r = results[f"relu, {norm}"]
        values = [interval(v) for v in 100 * np.asarray(r["dead"]).T]
        axes[1].errorbar(r["rates"], [v.mean for v in values], [v.half for v in values], color=colour, marker="os"[i])
    axes[0].set_xticks(places, [a.replace("_", "\n") for a in ACTIVATIONS])
    axes[0].grid(axis="x", visible=False)
    axes[0].set(ylabel="test accuracy [%]", title="at the best learning rate", ylim=(0, 102))
    axes[1].set(
        ylabel="dead ReLU units [%]",
        xlabel="learning rate",
        xscale="log",
        title="zero on all training images",
        ylim=(-2, 102),
    )
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure
