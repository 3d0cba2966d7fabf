"""Claim 6: saturating activations become usable, and ReLU units do not die."""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from claims import network as net
from claims.claim import NOT_SHOWN, PARTLY, SUPPORTED, Finding, Interval, Results, Setting, difference, interval
from claims.drawing import bars, curve, panel
from claims.network import Network
from claims.training import Plan, Runs, inputs, part_of, train
from claims.tuning import tuned

TITLE = "Choice of the activation"
SENTENCE = "It affects the choice of activation functions: sigmoid and tanh saturate less, and ReLU units do not die."
ACTIVATIONS = ("sigmoid", "tanh", "relu", "leaky_relu")
DEPTH = 10
STEPS = 400
RATES = (0.03, 0.1, 0.3, 1.0)
SUPPORT = "sigmoid networks train with it and not without, and fewer ReLU units are zero on every training image"
AGAINST = "neither sigmoid nor tanh gains by it, or as many units are dead, in the runs that did not diverge"
LIMITS = (
    "One depth. A unit is dead where it is zero on all training images; rates are the same for both, because it is the "
    "rate that kills units, and runs that diverged are told apart, not counted as dead."
)
LOOK = "First: the gap between the two bars. Second: dead units among the runs that did not diverge, at each rate."
NORMS = ("batch", "none")


def parts(setting: Setting):
    plan = Plan(setting.steps(STEPS), evaluations=5)

    def dead(norm):
        """At fixed rates, high ones too."""

        def measure():
            network = Network(depth=DEPTH, norm=norm)
            rates = setting.some(RATES) if not setting.fast else [RATES[0], RATES[-1]]
            runs = Runs.grid(range(setting.seeds), rates)
            steady = plan._replace(decay=False)
            out = train(network, steady, setting.images, runs)
            own = inputs(network, steady, setting.images, runs)._replace(params=None, batch_stats=None, batches=None)

            @jax.jit
            @functools.partial(jax.vmap)
            def idle(params, batch_stats, own):
                x, _ = part_of(setting.images, own, own.train)
                outputs = net.apply(network, params, batch_stats, x, train=False).outputs
                return sum((h == 0).all(0).mean() for h in outputs) / len(outputs)

            shape = (setting.seeds, len(rates))
            share = np.where(out.diverged, np.nan, np.asarray(idle(out.params, out.batch_stats, own)))
            test = np.where(out.diverged, np.nan, out.test_accuracy)
            return {
                "rates": rates,
                "dead": share.reshape(shape),
                "test": test.reshape(shape),
                "lost": out.diverged.reshape(shape),
            }

        return measure

    found = {
        f"{activation}, {norm}": functools.partial(
            tuned, Network(depth=DEPTH, norm=norm, activation=activation), plan, setting
        )
        for activation in ACTIVATIONS
        for norm in NORMS
    }
    return found | {f"dead, {norm}": dead(norm) for norm in NORMS}


def _gain(results: Results, activation: str):
    return difference(results[f"{activation}, batch"]["test"], results[f"{activation}, none"]["test"])


def _dead(results: Results, norm: str) -> list:
    """At each rate: the share of dead units in the runs that did not diverge."""
    return [interval(v) for v in np.asarray(results[f"dead, {norm}"]["dead"], float).T]


def _both_train(results: Results) -> int | None:
    """The highest rate at which no run of either diverged, and both learn."""
    tests = [np.asarray(results[f"dead, {norm}"]["test"], float) for norm in NORMS]
    fine = [all(np.isfinite(t[:, i]).all() and t[:, i].mean() > 0.8 for t in tests) for i in range(tests[0].shape[1])]
    return max((i for i, good in enumerate(fine) if good), default=None)


def finding(results: Results) -> Finding:
    gains = {a: _gain(results, a) for a in ACTIVATIONS}
    dead = {norm: _dead(results, norm) for norm in NORMS}
    rates = results["dead, batch"]["rates"]
    usable = gains["sigmoid"].word() == "higher"
    at = _both_train(results)
    fewer = at is not None and dead["batch"][at].high < dead["none"][at].low
    lost = {norm: np.asarray(results[f"dead, {norm}"]["lost"]).sum(0) for norm in NORMS}
    high = (
        f"at rate {rates[-1]:g}, {100 * dead['batch'][-1].mean:.1f} % with and "
        + (f"{100 * dead['none'][-1].mean:.1f} %" if np.isfinite(dead["none"][-1].mean) else "no run to count")
        + f" without ({lost['batch'][-1]} and {lost['none'][-1]} runs diverged)"
    )
    both = (
        f"at rate {rates[at]:g}, where both train, {dead['batch'][at].percent()} are dead with and "
        f"{dead['none'][at].percent()} without"
        if at is not None
        else "at no rate do both train"
    )
    if usable and fewer:
        verdict, because = SUPPORTED, "sigmoid needs it, and where both train fewer ReLU units are dead with it"
    elif usable:
        verdict, because = PARTLY, "sigmoid needs it; that fewer ReLU units die is not shown"
    elif fewer:
        verdict, because = PARTLY, "where both train fewer ReLU units are dead; sigmoid gains nothing"
    else:
        verdict, because = NOT_SHOWN, "neither is"
    texts = [
        f"{a.replace('_', ' ')} {interval(results[f'{a}, batch']['test']).percent()} with, "
        f"{interval(results[f'{a}, none']['test']).percent()} without"
        for a in ACTIVATIONS
    ]
    numbers = {f"gain, {a}": gains[a].points() for a in ACTIVATIONS}
    numbers |= {f"{a}, {n}": interval(results[f"{a}, {n}"]["test"]).percent() for a in ACTIVATIONS for n in NORMS}
    return Finding(
        f"test accuracy of a dense network of {DEPTH} layers, rates chosen for each; share of ReLU units that are zero "
        "on all training images, in the runs that did not diverge",
        f"{'; '.join(texts)}; ReLU units: {both}; {high}",
        verdict,
        because,
        numbers | {"dead": both, "dead at the highest": high},
    )


def seen(results: Results) -> str:
    n = finding(results).numbers
    return f"Sigmoid: {n['sigmoid, batch']} with, {n['sigmoid, none']} without. Dead ReLU units: {n['dead']}"


def draw(results: Results):
    first, axes = panel("test accuracy", "", "%", ylim=(0, 125), yticks=range(0, 101, 20))
    tops: dict[str, Sequence[Interval]] = {
        n: [interval(results[f"{a}, {n}"]["test"]) for a in ACTIVATIONS] for n in NORMS
    }
    bars(axes, [a.replace("_", "\n") for a in ACTIVATIONS], tops)
    axes.legend(loc="upper center", ncols=2)
    second, axes = panel("dead ReLU units", "learning rate", "% of the units", xscale="log")
    for norm in NORMS:
        r = results[f"dead, {norm}"]
        curve(axes, r["rates"], 100 * np.asarray(r["dead"], float), norm)
        for rate, lost in zip(r["rates"], np.asarray(r["lost"]).sum(0), strict=True):
            if lost:
                axes.annotate(
                    f"{lost} diverged", (rate, 0), (0, -4 if norm == "batch" else 4),
                    textcoords="offset points", ha="right", fontsize=8,
                )  # fmt: skip
    axes.legend(loc="upper right")
    return [first, second]
