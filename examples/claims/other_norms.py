"""Claim 7: faster and better than without, and than layer and instance norm."""

import time
from functools import partial

import numpy as np

from claims.claim import MARGIN, NOT_SHOWN, PARTLY, SUPPORTED, Finding, Results, Setting, difference, interval, ratio
from claims.drawing import COLOURS, LABELS, curve, differences, panel
from claims.network import Network
from claims.training import BLOCK, Plan, Runs, train
from claims.tuning import LOW_RATES, RATES, chosen, steps_to, tuned

TITLE = "Speed, and other norms"
SENTENCE = "It speeds up training and can improve accuracy, more than layer or instance normalization."
NORMS = ("batch", "layer", "group", "instance", "none")
SIZES = (64, 2)
NETWORKS = {"CNN": Network("conv", 4, 12), "dense network": Network(depth=6)}
IMAGES = {64: {"CNN": 240 * 64, "dense network": 800 * 64}, 2: {"CNN": 600 * 2, "dense network": 1500 * 2}}
"""seen in training"""
TARGET = 0.85
SUPPORT = (
    f"it reaches {100 * TARGET:g} % in fewer steps and seconds than each of the others, and ends higher by more than "
    f"{100 * MARGIN:g} point"
)
AGAINST = "another norm is as fast and as good, or better at some batch size"
LIMITS = (
    "Small networks on one task. At batches of 2 all see few images: what is compared is how far they come, not where "
    "they end. Seconds are processor time of one machine, the only numbers of this page that are not the same when "
    "measured again. Layer and group norm are those of Wu & He (2018), over all pixels."
)
LOOK = "Left of the grey band: worse than batch norm. Right of it: better. In the last panel, who needs fewest steps?"


def _norms(kind: str, size: int = 64) -> list[str]:
    """The norms to compare. Instance norm makes no sense in a dense network, where it would normalize one value."""
    left_out = {"dense network": {"instance"}, "CNN": set()}[kind] | ({"group", "instance"} if size == 2 else set())
    return [norm for norm in NORMS if norm not in left_out]


def _called(norm: str) -> str:
    """The name of a norm in the middle of a sentence."""
    return "no norm" if norm == "none" else LABELS[norm].removeprefix("with ")


