"""Claim 7: faster convergence and higher accuracy, also against layer, instance and group norm in CNNs."""

import matplotlib.pyplot as plt
import numpy as np

from claims.claim import Finding, Results, Setting, best, interval
from claims.network import Network
from claims.training import Plan, Runs, steps_to, train
from figures import BLACK, BLUE, GREEN, ORANGE, RED

TITLE = "Against other norms"
CLAIM = "Training converges faster and to a higher accuracy, also compared with layer and instance norm in CNNs."
NORMS = ("batch", "group", "layer", "instance", "none")
STYLES = dict(zip(NORMS, ((BLUE, "o-"), (GREEN, "s--"), (ORANGE, "^-."), (RED, "v:"), (BLACK, "x-")), strict=True))
SIZES = (2, 8, 32, 256)
RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
IMAGES = 8 * 1280
"""seen in training, whatever the batch size"""
TARGET = 0.9


def parts(setting: Setting):
    rates = setting.some(RATES)

    def measured(norm, size):
        def measure():
            plan = Plan(setting.steps(IMAGES // size), min(size, len(setting.data.train_x)), evaluations=10)
            out = train(Network("conv", 4, 16, norm=norm), plan, setting.data, Runs.grid(setting.seeds, rates))
            shape = (setting.seeds, len(rates))
            return {
                "rates": rates,
                "accuracy": np.asarray(out.test_accuracy)[:, -1].reshape(shape),
                "images": (steps_to(out.test_accuracy, TARGET, plan) * size).reshape(shape),
            }

        return measure

    return {f"{norm}, {size}": measured(norm, size) for size in setting.some(SIZES) for norm in NORMS}


def _top(results: Results, norm: str, size: int) -> np.ndarray:
    """Accuracy [seeds] at the best learning rate."""
    r = results[f"{norm}, {size}"]
    return np.asarray(r["accuracy"])[:, best(r["accuracy"])]


def _images(results: Results, norm: str, size: int) -> np.ndarray:
    """Images seen until the target is reached [seeds], at the learning rate at which that is soonest."""
    images = np.asarray(results[f"{norm}, {size}"]["images"], float)
    return images[:, np.where(np.isfinite(images), images, 2 * IMAGES).mean(0).argmin()]


def _sizes(results: Results) -> list[int]:
    return sorted({int(name.split(", ")[1]) for name in results})


def finding(results: Results) -> Finding:
    sizes = _sizes(results)
    ahead, behind, texts = [], [], []
    for size in sizes:
        tops = {norm: _top(results, norm, size) for norm in NORMS}
        rival = max((n for n in NORMS if n != "batch"), key=lambda n: tops[n].mean())
        lead = interval(tops["batch"] - tops[rival])
        ahead += [size] * (lead.mean - lead.half > 0)
        behind += [size] * (lead.mean + lead.half < 0)
        texts.append(
            f"{size}: batch {interval(tops['batch']).percent()}, best other ({rival}) {interval(tops[rival]).percent()}"
        )
    seen = {norm: np.median(_images(results, norm, sizes[-1])) for norm in NORMS}
    seen = {norm: f"{s:.0f} {norm}" if np.isfinite(s) else f"never {norm}" for norm, s in seen.items()}
    where = f"ahead of all others at batch sizes {ahead or 'none'}, behind at {behind or 'none'}, elsewhere neither"
    return Finding(
        f"test accuracy of a CNN after {IMAGES} images at each one's best learning rate, by batch size; images seen "
        f"until {TARGET:.0%}",
        f"{'; '.join(texts)}; images to {TARGET:.0%} in batches of {sizes[-1]}, median: {', '.join(seen.values())}",
        f"holds in part: {where}" if ahead else f"does not hold here against all: {where}",
    )


def draw(results: Results):
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    sizes = _sizes(results)
    for norm in NORMS:
        colour, style = STYLES[norm]
        tops = [interval(100 * _top(results, norm, s)) for s in sizes]
        axes[0].errorbar(sizes, [v.mean for v in tops], [v.half for v in tops], fmt=style, color=colour, label=norm)
        seen = [np.median(_images(results, norm, s)) for s in sizes]
        axes[1].plot(sizes, seen, style, color=colour)
    lowest = min(100 * _top(results, norm, s).mean() for norm in NORMS for s in sizes)
    axes[0].set(ylabel="test accuracy [%]", ylim=(max(0, lowest - 10), 101))
    axes[1].set(ylabel=f"images seen until {TARGET:.0%}, median", ylim=(0, None))
    for ax in axes:
        ax.set_xscale("log", base=2)
        ax.set_xticks(sizes, sizes)
        ax.set_xlabel("batch size [images]")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", title="norm")
    return figure
