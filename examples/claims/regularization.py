"""Claim 8: the noise of the mini-batch's statistics regularizes."""

import matplotlib.pyplot as plt
import numpy as np

from claims.claim import Finding, Results, Setting, interval
from claims.network import Network
from claims.training import Plan, Runs, train
from figures import BLUE, GREEN, ORANGE

TITLE = "Regularization"
CLAIM = "It has a regularizing effect."
IMAGES, RATE = 160, 0.1
CASES = {
    # All take the gradient of all training images at once: only the noise of the statistics differs.
    "none": Network(norm="none", depth=4),
    "whole": Network(depth=4),
    "chunks of 40": Network(depth=4, virtual_batch_size=40),
    "chunks of 8": Network(depth=4, virtual_batch_size=8),
    "chunks of 4": Network(depth=4, virtual_batch_size=4),
}


def parts(setting: Setting):
    images = min(IMAGES, len(setting.data.train_x) // 8 * 8)
    plan = Plan(setting.steps(300), images, train_images=images, evaluations=30 if not setting.fast else 10)

    def measured(network):
        def measure():
            if network.virtual_batch_size and images % network.virtual_batch_size:
                raise ValueError(f"{images} training images are no multiple of {network.virtual_batch_size}")
            out = train(network, plan, setting.data, Runs.grid(setting.seeds, [RATE]))
            every = plan.steps // plan.evaluations
            return {
                "step": np.arange(every, plan.steps + 1, every),
                "images": images,
                **{
                    k: np.asarray(getattr(out, k))
                    for k in ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
                },
            }

        return measure

    return {name: measured(network) for name, network in CASES.items()}


def _gap(result) -> np.ndarray:
    """[seeds] test loss less training loss, at the end."""
    return np.asarray(result["test_loss"])[:, -1] - np.asarray(result["train_loss"])[:, -1]


def _end(result) -> np.ndarray:
    return np.asarray(result["test_accuracy"])[:, -1]


def finding(results: Results) -> Finding:
    gaps = {name: interval(_gap(r)) for name, r in results.items()}
    ends = {name: interval(_end(r)) for name, r in results.items()}
    noise = interval(_gap(results["whole"]) - _gap(results["chunks of 8"]))
    itself = interval(_gap(results["none"]) - _gap(results["whole"]))
    verdict = {
        (True, True): "holds: the gap is smaller with batch norm, and smaller still with noisier statistics",
        (True, False): "holds in part: the gap is smaller with batch norm, but not because its statistics are noisy: "
        "those of random chunks and those of all images give the same",
        (False, True): "holds in part: only noisy statistics narrow the gap",
        (False, False): "does not hold here",
    }[itself.mean - itself.half > 0, noise.mean - noise.half > 0]
    return Finding(
        f"test loss less training loss, {results['none']['images']} training images, gradients of all of them at once; "
        "statistics of the whole batch or of random chunks of it",
        "; ".join(f"{name}: gap {gaps[name].number()}, test accuracy {ends[name].percent()}" for name in results),
        verdict,
    )


def draw(results: Results):
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    places = np.arange(len(results))
    colours = [ORANGE, BLUE, GREEN, GREEN, GREEN]
    for ax, of in ((axes[0], _gap), (axes[1], lambda r: 100 * _end(r))):
        values = [interval(of(r)) for r in results.values()]
        ax.bar(
            places, [v.mean for v in values], yerr=[v.half for v in values], color=colours, error_kw={"linewidth": 1}
        )
        ax.set_xticks(
            places, ["no\nbatch norm", "statistics\nof all", *(n.replace(" of", "\nof") for n in list(results)[2:])]
        )
        ax.grid(axis="x", visible=False)
    lowest = min((100 * _end(r)).min() for r in results.values())
    axes[0].set(ylabel="test loss - training loss", title="gap")
    axes[1].set(ylabel="test accuracy [%]", title="test", ylim=(max(0, lowest - 5), 100))
    return figure
