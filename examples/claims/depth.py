"""Claim 5: no vanishing and no exploding gradients, so that deeper networks train."""

import jax
import jax.numpy as jnp
import numpy as np

from claims.claim import (
    NOT_SHOWN,
    PARTLY,
    SUPPORTED,
    Finding,
    Results,
    Setting,
    difference,
    interval,
    power_of_ten,
)
from claims.drawing import COLOURS, DASHES, curve, panel
from claims.network import Network
from claims.training import Plan, Runs, inputs, loss_of, part_of
from claims.tuning import LOW_RATES, tuned

TITLE = "Depth"
SENTENCE = "It addresses vanishing and exploding gradients and makes deeper networks trainable."
DEPTHS = (5, 20, 30)
SCALES = {"He's": 1.0, "half of He's": 0.5, "twice He's": 2.0}
WIDTH = 32
STEPS = 800
SUPPORT = (
    "the scale of the initial weights does not compound in the gradients with it, and it trains at depths at which "
    "He's weights alone do not"
)
AGAINST = "He's weights alone, or residual branches that start at 0, train as deep or deeper without it"
LIMITS = (
    f"Dense networks of {WIDTH} units, {STEPS} steps for all: without shortcuts more steps might reach deeper. "
    "Convolutional residual networks are claim 9."
)
LOOK = (
    "Do the lines of different initial weights stay together, with batch norm and without? Last: which lines stay up "
    "as the network gets deeper?"
)
ARMS = {
    "batch": Network(width=WIDTH),
    "none": Network(width=WIDTH, norm="none"),
    "residual": Network(width=WIDTH, norm="none", branches_from_zero=True),
}
NAMES = {
    "batch": "with batch norm",
    "none": "without: He's weights",
    "residual": "without: residual, from 0",
}


def parts(setting: Setting):
    plan = Plan(setting.steps(STEPS), evaluations=5)
    depths = setting.some(DEPTHS)

    def gradients(network):
        def measure():
            runs = Runs.grid(range(setting.seeds), [0.0], SCALES.values())
            own = inputs(network, Plan(1, 1, evaluations=1), setting.images, runs)

            @jax.jit
            @jax.vmap
            def norms(own):
                x, y = part_of(setting.images, own, own.train[:256])
                grads = jax.grad(lambda p: loss_of(network, p, own.batch_stats, x, y)[0])(own.params)
                pairs = zip(grads, own.params, strict=True)
                return jnp.stack([jnp.linalg.norm(g["kernel"]) / jnp.linalg.norm(p["kernel"]) for g, p in pairs])

            found = np.maximum(np.asarray(norms(own)), 1e-30)
            return {"norms": found.reshape(setting.seeds, len(SCALES), -1)[..., :-1]}

        return measure

    deepest = max(depths)
    found = {f"gradients, {name}": gradients(ARMS[name]._replace(depth=deepest)) for name in ("batch", "none")}
    for depth in depths:
        for name, network in ARMS.items():
            found[f"depth {depth}, {name}"] = lambda network=network, depth=depth: tuned(
                network._replace(depth=depth), plan, setting, LOW_RATES
            )
    return found


def _by_depth(results: Results, name: str) -> dict[int, np.ndarray]:
    """Test accuracy [seeds] at each depth; 0 where a run diverged."""
    named = {
        int(k.split()[1].rstrip(",")): r for k, r in results.items() if k.startswith("depth") and k.endswith(f" {name}")
    }
    return {depth: np.nan_to_num(np.asarray(r["test"], float)) for depth, r in named.items()}


def _first(results: Results, name: str) -> np.ndarray:
    """[scales]: the gradient of the first layer relative to its weights, geometric mean over the seeds."""
    return np.exp(np.log(np.asarray(results[f"gradients, {name}"]["norms"], float)[..., 0]).mean(0))


def growth(results: Results, name: str) -> float:
    """How many times larger the first layer's gradient is than the last's, at He's weights."""
    norms = np.asarray(results[f"gradients, {name}"]["norms"], float)[:, 0]
    return float(np.exp(np.log(norms[:, 0] / norms[:, -1]).mean()))


