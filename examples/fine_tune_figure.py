"""The figure of `fine_tune.py`: how well each network does on the new images, and what it sees in some of them."""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

import figures
from data import Dataset

SHOWN = 11


def comparison(curves: dict[str, list[float]], data: Dataset, seen: dict[str, np.ndarray], title: str) -> Figure:
    """Curves of the test accuracy above; below, the first images that the first network gets wrong.

    Args:
      curves: test accuracy of each network, in [0, 1], before and after each epoch; one value if it was not trained.
      data: the new images.
      seen: what each network sees in each test image, [m] int.
      title: that of the figure.
    """
    wrong = np.flatnonzero(next(iter(seen.values())) != data.test_y)[:SHOWN]
    with mpl.rc_context(figures.STYLE):
        figure = figures.plt.figure(figsize=(8.5, 6.5), layout="constrained")
        figure.suptitle(title)
        above, below = np.asarray(figure.subfigures(2, 1, height_ratios=(2, 1)))
        _draw_curves(above.subplots(), curves)
        above.legend(loc="outside right center")
        first = next(iter(seen))
        below.suptitle(
            f"The first test images that the {first} network gets wrong, and what each network sees in them: "
            "right in black, wrong in red",
            fontsize="medium",
        )
        grid = np.ravel(below.subplots(1, SHOWN))
        for axes in grid:
            axes.set_axis_off()
        for axes, i in zip(grid, wrong, strict=False):
            axes.set_anchor("N")
            axes.imshow(data.test_x[i, ..., 0], cmap="gray", interpolation="nearest")
            for row, (name, classes) in enumerate({"label": data.test_y, **seen}.items()):
                y = -0.3 - 0.3 * row
                color = figures.BLACK if classes[i] == data.test_y[i] else figures.RED
                axes.text(0.5, y, str(classes[i]), color=color, ha="center", transform=axes.transAxes)
                if axes is grid[0]:
                    axes.text(-0.3, y, name, ha="right", transform=axes.transAxes)
    return figure


def _draw_curves(axes, curves: dict[str, list[float]]) -> None:
    epochs = max(map(len, curves.values())) - 1
    for name, curve in curves.items():
        label = f"{name}: {curve[-1]:.1%}"
        if len(curve) == 1:
            axes.plot([0, epochs], [100 * curve[0]] * 2, "--", label=label)
        else:
            axes.plot(range(epochs + 1), 100 * np.array(curve), label=label)
    axes.set(xlabel="epoch", ylabel="accuracy on the test images [%]")
