"""Claim 9: it is standard in CNNs; and at inference it costs nothing, because it folds away."""

import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxbn
from claims import network as net
from claims.claim import Finding, Results, Setting, best, interval
from claims.network import Network
from claims.training import Plan, Runs, train
from figures import BLUE, ORANGE

TITLE = "Residual networks"
CLAIM = "It is standard in CNNs, residual networks above all, and folds away at inference."
NETWORKS = {"batch": Network("residual", 10, 16), "none": Network("residual", 10, 16, norm="none")}
RATES = (0.003, 0.01, 0.03, 0.1, 0.3)


def parts(setting: Setting):
    plan = Plan(setting.steps(200))
    rates = setting.some(RATES)

    def measured(network):
        def measure():
            out = train(network, plan, setting.data, Runs.grid(setting.seeds, rates))
            every = plan.steps // plan.evaluations
            accuracy = np.asarray(out.test_accuracy).reshape(setting.seeds, len(rates), -1)
            return {"rates": rates, "accuracy": accuracy, "step": np.arange(every, plan.steps + 1, every)}

        return measure

    def folded():
        """The trained network with its batch norms folded into the convolutions: what changes, and what it saves."""
        network, plain = NETWORKS["batch"], NETWORKS["none"]
        out = train(network, plan, setting.data, Runs.grid(setting.seeds, [0.1]))
        fold = jax.vmap(fold_network)
        x = jnp.asarray(setting.data.test_x)

        def evaluator(network):
            def logits(params, batch_stats):
                return net.apply(network, params, batch_stats, x, train=False).logits

            return jax.jit(jax.vmap(logits))

        args = {"with": (out.params, out.batch_stats), "folded": fold(out.params, out.batch_stats)}
        programs = {"with": evaluator(network), "folded": evaluator(plain)}
        found = {name: np.asarray(programs[name](*args[name])) for name in programs}
        seconds = {name: [] for name in programs}
        for _ in range(5 if setting.fast else 25):
            for name, program in programs.items():
                start = time.perf_counter()
                jax.block_until_ready(program(*args[name]))
                seconds[name].append(time.perf_counter() - start)
        largest = np.abs(found["with"]).max((1, 2))
        return {
            "difference": np.abs(found["with"] - found["folded"]).max((1, 2)) / largest,
            "ratio": float(np.median(np.array(seconds["folded"]) / np.array(seconds["with"]))),
        }

    return {**{name: measured(network) for name, network in NETWORKS.items()}, "folded": folded}


def fold_network(params, batch_stats):
    """Parameters and (empty) statistics of the network without batch norm that evaluates to the same."""
    layers = []
    for layer, stats in zip(params[:-1], batch_stats, strict=True):
        layers.append(jaxbn.fold_into_previous({"kernel": layer["kernel"]}, layer["norm"], stats))
    return [*layers, params[-1]], [{} for _ in batch_stats]


def _top(result) -> np.ndarray:
    """[seeds, evaluations] at the best learning rate."""
    accuracy = np.asarray(result["accuracy"])
    return accuracy[:, best(accuracy[..., -1])]


def finding(results: Results) -> Finding:
    tops = {name: _top(results[name])[:, -1] for name in NETWORKS}
    gain = interval(tops["batch"] - tops["none"])
    f = results["folded"]
    exact = np.max(f["difference"]) < 1e-4
    return Finding(
        "test accuracy of a residual network of 10 convolutions at each one's best learning rate; the trained one with "
        "its batch norms folded away",
        f"{interval(tops['batch']).percent()} with, {interval(tops['none']).percent()} without; folded: outputs change "
        f"by {np.max(f['difference']):.0e} of the largest, {f['ratio']:.2f} of the time",
        ("holds" if gain.mean - gain.half > 0 else "holds in part: no gain that these seeds show")
        + (", and folding is exact" if exact else ", and folding is not exact"),
    )


def draw(results: Results):
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for name, colour, style, label in (("batch", BLUE, "o-", "with batch norm"), ("none", ORANGE, "s--", "without")):
        r = results[name]
        for ax, xs, ys in (
            (axes[0], r["step"], _top(r)),
            (axes[1], r["rates"], np.asarray(r["accuracy"])[..., -1]),
        ):
            values = [interval(100 * v) for v in ys.T]
            ax.errorbar(xs, [v.mean for v in values], [v.half for v in values], fmt=style, color=colour, label=label)
    axes[0].set(xlabel="step", ylabel="test accuracy [%]", title="at the best learning rate", ylim=(0, 102))
    axes[1].set(xlabel="learning rate", xscale="log", title="at the end", ylim=(0, 102))
    axes[0].legend(loc="lower right")
    return figure
