"""Claim 4: internal covariate shift; and the other reading of it, a smoother loss."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from claims import network as net
from claims.claim import Finding, Results, Setting, interval, ratio
from claims.network import Network
from claims.training import Plan, Runs, loss_of, train
from figures import BLUE, ORANGE

TITLE = "Internal covariate shift"
CLAIM = "The distribution of each layer's inputs moves less in training (Ioffe & Szegedy 2015)."
NETWORKS = {"batch": Network(), "none": Network(norm="none")}
LABELS = {"batch": "with batch norm", "none": "without"}
RATE = 0.03
PERCENTILES = (15, 50, 85)
REACH = (0.5, 1.0, 2.0, 4.0)
"""how far along the gradient the loss is looked at, in steps of the learning rate (Santurkar et al. 2018, figure 4)"""


def look(network: Network, data, params, batch_stats):
    """Percentiles of one unit, mean and deviation of all, and how loss and gradient vary along the gradient."""
    before = net.apply(network, params, batch_stats, data.test_x, train=True).pre_activations
    x, y = data.train_x[:256], data.train_y[:256]
    value = jax.value_and_grad(lambda params: loss_of(network, params, batch_stats, x, y)[0])
    loss, grads = value(params)

    def ahead(reach):
        moved = jax.tree.map(lambda p, g: p - reach * RATE * g, params, grads)
        loss_there, grads_there = value(moved)
        return loss_there, _norm(jax.tree.map(jnp.subtract, grads_there, grads))

    losses, changes = jax.vmap(ahead)(jnp.asarray(REACH))
    losses = jnp.append(losses, loss)
    return {
        "percentiles": jnp.percentile(before[-1][:, 0], jnp.asarray(PERCENTILES)),
        "mean": jnp.stack([z.mean(0) for z in before]),
        "deviation": jnp.stack([z.std(0) for z in before]),
        "loss range": losses.max() - losses.min(),
        "gradient change": changes.max() / _norm(grads),
    }


def _norm(tree):
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def parts(setting: Setting):
    steps = setting.steps(300)
    plan = Plan(steps, evaluations=30 if setting.fast else 50)

    def measured(network):
        def measure():
            found = train(network, plan, setting.data, Runs.grid(setting.seeds, [RATE]), look).probed
            mean, deviation = np.asarray(found["mean"]), np.asarray(found["deviation"])
            shift = np.abs(np.diff(mean, axis=1)) / np.maximum(deviation[:, :-1], 1e-6)
            return {
                "step": np.arange(1, plan.evaluations + 1) * (steps // plan.evaluations),
                "percentiles": np.asarray(found["percentiles"]),
                "shift": np.median(shift, (1, 3)),
                "loss range": np.asarray(found["loss range"]),
                "gradient change": np.asarray(found["gradient change"]),
            }

        return measure

    return {name: measured(network) for name, network in NETWORKS.items()}


def _over_seeds(result, name: str) -> np.ndarray:
    """[seeds]: the median over what else there is."""
    values = np.asarray(result[name])
    return np.median(values.reshape(len(values), -1), 1)


def finding(results: Results) -> Finding:
    pairs = {
        k: [_over_seeds(results[n], k) for n in ("none", "batch")] for k in ("shift", "loss range", "gradient change")
    }
    less = {k: interval(np.log(a / b)) for k, (a, b) in pairs.items()}
    shift = less["shift"].mean - less["shift"].half > 0
    smooth = all(less[k].mean - less[k].half > 0 for k in ("loss range", "gradient change"))
    verdict = {
        (True, True): "holds, in both readings",
        (True, False): "holds in part: inputs move less, the loss is not smoother",
        (False, True): "holds in part: the loss is smoother (Santurkar et al. 2018), inputs do not move less",
        (False, False): "does not hold here",
    }[shift, smooth]
    moved = interval(pairs["shift"][1]), interval(pairs["shift"][0])
    return Finding(
        f"how far the mean of a layer's inputs moves in {int(results['batch']['step'][0])} steps, in standard "
        "deviations; range of the loss and change of the gradient along the gradient's direction",
        f"inputs move {moved[0].number(3)} with, {moved[1].number(3)} without; without batch norm the loss varies "
        f"{ratio(*pairs['loss range'])} and the gradient {ratio(*pairs['gradient change'])} as much",
        verdict,
    )


def draw(results: Results):
    figure, grid = plt.subplots(2, 2, figsize=(8, 5.6), layout="constrained")
    axes = grid.ravel()
    for ax, name in zip(axes, NETWORKS, strict=False):
        r = results[name]
        low, middle, high = np.moveaxis(np.asarray(r["percentiles"])[0], -1, 0)
        colour = BLUE if name == "batch" else ORANGE
        ax.fill_between(r["step"], low, high, color=colour, alpha=0.3, linewidth=0)
        ax.plot(r["step"], middle, color=colour)
        ax.set(xlabel="step", title=f"one unit, {LABELS[name]}")
        ax.sharey(axes[0])
    axes[0].set_ylabel("input of its activation:\nmedian, 15 to 85 %")
    for ax, key, label in (
        (axes[2], "loss range", "range of the loss"),
        (axes[3], "gradient change", "change of the gradient"),
    ):
        for name, colour, style in (("batch", BLUE, "-"), ("none", ORANGE, "--")):
            logs = np.log(np.asarray(results[name][key]))
            middle, spread = logs.mean(0), logs.std(0)
            steps = results[name]["step"]
            ax.plot(steps, np.exp(middle), style, color=colour, label=LABELS[name])
            ax.fill_between(
                steps, np.exp(middle - spread), np.exp(middle + spread), color=colour, alpha=0.2, linewidth=0
            )
        ax.set(xlabel="step", yscale="log", title=f"{label},\nup to {REACH[-1]:g} steps along it")
    axes[2].set_ylabel("loss")
    axes[3].set_ylabel("multiples of the gradient")
    axes[2].legend(fontsize=8)
    return figure
