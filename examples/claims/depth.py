"""Claim 5: no vanishing and no exploding gradients, so that deeper networks train."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from claims.claim import Finding, Results, Setting, interval
from claims.network import Network
from claims.training import Plan, Runs, loss_of, start, train
from figures import BLUE, GREEN, ORANGE, RED

TITLE = "Depth"
CLAIM = "Vanishing and exploding gradients are prevented, so that deeper networks train."
DEPTHS = (2, 5, 10, 20, 35, 50)
RATES = (0.003, 0.01, 0.03, 0.1)
SCALES = {"He's weights": 1.0, "weights too small (1/2)": 0.5, "weights too large (2)": 2.0}
WIDTH = 32
ENOUGH = 0.9


def parts(setting: Setting):
    plan = Plan(setting.steps(300), evaluations=1)
    depths, rates = setting.some(DEPTHS), setting.some(RATES)
    deepest = max(depths)

    def gradients(norm):
        network = Network(depth=deepest, width=WIDTH, norm=norm)

        @jax.jit
        @jax.vmap
        def norms(params, batch_stats):
            x, y = setting.data.train_x[:256], setting.data.train_y[:256]
            grads = jax.grad(lambda p: loss_of(network, p, batch_stats, x, y)[0])(params)
            pairs = zip(grads, params, strict=True)
            return jnp.stack([jnp.linalg.norm(g["kernel"]) / jnp.linalg.norm(p["kernel"]) for g, p in pairs])

        def measure():
            runs = Runs.grid(setting.seeds, [0.0], SCALES.values())
            found = np.asarray(norms(*start(network, setting.data, runs)))
            return {"norms": found.reshape(setting.seeds, len(SCALES), -1), "depth": deepest}

        return measure

    def accuracies(norm, depth):
        def measure():
            network = Network(depth=depth, width=WIDTH, norm=norm)
            out = train(network, plan, setting.data, Runs.grid(setting.seeds, rates))
            return {"accuracy": np.asarray(out.test_accuracy)[:, -1].reshape(setting.seeds, -1), "rates": rates}

        return measure

    found = {f"gradients, {norm}": gradients(norm) for norm in ("batch", "none")}
    for depth in depths:
        found |= {f"depth {depth}, {norm}": accuracies(norm, depth) for norm in ("batch", "none")}
    return found


def _by_depth(results: Results, norm: str):
    """Depths, and the accuracy [seeds] of each at its best learning rate."""
    named = {int(k.split()[1].rstrip(",")): r for k, r in results.items() if k.startswith("depth") and k.endswith(norm)}
    tops = []
    for r in named.values():
        accuracy = np.asarray(r["accuracy"])
        tops.append(accuracy[:, accuracy.mean(0).argmax()])
    return list(named), tops


def _deepest(results: Results, norm: str) -> int:
    depths, tops = _by_depth(results, norm)
    return max([d for d, top in zip(depths, tops, strict=True) if top.mean() >= ENOUGH] or [0])


def _first(result) -> np.ndarray:
    """[seeds, scales]: the gradient of the first layer, relative to its weights, as a power of ten."""
    return np.log10(np.maximum(np.asarray(result["norms"], float)[..., 0], 1e-30))


def finding(results: Results) -> Finding:
    deep, plain = _deepest(results, "batch"), _deepest(results, "none")
    first = {norm: _first(results[f"gradients, {norm}"]) for norm in ("batch", "none")}
    powers = {norm: ", ".join(f"1e{p:.0f}" for p in first[norm].mean(0)) for norm in first}
    steadier = np.ptp(first["batch"], 1).max() < np.ptp(first["none"], 1).min()
    logs = np.log10(np.maximum(np.asarray(results["gradients, batch"]["norms"], float)[:, 0, :-1], 1e-30))
    growth = interval(logs[:, 0] - logs[:, -1])
    deepest = results["gradients, batch"]["depth"]
    tops = {norm: interval(_by_depth(results, norm)[1][-1]) for norm in ("batch", "none")}
    if steadier and deep > plain:
        verdict = "holds"
    elif steadier:
        verdict = (
            "holds in part: gradients do not depend on the weights' scale; with He's weights no deeper network trains"
        )
    else:
        verdict = "does not hold here"
    if growth.mean > 1:
        verdict += (
            f"; its own gradients grow 1e{growth.mean:.1f} times from the last layer to the first (Yang et al. 2019)"
        )
    return Finding(
        f"deepest plain network that ends above {ENOUGH:.0%}; gradient of the first of {deepest} layers at the start, "
        f"relative to its weights, for {', '.join(SCALES)}",
        f"{deep} layers with, {plain} without; at {deepest} layers {tops['batch'].percent()} against "
        f"{tops['none'].percent()}; first gradient {powers['batch']} with, {powers['none']} without",
        verdict,
    )


def draw(results: Results):
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
    for ax, norm, title in ((axes[0], "batch", "with batch norm"), (axes[1], "none", "without")):
        norms = np.maximum(np.asarray(results[f"gradients, {norm}"]["norms"], float)[..., :-1], 1e-30)
        layers = np.arange(1, norms.shape[-1] + 1)
        for i, (label, style) in enumerate(zip(SCALES, ((GREEN, "-"), (ORANGE, "--"), (RED, ":")), strict=True)):
            logs = np.log10(norms[:, i])
            ax.plot(layers, 10 ** logs.mean(0), style[1], color=style[0], label=label)
            ax.fill_between(layers, 10 ** logs.min(0), 10 ** logs.max(0), color=style[0], alpha=0.2, linewidth=0)
        ax.set(yscale="log", xlabel="layer", title=f"{title}, at the start", ylim=(1e-20, 1e18))
    axes[0].set_ylabel("gradient / weights [ratio of norms]")
    axes[1].legend(loc="center", bbox_to_anchor=(0.5, 0.7), fontsize=8)
    for norm, colour, style, label in (("batch", BLUE, "o-", "with batch norm"), ("none", ORANGE, "s--", "without")):
        depths, tops = _by_depth(results, norm)
        values = [interval(100 * t) for t in tops]
        axes[2].errorbar(
            depths, [v.mean for v in values], [v.half for v in values], fmt=style, color=colour, label=label
        )
    axes[2].set(
        xlabel="depth [layers]", ylabel="test accuracy [%]", title="after training, no shortcuts", ylim=(0, 102)
    )
    axes[2].legend(loc="lower left")
    return figure
