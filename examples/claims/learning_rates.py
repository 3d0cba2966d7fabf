"""Claim 2: higher learning rates, and less sensitivity to the initial weights."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from claims.claim import NOT_SHOWN, PARTLY, SUPPORTED, Finding, Results, Setting, difference, interval
from claims.network import Network
from claims.training import Plan, Runs, train

TITLE = "Learning rate and initialization"
SENTENCE = (
    "It computes the mean and variance of each mini-batch, allowing for adaptive learning rates and less sensitivity "
    "to initialization."
)
RATES = tuple(4.0**k for k in range(-7, 2))
SCALES = tuple(2.0**k for k in range(-4, 5))
ENOUGH = 0.85
SUPPORT = f"more of the map of rates and initial weights ends above {100 * ENOUGH:g} %, with SGD and with Adam"
AGAINST = "as much or less of the map does"
LIMITS = (
    "One dense network and few steps: with more, slow rates would arrive too. Nothing adapts the rate; what changes is "
    "how large a step is for weights of a given size."
)
LOOK = (
    f"Inside the white line accuracy is above {100 * ENOUGH:g} %. How far does it reach up and down (initial weights), "
    "and to the right (rates)? Is its left edge a diagonal with batch norm? Weights twice as large would need a rate "
    "four times as high with SGD, twice with Adam."
)
NORMS = ("batch", "none")
OPTIMIZERS = ("sgd", "adam")
NETWORK = Network(depth=4, width=32)


def parts(setting: Setting):
    rates, scales = setting.some(RATES), setting.some(SCALES)

    def measured(norm, optimizer):
        def measure():
            plan = Plan(setting.steps(200), evaluations=1, optimizer=optimizer, decay=False)
            runs = Runs.grid(range(setting.seeds), rates, scales)
            out = train(NETWORK._replace(norm=norm), plan, setting.images, runs)
            shape = (setting.seeds, len(rates), len(scales))
            return {
                "rates": rates,
                "scales": scales,
                "accuracy": np.where(out.diverged, 0, out.test_accuracy).reshape(shape),
                "diverged": out.diverged.reshape(shape).mean(0),
            }

        return measure

    return {f"{norm}, {optimizer}": measured(norm, optimizer) for optimizer in OPTIMIZERS for norm in NORMS}


def _trains(result) -> np.ndarray:
    """[seeds, rates, scales] bool."""
    return np.asarray(result["accuracy"]) >= ENOUGH


def _with_every_seed(result) -> np.ndarray:
    """[rates, scales] bool."""
    return np.asarray(np.all(_trains(result), 0))


def _share(result) -> np.ndarray:
    return _trains(result).mean((1, 2))


def _factor(result) -> float:
    """Highest over lowest initial scale that trains at some rate, with every seed."""
    scales = np.asarray(result["scales"])[np.any(_with_every_seed(result), 0)]
    return float(scales.max() / scales.min()) if len(scales) else 0.0


def _at_he(result) -> float:
    """Highest rate that trains with every seed at He's initial weights."""
    one = list(result["scales"]).index(1.0)
    rates = np.asarray(result["rates"])[_with_every_seed(result)[:, one]]
    return float(rates.max()) if len(rates) else 0.0


def power(result) -> float:
    """With which power of the initial scale the lowest rate that trains grows."""
    accuracy = np.asarray(result["accuracy"]).mean(0)
    rates, scales = (np.log2(result[k]) for k in ("rates", "scales"))
    points = []
    for scale, column in zip(scales, accuracy.T, strict=True):
        reached = int((column >= ENOUGH).argmax())
        if reached and column[reached] >= ENOUGH:  # where the lowest rate of all trains, the limit is not on the map
            below, above = column[reached - 1], column[reached]
            share = (ENOUGH - below) / (above - below)
            points.append((scale, rates[reached - 1] + share * (rates[reached] - rates[reached - 1])))
    if len(points) < 3:
        return float("nan")
    x, y = np.array(points).T
    return float(np.polyfit(x, y, 1)[0])