def parts(setting: Setting):
    def plan(kind, size):
        return Plan(setting.steps(IMAGES[size][kind] // size), size)

    def seconds():
        """CPU time of a step of ten runs side by side: the norms in turn, the fastest of some rounds."""
        steps = Plan(50, evaluations=1)
        runs = Runs.grid(range(BLOCK), [0.03])
        programs = {
            norm: partial(train, NETWORKS["CNN"]._replace(norm=norm), steps, setting.images, runs) for norm in NORMS
        }
        for program in programs.values():
            program()
        times: dict[str, list[float]] = {norm: [] for norm in NORMS}
        for _ in range(1 if setting.fast else 4):
            for norm, program in programs.items():
                start = time.process_time()
                program()
                times[norm].append(time.process_time() - start)
        return {"milliseconds": {norm: 1000 * min(of) / steps.steps for norm, of in times.items()}}

    def measured(kind, norm, size):
        rates = RATES if size == 64 else LOW_RATES
        return lambda: tuned(NETWORKS[kind]._replace(norm=norm), plan(kind, size), setting, rates)

    found = {
        f"{kind} {norm}, {size}": measured(kind, norm, size)
        for size in SIZES
        for kind in NETWORKS
        for norm in _norms(kind, size)
    }
    return found | {"seconds": seconds}


def _ahead(results: Results, kind: str, other: str, size: int):
    """How far the other norm is ahead of batch norm."""
    a, b = (np.nan_to_num(np.asarray(results[f"{kind} {n}, {size}"]["test"], float)) for n in (other, "batch"))
    return difference(a, b)


def _steps(results: Results, kind: str, norm: str) -> np.ndarray:
    """[seeds] until the target, at the batch size of 64; those that never get there count as one evaluation more."""
    r = results[f"{kind} {norm}, 64"]
    never = 2 * r["step"][-1] - r["step"][-2]
    return np.nan_to_num(steps_to(r, TARGET), nan=never)


def _late(results: Results, kind: str, norm: str) -> bool:
    """Whether a seed never gets there."""
    return bool(np.isnan(steps_to(results[f"{kind} {norm}, 64"], TARGET)).any())


def finding(results: Results) -> Finding:
    words = {
        (kind, size, norm): _ahead(results, kind, norm, size).word()
        for kind in NETWORKS
        for size in SIZES
        for norm in _norms(kind, size)[1:]
    }
    large = [word for (_, size, _), word in words.items() if size == 64]
    better = [
        " and ".join(_called(norm) for norm in ahead)
        + f" {'do' if len(ahead) > 1 else 'does'} better in the {kind} at "
        f"batches of {size}"
        for kind in NETWORKS
        for size in SIZES
        if (ahead := [norm for norm in _norms(kind, size)[1:] if words[kind, size, norm] == "higher"])
    ]
    faster = {
        kind: {norm: ratio(_steps(results, kind, norm), _steps(results, kind, "batch")) for norm in _norms(kind)[1:]}
        for kind in NETWORKS
    }
    fastest = all(r.low > 1 for of in faster.values() for r in of.values())
    ahead_of_none = all(words[kind, 64, "none"] == "lower" for kind in NETWORKS)
    if fastest and all(word == "lower" for word in large) and not better:
        verdict, because = SUPPORTED, "it is the fastest and the best at each batch size"
    elif better and (ahead_of_none or any(r["none"].low > 1 for r in faster.values())):
        verdict, because = PARTLY, "faster than without a norm; but " + ", and ".join(better)
    elif any(r["none"].low > 1 for r in faster.values()):
        verdict, because = PARTLY, "faster than without a norm; at batches of 64 others are as good"
    else:
        verdict, because = NOT_SHOWN, "it is no faster than without a norm"
    texts = []
    for kind in NETWORKS:
        for size in SIZES:
            of = ", ".join(
                f"{interval(np.nan_to_num(np.asarray(results[f'{kind} {n}, {size}']['test'], float))).percent()} "
                + _called(n)
                for n in _norms(kind, size)
            )
            texts.append(f"{kind}, batches of {size}: {of}")
    milliseconds = results["seconds"]["milliseconds"]
    steps = {kind: {n: float(np.median(_steps(results, kind, n))) for n in _norms(kind)} for kind in NETWORKS}
    speed = ", ".join(
        f"{steps['CNN'][n]:.0f} steps or {steps['CNN'][n] * milliseconds[n] / 1000:.1f} s {_called(n)}"
        if steps["CNN"][n] <= (last := results[f"CNN {n}, 64"]["step"][-1])
        else f"more than {last} steps {_called(n)}"
        for n in NORMS
    )
    numbers = {f"{kind}, {size}, {n}": _ahead(results, kind, n, size).points() for (kind, size, n) in words}
    numbers |= {
        f"times the steps, {kind}, {n}": "at least " * _late(results, kind, n) + str(r)
        for kind, of in faster.items()
        for n, r in of.items()
        if not _late(results, kind, "batch")
    }
    numbers |= {f"steps, {n}": f"{steps['CNN'][n]:.0f}" for n in NORMS}
    numbers |= {f"step time, {n}": f"{milliseconds[n] / milliseconds['none']:.2f}" for n in NORMS}
    return Finding(
        f"test accuracy by norm and batch size, rates chosen for each (CNN, 64: "
        f"{chosen({n: results[f'CNN {n}, 64'] for n in NORMS}, NORMS)}); steps and processor seconds of ten CNNs side "
        f"by side until {100 * TARGET:g} % of the validation images",
        f"{'; '.join(texts)}; until {100 * TARGET:g} %: {speed}",
        verdict,
        because,
        numbers,
    )


def seen(results: Results) -> str:
    f = finding(results)
    return f"Steps of the CNN until {100 * TARGET:g} %: " + ", ".join(
        f"{f.numbers[f'steps, {n}']} {LABELS[n]}" for n in NORMS
    )


def draw(results: Results):
    figures = []
    for kind in NETWORKS:
        for size in SIZES:
            names = _norms(kind, size)[1:]
            figure, axes = panel(f"{kind}, batches of {size}", "points over batch norm", "")
            values = [_ahead(results, kind, n, size) for n in names]
            differences(axes, [LABELS[n] for n in names], values, MARGIN, [COLOURS[n] for n in names])
            figures.append(figure)
    figure, axes = panel("CNN, batches of 64", "step", "validation accuracy [%]", ylim=(0, 102))
    for norm in NORMS:
        r = results[f"CNN {norm}, 64"]
        curve(axes, r["step"], 100 * np.asarray(r["curve"], float), norm, marker="")
    axes.axhline(100 * TARGET, color="#1b1b1f", linewidth=0.7)
    axes.legend(loc="lower right")
    return [*figures, figure]