def finding(results: Results) -> Finding:
    tests = {name: _by_depth(results, name) for name in ARMS}
    depths = list(tests["batch"])
    first = {name: _first(results, name) for name in ("batch", "none")}
    spread = {name: float(v.max() / v.min()) for name, v in first.items()}
    ahead = {depth: difference(tests["batch"][depth], tests["none"][depth]) for depth in depths}
    against_residual = {depth: difference(tests["batch"][depth], tests["residual"][depth]) for depth in depths}
    steadier = spread["batch"] < spread["none"] / 100
    deep = [depth for depth in depths if depth >= 20]
    wins = [depth for depth in deep if ahead[depth].word() == "higher"]
    worse = [depth for depth in deep if ahead[depth].word() == "lower"]
    beaten = [depth for depth in deep if against_residual[depth].word() == "lower"]
    if steadier and wins and not beaten:
        verdict, because = (
            SUPPORTED,
            f"the weights' scale does not compound, and it is ahead at {_list(wins)} layers",
        )
    elif steadier and wins:
        verdict = PARTLY
        because = (
            f"the weights' scale does not compound, and it is ahead of He's weights at {_list(wins)} layers; but "
            f"residual branches that start at 0 do better without it at {_list(beaten)}"
        )
    elif steadier:
        verdict = PARTLY
        because = (
            "the weights' scale does not compound in its gradients; but once the weights are He's, no deeper network "
            "trains better with it" + (f", and at {_list(worse)} layers they train worse" if worse else "")
        )
    else:
        verdict, because = NOT_SHOWN, "the weights' scale compounds with it too"
    texts = [
        f"{depth} layers: {interval(tests['batch'][depth]).percent()} with, "
        f"{interval(tests['none'][depth]).percent()} without, {interval(tests['residual'][depth]).percent()} without, "
        f"residual from 0"
        for depth in depths
    ]
    powers = {name: [power_of_ten(v) for v in first[name]] for name in first}
    deepest = depths[-1]
    numbers = {f"first, {name}, {scale}": powers[name][i] for name in powers for i, scale in enumerate(SCALES)} | {
        "growth": f"{growth(results, 'batch'):.0f}",
        "growth without": f"{growth(results, 'none'):.0f}",
    }
    for depth in depths:
        numbers[f"with - without, {depth}"] = ahead[depth].points()
        numbers[f"with - residual, {depth}"] = against_residual[depth].points()
    for name in ARMS:
        numbers[f"deepest, {name}"] = interval(tests[name][deepest]).percent()
    return Finding(
        f"test accuracy by depth, rates chosen for each, from {LOW_RATES[0]:.1g} to {LOW_RATES[-1]:g}; at the start, "
        f"the gradient of the first of {deepest} layers "
        f"relative to its weights, for weights that are {', '.join(SCALES)}",
        f"first gradient {', '.join(powers['batch'])} with, {', '.join(powers['none'])} without; " + "; ".join(texts),
        verdict,
        because,
        numbers,
    )


def _list(depths) -> str:
    return " and ".join(map(str, depths))


def seen(results: Results) -> str:
    n = finding(results).numbers
    scales = "half of He's", "twice He's"
    ends = {name: " to ".join(n[f"first, {name}, {scale}"] for scale in scales) for name in ("none", "batch")}
    return (
        f"At the start the first layer's gradient is {ends['none']} of its weights without batch norm, from small "
        f"initial weights to large ones, and {ends['batch']} with it. At the deepest: {n['deepest, batch']} with, "
        f"{n['deepest, none']} without, {n['deepest, residual']} residual"
    )


def draw(results: Results):
    figures = []
    for name, title in (("batch", "gradients at the start, with"), ("none", "gradients at the start, without")):
        norms = np.asarray(results[f"gradients, {name}"]["norms"], float)
        figure, axes = panel(title, "layer", "gradient / weights", yscale="log", ylim=(1e-26, 1e12))
        for i, (scale, dash) in enumerate(zip(SCALES, ("-", "--", ":"), strict=True)):
            logs = np.log(norms[:, i]).mean(0)
            axes.plot(np.arange(1, len(logs) + 1), np.exp(logs), dash, color=COLOURS[name], label=scale)
        axes.legend(title="initial weights", loc="lower center")
        figures.append(figure)
    figure, axes = panel("after training", "layers", "test accuracy [%]", ylim=(0, 102))
    for name in ARMS:
        tests = _by_depth(results, name)
        look = {"label": NAMES[name]}
        look |= {"color": COLOURS["none"], "marker": "P", "linestyle": DASHES["instance"]} if name == "residual" else {}
        curve(axes, list(tests), 100 * np.array(list(tests.values())).T, "batch" if name == "batch" else "none", **look)
    axes.legend(loc="lower left")
    return [*figures, figure]