def finding(results: Results) -> Finding:
    shares = {o: [interval(_share(results[f"{n}, {o}"])) for n in NORMS] for o in OPTIMIZERS}
    wider = {o: difference(_share(results[f"batch, {o}"]), _share(results[f"none, {o}"])) for o in OPTIMIZERS}
    factors = {o: [_factor(results[f"{n}, {o}"]) for n in NORMS] for o in OPTIMIZERS}
    rates = {o: [_at_he(results[f"{n}, {o}"]) for n in NORMS] for o in OPTIMIZERS}
    holds = {o: wider[o].low > 0 for o in OPTIMIZERS}
    higher = {o: rates[o][0] > rates[o][1] for o in OPTIMIZERS}
    if all(holds.values()) and all(higher.values()):
        verdict, because = SUPPORTED, "with SGD and with Adam it trains at higher rates and from more initial weights"
    elif all(holds.values()):
        where = " and ".join(o.upper() if o == "sgd" else o.title() for o in OPTIMIZERS if not higher[o])
        verdict = PARTLY
        because = f"less sensitive to the initial weights; with {where} no higher rate at He's initial weights"
    elif any(holds.values()):
        verdict, because = PARTLY, "for one of two optimizers"
    else:
        verdict, because = NOT_SHOWN, "no more of the map trains"
    texts = [
        f"{name}: {shares[o][0].percent()} of the map with, {shares[o][1].percent()} without; initial weights over a "
        f"factor of {factors[o][0]:g} against {factors[o][1]:g}; at He's, rates up to {rates[o][0]:.2g} against "
        f"{rates[o][1]:.2g}"
        for o, name in (("sgd", "SGD"), ("adam", "Adam"))
    ]
    return Finding(
        f"share of the map (learning rate x scale of the hidden layers' initial weights) that ends above "
        f"{100 * ENOUGH:g} % test accuracy",
        "; ".join(texts),
        verdict,
        because,
        {
            "map with, SGD": shares["sgd"][0].percent(),
            "map without, SGD": shares["sgd"][1].percent(),
            "map with, Adam": shares["adam"][0].percent(),
            "map without, Adam": shares["adam"][1].percent(),
            "factor with": f"{factors['sgd'][0]:g}",
            "factor without": f"{factors['sgd'][1]:g}",
            "rate with": f"{rates['sgd'][0]:.2g}",
            "rate without": f"{rates['sgd'][1]:.2g}",
            "power, SGD": f"{power(results['batch, sgd']):.1f}",
            "power, Adam": f"{power(results['batch, adam']):.1f}",
        },
    )


def seen(results: Results) -> str:
    return "Four maps of test accuracy over rate and initial scale. " + "; ".join(
        f"{name.replace(', ', ' norm, ')}: {100 * _share(r).mean():.0f} % of the cells are above {100 * ENOUGH:g} %"
        for name, r in results.items()
    )


def draw(results: Results):
    titles = {"batch": "with batch norm", "none": "without", "sgd": "SGD", "adam": "Adam"}
    figures = []
    for name, r in results.items():
        norm, optimizer = name.split(", ")
        figure, axes = plt.subplots()
        accuracy = 100 * np.asarray(r["accuracy"]).mean(0).T
        image: Any = axes.imshow(accuracy, origin="lower", cmap="cividis", vmin=0, vmax=100, aspect="auto")
        columns, rows = np.arange(len(r["rates"])), np.arange(len(r["scales"]))
        if accuracy.max() > 100 * ENOUGH > accuracy.min():
            axes.contour(columns, rows, accuracy, levels=[100 * ENOUGH], colors="#fefefe", linewidths=1.5)
        axes.set_xticks(columns[::2], [f"$2^{{{round(np.log2(v))}}}$" for v in r["rates"][::2]])
        axes.set_yticks(rows[::2], [f"{v:g}" for v in r["scales"][::2]])
        axes.set(title=f"{titles[norm]}, {titles[optimizer]}", xlabel="learning rate", ylabel="initial weights / He's")
        axes.grid(visible=False)
        figure.colorbar(image, ax=axes, label="test accuracy [%]")
        figures.append(figure)
    return figures
