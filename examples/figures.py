"""How the figures of the examples look, and the one of `digits.py`."""

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # figures go to files: no display is needed
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure

from data import Dataset

# Told apart by readers with any colour vision (Okabe & Ito 2008).
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000",
)  # fmt: skip
STYLE: Any = {
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK]),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "font.size": 9,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "savefig.dpi": 150,
}


def save(figure: Figure, path: Path) -> None:
    """Writes the figure to a file, in a new folder if need be, and says where it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
    print(f"figure: {path}")


def training_figure(
    data: Dataset, probabilities: np.ndarray, curves: dict[str, list[float]], title: str, norm: str
) -> Figure:
    """Curves above, test images below: first those that the network got wrong, framed and labeled.

    Args:
      data: the images.
      probabilities: [m, classes], those of the test images.
      curves: 'training loss', 'training accuracy' and 'validation accuracy', one value per epoch.
      title: that of the figure.
      norm: that of the network; only batch norm evaluates with running statistics.
    """
    predicted, confidence = probabilities.argmax(-1), probabilities.max(-1)
    wrong = predicted != data.test_y
    shown = np.lexsort((confidence, ~wrong))[:40]
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=(9, 7.5), layout="constrained")
        figure.suptitle(title)
        above, below = np.asarray(figure.subfigures(2, 1, height_ratios=(2, 3)))
        _draw_curves(above, curves, "validation, with the running statistics" if norm == "batch" else "validation")
        below.suptitle(
            f"{wrong.sum()} of {len(wrong)} test images are wrong (framed); the others: those it was least sure of",
            fontsize="medium",
        )
        grid = below.subplots(-(-len(shown) // 10), 10, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, i in zip(grid.flat, shown, strict=False):
            said, true = fitting(data.classes[predicted[i]]), fitting(data.classes[data.test_y[i]], 10)
            _draw_image(axes, data.test_x[i], f"{said}\nnot {true}" if wrong[i] else said, wrong[i])
    return figure


def fitting(name: str, length: int = 14) -> str:
    """The name of a class as Matplotlib can draw it: shortened if it is long, and with dollar signs escaped."""
    short = name if len(name) <= length else name[: length - 1] + "…"
    return short.replace("$", r"\$")


def _draw_curves(figure, curves: dict[str, list[float]], validation: str) -> None:
    left, right = figure.subplots(1, 2)
    epochs = np.arange(1, len(curves["training loss"]) + 1)
    left.semilogy(epochs, curves["training loss"])
    left.set(xlabel="epoch", ylabel="training loss")
    right.plot(epochs, 100 * np.array(curves["training accuracy"]), label="training, batch by batch")
    right.plot(epochs, 100 * np.array(curves["validation accuracy"]), label=validation)
    right.set(xlabel="epoch", ylabel="accuracy [%]")
    right.legend()
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)


def _draw_image(axes, image: np.ndarray, text: str, wrong: bool) -> None:
    low, high = image.min(), image.max()
    pixels = (image - low) / max(high - low, 1e-6)
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(text, fontsize=7, pad=3, color=RED if wrong else BLACK)
    if wrong:
        axes.set_axis_on()
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(visible=True, color=RED, linewidth=2.5)
