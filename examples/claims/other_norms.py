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
NETWORKS = {"CNN": Network("conv", 4, 16), "dense": Network("dense", 4, 64)}
RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
IMAGES = 8 * 1280
"""seen in training, whatever the batch size"""
TARGET = 0.9


def parts(setting: Setting):
    rates = setting.some(RATES)

    def measured(network, size):
        def measure():
            plan = Plan(setting.steps(IMAGES // size), min(size, len(setting.data.train_x)), evaluations=10)
            out = train(network, plan, setting.data, Runs.grid(setting.seeds, rates))
            shape = (setting.seeds, len(rates))
            return {
                "rates": rates,
                "accuracy": np.asarray(out.test_accuracy)[:, -1].reshape(shape),
                "images": (steps_to(out.test_accuracy, TARGET, plan) * size).reshape(shape),
            }

        return measure

    return {
        f"{kind} {norm}, {size}": measured(network._replace(norm=norm), size)
        for kind, network in NETWORKS.items()
        for size in setting.some(SIZES)
        for norm in NORMS
        if (kind, norm) != ("dense", "instance")  # which has one value to normalize
    }


def _top(results: Results, kind: str, norm: str, size: int) -> np.ndarray:
    """Accuracy [seeds] at the best learning rate."""
    r = results[f"{kind} {norm}, {size}"]
    return np.asarray(r["accuracy"])[:, best(r["accuracy"])]


def _images(results: Results, norm: str, size: int) -> np.ndarray:
    """Images that the CNN sees until it reaches the target [seeds], at the learning rate at which that is soonest."""
    images = np.asarray(results[f"CNN {norm}, {size}"]["images"], float)
    return images[:, np.where(np.isfinite(images), images, 2 * IMAGES).mean(0).argmin()]


def _norms(results: Results, kind: str) -> list[str]:
    return [norm for norm in NORMS if any(name.startswith(f"{kind} {norm},") for name in results)]


def _sizes(results: Results) -> list[int]:
    return sorted({int(name.split(", ")[1]) for name in results})


def _compared(results: Results, kind: str) -> tuple[list[int], list[int], str]:
    """Batch sizes at which batch norm is ahead of all others; those at which it is behind the best; the numbers."""
    ahead, behind, texts = [], [], []
    for size in _sizes(results):
        tops = {norm: _top(results, kind, norm, size) for norm in _norms(results, kind)}
        rival = max((n for n in tops if n != "batch"), key=lambda n: tops[n].mean())
        lead = interval(tops["batch"] - tops[rival])
        ahead += [size] * (lead.mean - lead.half > 0)
        behind += [size] * (lead.mean + lead.half < 0)
        texts.append(f"{size}: {interval(tops['batch']).percent()}, {rival} {interval(tops[rival]).percent()}")
    return ahead, behind, "; ".join(texts)


def finding(results: Results) -> Finding:
    compared = {kind: _compared(results, kind) for kind in NETWORKS}
    where = "; ".join(
        f"{kind}: ahead of all others at batch sizes {ahead or 'none'}, behind at {behind or 'none'}"
        for kind, (ahead, behind, _) in compared.items()
    )
    largest = _sizes(results)[-2]
    seen = {norm: np.median(_images(results, norm, largest)) for norm in NORMS}
    seen = ", ".join(f"{s:.0f} {norm}" if np.isfinite(s) else f"never {norm}" for norm, s in seen.items())
    return Finding(
        f"test accuracy after {IMAGES} images at each one's best learning rate, by batch size: batch norm and the best "
        f"of the others; images that the CNN sees until {TARGET:.0%} in batches of {largest}, median",
        f"CNN: {compared['CNN'][2]}. Dense: {compared['dense'][2]}. Images: {seen}",
        f"holds in part: {where}"
        if any(ahead for ahead, _, _ in compared.values())
        else f"does not hold here: {where}",
    )


def draw(results: Results):
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained")
    sizes = _sizes(results)
    for norm in NORMS:
        colour, style = STYLES[norm]
        for ax, kind in zip(axes[::2], NETWORKS, strict=True):
            if norm in _norms(results, kind):
                tops = [interval(100 * _top(results, kind, norm, s)) for s in sizes]
                ax.errorbar(sizes, [v.mean for v in tops], [v.half for v in tops], fmt=style, color=colour, label=norm)
        axes[1].plot(sizes, [np.median(_images(results, norm, s)) for s in sizes], style, color=colour)
    axes[0].set(ylabel="test accuracy [%]", title="CNN", ylim=(45, 101))
    axes[1].set(ylabel=f"images seen until {TARGET:.0%}, median", title="CNN", ylim=(0, None))
    axes[2].set(ylabel="test accuracy [%]", title="dense network", ylim=(25, 101))
    for ax in axes:
        ax.set_xscale("log", base=2)
        ax.set_xticks(sizes, sizes)
        ax.set_xlabel("batch size [images]")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", title="norm")
    return figure
