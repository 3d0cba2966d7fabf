"""Claim 1: batch norm stands after the linear map and before the activation."""

import matplotlib.pyplot as plt
import numpy as np

from claims.claim import Finding, Results, Setting, best, interval
from claims.network import Network
from claims.training import Plan, Runs, steps_to, train
from figures import BLUE, GREEN, ORANGE

TITLE = "Where it stands"
CLAIM = "It is placed after the linear map and before the activation."
NETWORKS = {
    "before": Network("conv", 4, 16),
    "after": Network("conv", 4, 16, norm_last=True),
    "none": Network("conv", 4, 16, norm="none"),
}
STYLES = {"before": (BLUE, "o-"), "after": (ORANGE, "s--"), "none": (GREEN, "^:")}
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
TARGET = 0.9


def parts(setting: Setting):
    plan = Plan(setting.steps(200), evaluations=10)
    rates = setting.some(RATES)

    def measured(network):
        def measure():
            out = train(network, plan, setting.data, Runs.grid(setting.seeds, rates))
            shape = (setting.seeds, len(rates))
            accuracy = np.asarray(out.test_accuracy)
            return {
                "rates": rates,
                "accuracy": accuracy[:, -1].reshape(shape),
                "steps": steps_to(accuracy, TARGET, plan).reshape(shape),
            }

        return measure

    return {name: measured(network) for name, network in NETWORKS.items()}


def finding(results: Results) -> Finding:
    at = {name: best(r["accuracy"]) for name, r in results.items()}
    top = {name: np.asarray(r["accuracy"])[:, at[name]] for name, r in results.items()}
    ahead = interval(top["before"] - top["after"])
    gain = interval(top["before"] - top["none"])
    if ahead.mean - ahead.half > 0:
        verdict = "holds: before the activation is better than after it"
    elif ahead.mean + ahead.half < 0:
        verdict = "does not hold here: after the activation is better; either is better than none"
    else:
        verdict = "holds in part: before or after the activation makes no difference that these seeds show"
    if gain.mean - gain.half <= 0:
        verdict += "; the gain over none is within the noise"
    rates = {name: results[name]["rates"][at[name]] for name in results}
    return Finding(
        "test accuracy of a CNN at each one's best learning rate: batch norm before the activation, after it, none",
        f"{interval(top['before']).percent()} before (rate {rates['before']}), {interval(top['after']).percent()} "
        f"after ({rates['after']}), {interval(top['none']).percent()} without ({rates['none']})",
        verdict,
    )


def draw(results: Results):
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    labels = {"before": "before the activation", "after": "after it", "none": "none"}
    for name, r in results.items():
        colour, style = STYLES[name]
        values = [interval(100 * v) for v in np.asarray(r["accuracy"]).T]
        mean, half = (np.array([getattr(v, k) for v in values]) for k in ("mean", "half"))
        axes[0].plot(r["rates"], mean, style, color=colour, label=labels[name])
        axes[0].fill_between(r["rates"], mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
        axes[1].plot(r["rates"], np.median(r["steps"], 0), style, color=colour)  # where most seeds get there
    axes[0].set(xscale="log", xlabel="learning rate", ylabel="test accuracy [%]", ylim=(0, 102))
    axes[1].set(xscale="log", xlabel="learning rate", ylabel=f"steps to {TARGET:.0%}, median of the seeds")
    axes[1].set(ylim=(0, None), xlim=axes[0].get_xlim())
    axes[0].legend(loc="lower center")
    return figure
