"""Claim 1: batch norm stands after the linear map and before the activation."""

import numpy as np

from claims.claim import MARGIN, NOT_SHOWN, PARTLY, SUPPORTED, Finding, Results, Setting, difference, interval
from claims.drawing import bars, differences, panel
from claims.network import Network
from claims.training import Plan
from claims.tuning import chosen, tuned

TITLE = "Where it stands"
SENTENCE = "It is applied after the linear transformation and before the activation function."
SUPPORT = f"before the activation is better than after it, by more than {100 * MARGIN:g} point"
AGAINST = f"after the activation is as good, to {100 * MARGIN:g} point, or better"
LIMITS = (
    "Two small networks on one task. Where the norm stands also decides what folds into what: only before the "
    "activation does it fold into the layer before it."
)
LOOK = "Is either interval right of the grey band, in which there is no difference?"
KINDS = {"CNN": Network("conv", 4, 12), "dense network": Network(depth=6)}
PLACES = {"before": {}, "after": {"norm_last": True}, "none": {"norm": "none"}}
STEPS = {"CNN": 240, "dense network": 800}


def parts(setting: Setting):
    def measured(kind, changes):
        plan = Plan(setting.steps(STEPS[kind]))
        return lambda: tuned(KINDS[kind]._replace(**changes), plan, setting)

    return {f"{kind}, {place}": measured(kind, changes) for kind in KINDS for place, changes in PLACES.items()}


def _test(results: Results, kind: str, place: str):
    return results[f"{kind}, {place}"]["test"]


def _ahead(results: Results, kind: str, place: str, other: str):
    return difference(_test(results, kind, place), _test(results, kind, other))


def finding(results: Results) -> Finding:
    ahead = {kind: _ahead(results, kind, "before", "after") for kind in KINDS}
    gain = {kind: _ahead(results, kind, "before", "none") for kind in KINDS}
    words = {kind: ahead[kind].word() for kind in KINDS}
    if all(word == "higher" for word in words.values()):
        verdict, because = SUPPORTED, "before the activation is better in both networks"
    elif any(word == "higher" for word in words.values()):
        better = next(kind for kind, word in words.items() if word == "higher")
        verdict, because = PARTLY, f"before the activation is better in the {better} only"
    else:
        said = {
            "same": "makes no difference",
            "lower": "is worse than after it",
            "unclear": "is not shown to be better",
        }
        verdict = NOT_SHOWN
        alike = set(words.values()) == {"same"}
        because = (
            "before or after makes no difference in either network"
            if alike
            else "; ".join(f"before the activation {said[words[kind]]} in the {kind}" for kind in KINDS)
        )
    texts = [
        f"{kind}: {interval(_test(results, kind, 'before')).percent()} before, "
        f"{interval(_test(results, kind, 'after')).percent()} after, "
        f"{interval(_test(results, kind, 'none')).percent()} without"
        for kind in KINDS
    ]
    return Finding(
        "test accuracy with the norm before the activation, after it, and without (rates: "
        + chosen(results, results)
        + ")",
        "; ".join(texts),
        verdict,
        because,
        {f"before - after, {kind}": ahead[kind].points() for kind in KINDS}
        | {f"before - none, {kind}": gain[kind].points() for kind in KINDS},
    )


def seen(results: Results) -> str:
    return "; ".join(
        f"{kind}: before the activation less after it {_ahead(results, kind, 'before', 'after').points()}"
        for kind in KINDS
    )


def draw(results: Results):
    accuracy, axes = panel("test accuracy", "", "%")
    tops = {place: [interval(_test(results, kind, place)) for kind in KINDS] for place in PLACES}
    bars(axes, list(KINDS), {"batch": tops["before"], "none": tops["none"]})
    lowest = min(v.mean - v.half for values in tops.values() for v in values)
    low = max(0, 100 * lowest - 3)
    axes.set_ylim(low, 100 + 0.3 * (100 - low))  # with room for the legend
    axes.set_yticks([v for v in axes.get_yticks() if low <= v <= 100])
    axes.errorbar(
        np.arange(len(KINDS)), [100 * v.mean for v in tops["after"]], [100 * v.half for v in tops["after"]],
        fmt="D", color="#1b1b1f", label="after the activation",
    )  # fmt: skip
    axes.legend(loc="upper center", ncols=2)
    between, axes = panel("before less after", "points of test accuracy", "")
    differences(axes, list(KINDS), [_ahead(results, kind, "before", "after") for kind in KINDS], MARGIN)
    return [accuracy, between]
