"""Claim 9: it is standard in CNNs; and at inference it costs nothing, because it folds away."""

import time

import jax
import numpy as np

import jaxbn
from claims import network as net
from claims.claim import (
    MARGIN,
    NOT_SHOWN,
    PARTLY,
    SUPPORTED,
    Finding,
    Results,
    Setting,
    difference,
    interval,
    scientific,
)
from claims.drawing import COLOURS, curve, differences, panel
from claims.network import Network
from claims.training import BLOCK, Plan, Runs, inputs, part_of, train
from claims.tuning import chosen, tuned

TITLE = "Residual networks"
SENTENCE = "It is a standard component of modern convolutional networks."
NETWORKS = {"batch": Network("residual", 6, 8), "none": Network("residual", 6, 8, norm="none")}
STEPS = 200
SUPPORT = f"a residual network ends higher with it by more than {100 * MARGIN:g} point, and it folds away exactly"
AGAINST = f"it ends as high without it, to {100 * MARGIN:g} point"
LIMITS = (
    "That it is standard is a fact about papers, not about this network of six convolutions. Without a norm, He's "
    "weights let the signal grow with every block: initializations made for residual networks, such as branches that "
    "start at 0 (claim 5), would narrow the gap."
)
LOOK = "How early does the blue line rise, and is the difference right of the grey band?"


def parts(setting: Setting):
    plan = Plan(setting.steps(STEPS), evaluations=10)

    def measured(network):
        return lambda: tuned(network, plan, setting)

    def folded():
        """Trained networks with their batch norms folded into the convolutions: what changes, and what it saves."""
        network, bare = NETWORKS["batch"], NETWORKS["none"]
        runs = Runs.grid(range(BLOCK), [0.1])
        short = plan._replace(steps=setting.steps(100))
        out = train(network, short, setting.images, runs)
        own = inputs(network, short, setting.images, runs)._replace(params=None, batch_stats=None, batches=None)

        def evaluator(network):
            def logits(params, batch_stats, own):
                x, _ = part_of(setting.images, own, own.test)
                return net.apply(network, params, batch_stats, x, train=False).logits

            return jax.jit(jax.vmap(logits))

        states = {"with": (out.params, out.batch_stats), "folded": jax.vmap(fold_network)(out.params, out.batch_stats)}
        programs = {"with": evaluator(network), "folded": evaluator(bare)}
        found = {name: np.asarray(programs[name](*states[name], own)) for name in programs}
        seconds = {name: [] for name in programs}
        for _ in range(3 if setting.fast else 9):
            for name, program in programs.items():
                start = time.perf_counter()
                jax.block_until_ready(program(*states[name], own))
                seconds[name].append(time.perf_counter() - start)
        largest = np.abs(found["with"]).max((1, 2))
        return {
            "difference": np.abs(found["with"] - found["folded"]).max((1, 2)) / largest,
            "ratio": min(seconds["folded"]) / min(seconds["with"]),
        }

    return {**{name: measured(network) for name, network in NETWORKS.items()}, "folded": folded}


def fold_network(params, batch_stats):
    """Parameters and (empty) statistics of the network without batch norm that evaluates to the same."""
    layers = []
    for layer, stats in zip(params[:-1], batch_stats, strict=True):
        layers.append(jaxbn.fold_into_previous({"kernel": layer["kernel"]}, layer["norm"], stats))
    return [*layers, params[-1]], [{} for _ in batch_stats]


def finding(results: Results) -> Finding:
    tests = {name: results[name]["test"] for name in NETWORKS}
    gain = difference(tests["batch"], tests["none"])
    f = results["folded"]
    changed = float(np.max(f["difference"]))
    if gain.word() == "higher" and changed < 1e-4:
        verdict, because = SUPPORTED, "it ends higher, and folding it away changes nothing"
    elif gain.word() in ("same", "unclear") and changed < 1e-4:
        said = "makes no difference" if gain.word() == "same" else "is not shown to be better"
        verdict, because = PARTLY, f"with it the end {said} here; it folds away exactly"
    else:
        verdict, because = NOT_SHOWN, "it ends lower, or does not fold exactly"
    return Finding(
        f"test accuracy of a residual network of {NETWORKS['batch'].depth} convolutions (rates: "
        f"{chosen(results, NETWORKS)}); the trained one with its batch norms folded away",
        f"{interval(tests['batch']).percent()} with, {interval(tests['none']).percent()} without; folded: outputs "
        f"change by {scientific(changed)} of the largest",
        verdict,
        because,
        {
            "gain": gain.points(),
            "with": interval(tests["batch"]).percent(),
            "without": interval(tests["none"]).percent(),
            "folded": f"{scientific(changed)}",
            "time": f"{f['ratio']:.2f}",
        },
    )


def seen(results: Results) -> str:
    n = finding(results).numbers
    return f"At the end {n['with']} with and {n['without']} without: {n['gain']}"


def draw(results: Results):
    first, axes = panel("while training", "step", "validation accuracy [%]", ylim=(0, 102))
    for name in NETWORKS:
        r = results[name]
        curve(axes, r["step"], 100 * np.asarray(r["curve"], float), name)
    axes.legend(loc="lower right")
    second, axes = panel("with less without, at the end", "points of test accuracy", "")
    values = [difference(results["batch"]["test"], results["none"]["test"])]
    differences(axes, ["batch\nnorm"], values, MARGIN, [COLOURS["batch"]])
    return [first, second]
