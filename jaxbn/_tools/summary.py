"""What a person needs to find the sick batch norm of a model: as data, as a table and as a figure."""

import io
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxbn._core import checks, rules
from jaxbn._core.types import Moments
from jaxbn._models.find import Found, find_batch_norms
from jaxbn._models.tree import Path, moments_by_path, path_name
from jaxbn._tools.checks import check_layer, check_numbers
from jaxbn._tools.optional import load

DEAD_SCALE = 1e-3
"""A channel whose scale is at most this is dead."""
FAR = 10.0
"""Distances of more standard errors than this are shown in red. Chance gives 2 to 4; neighbouring pixels, which are not
independent, give more."""


class LayerSummary(NamedTuple):
    """One batch norm of a model."""

    layer: str
    """its path, 'encoder/0/bn'"""
    num_features: int
    """number of channels"""
    updates: int | None
    """of the running statistics so far; None where they are not counted"""
    smallest_var: float
    """of the running variances, in the squared unit of the data; NaN where there is no channel"""
    largest_var: float
    """of the running variances, likewise"""
    dead: int
    """channels that carry no information: a scale within 1e-3 of 0, or a running variance below epsilon"""
    not_finite: int
    """channels with a statistic, scale or bias that is not finite"""
    mean_distance: float | None
    """from the running mean to that of the batch, in standard errors of the latter, for the channel that is farthest
    off; None without moments"""
    var_distance: float | None
    """from the running variance to that of the batch, in standard errors of the latter for normal data, likewise"""


class Summary(list[LayerSummary]):
    """The rows of `jaxbn.summary`. Printed, they are a table."""

    def table(self) -> Any:
        """The rows as a `rich.table.Table`, with what looks sick in red.

        Raises:
          ImportError: rich is not installed.
        """
        table = load("rich.table", "The table of jaxbn.summary").Table("layer", title="Batch norms")
        measured = any(row.mean_distance is not None for row in self)
        headings = ["features", "updates", "smallest var", "largest var", "dead", "not finite"]
        for heading in headings + ["mean off by", "var off by"] * measured:
            table.add_column(heading, justify="right")
        for row in self:
            distances = (row.mean_distance, row.var_distance) if measured else ()
            table.add_row(
                row.layer,
                str(row.num_features),
                "-" if row.updates is None else str(row.updates),
                *(f"{var:.3g}" if row.num_features else "-" for var in (row.smallest_var, row.largest_var)),
                _cell(str(row.dead), row.dead > 0),
                _cell(str(row.not_finite), row.not_finite > 0),
                *("-" if d is None else _cell(f"{d:.1f} s.e.", d > FAR) for d in distances),
            )
        return table

    def __str__(self) -> str:
        """The table as plain text."""
        console = load("rich.console", "The table of jaxbn.summary").Console(file=io.StringIO(), width=120)
        console.print(self.table())
        return console.file.getvalue()

    def figure(self) -> Any:
        """The rows as a `matplotlib.figure.Figure`: variances, dead channels and distances, layer by layer.

        Raises:
          ImportError: matplotlib is not installed.
        """
        load("matplotlib", "The figure of jaxbn.summary")
        from jaxbn._tools.summary_figure import draw

        return draw(self, FAR)


def summary(
    model: Any, moments: Any = None, *, epsilon: float = 1e-5, stacked: bool = False, num_feature_axes: int = 1
) -> Summary:
    """Every batch norm of a model, with what a person needs to find the sick one.

    Args:
      model: variables {'params': ..., 'batch_stats': ...}, an nnx module or its `nnx.State`.
      moments: those of the latest batch, from `jaxbn.collect_moments`; or a tree like `batch_stats` with
        `jaxbn.Moments` or {'count', 'mean', 'var'} in place of each layer, such as a collection 'batch_moments'.
      epsilon: that of the batch norms, in the unit of the variance; a channel with a smaller running variance is dead.
      stacked: statistics of more than one axis, [L, C] or [D, C], are those of layers that a scan or vmap stacks, or of
        domains, and each has a row, 'blocks/bn[0]'. Otherwise they are one layer with several feature axes, and have
        one row.
      num_feature_axes: of the statistics, where they are `stacked`; the axes before these are those of layers and
        domains.

    Returns:
      A list of `LayerSummary`, one for each batch norm, in the order of the tree. `print(rows)` shows a table,
      `rows.table()` is one for rich, `rows.figure()` a matplotlib figure.

    Raises:
      ValueError: the model has no batch norm; the moments belong to different layers or have different shapes;
        `epsilon` is not positive; or with that many feature axes a scale or bias is not of its statistics.
      TypeError: `model` is none of the above, or it or `moments` hold something else than arrays of numbers.

    References:
      Standard error of a variance: Kenney & Keeping 1951, "Mathematics of statistics", part 2, section 7.6: for n
      normal values of variance v it is v sqrt(2 / n).

    Example:
      >>> import jax, jax.numpy as jnp, jaxbn, jaxbn.linen, jaxbn.nnx
      >>> from flax import nnx
      >>> x = jnp.array([[0.0, 0.0], [4.0, 0.0]])
      >>> model = jaxbn.linen.BatchNorm(use_running_average=False, momentum=0.0)
      >>> variables = model.init(jax.random.key(0), x)
      >>> _, updates = model.apply(variables, x, mutable=["batch_stats"])
      >>> (row,) = jaxbn.summary(variables | updates)
      >>> row.num_features, row.smallest_var, row.largest_var, row.dead
      (2, 0.0, 4.0, 1)

      With the moments of a batch, for nnx and for plain trees:

      >>> model = jaxbn.nnx.BatchNorm(2, rngs=nnx.Rngs(0))
      >>> moments = jaxbn.collect_moments(lambda model, x: model(x), model, x)
      >>> round(jaxbn.summary(model, moments)[0].mean_distance, 3)
      2.828
      >>> params, batch_stats = jaxbn.init(2)
      >>> model = {"params": params, "batch_stats": batch_stats}
      >>> round(jaxbn.summary(model, jaxbn.batch_moments(x))[0].mean_distance, 3)
      2.828
    """
    found = find_batch_norms(model)
    epsilon = checks.check_epsilon(epsilon)
    by_path = _by_path(moments)
    unknown = sorted(path_name(path) for path in set(by_path) - set(found))
    if unknown:
        raise ValueError(
            f"`moments` must be of the batch norms of the model, {', '.join(map(path_name, found))}, got {unknown} too."
        )
    checks.check_static_bool(stacked, "stacked")
    num_features = checks.check_integer(num_feature_axes, "num_feature_axes", 1)
    rows = Summary()
    for path, layer in found.items():
        name, of_batch = path_name(path), by_path.get(path)
        check_layer(layer.batch_stats, "model", path)
        for param, v in layer.params.items():
            if v is not None:
                check_numbers(v, "model", (*path, param))
        if of_batch is not None:
            _check_moments(path, of_batch, layer)
        shape = np.shape(layer.batch_stats["mean"])
        num_stacked = max(len(shape) - num_features, 0) if stacked else 0
        for param, v in layer.params.items() if stacked else ():
            if np.shape(v) != (*shape[: max(np.ndim(v) - num_features, 0)], *shape[num_stacked:]):
                raise ValueError(
                    f"`num_feature_axes` must be the number of feature axes, got {num_features} for {param} "
                    f"{list(np.shape(v))} and a mean {list(shape)} at {name}."
                )
        for index in np.ndindex(shape[:num_stacked]):
            one, of_one = (_part(v, index, num_features) for v in (layer, of_batch))
            rows.append(_row(name + "".join(f"[{i}]" for i in index), one, of_one, epsilon))
    return rows


def _part(layer: Any, index: tuple[int, ...], num_features: int) -> Any:
    """One layer of a stack, or one domain; what has fewer axes, such as a scale that domains share, is of all."""

    def part(keys, v):
        is_param = any(getattr(k, "name", None) == "params" for k in keys)
        return np.asarray(v)[index[: max(np.ndim(v) - num_features * is_param, 0)]]

    return jax.tree_util.tree_map_with_path(part, layer)


def _by_path(moments: Any) -> dict[Any, Moments]:
    if moments is None:
        return {}
    of_paths = isinstance(moments, Mapping) and all(isinstance(path, tuple) for path in moments)
    found = dict(moments) if of_paths else moments_by_path(moments)
    if not found:
        raise ValueError(
            "`moments` must be jaxbn.Moments of the batch norms, from jaxbn.collect_moments or in a tree like "
            f"`batch_stats`, got {type(moments).__name__} without any."
        )
    return found


def _check_moments(path: Path, moments: Moments, layer: Found) -> None:
    if isinstance(moments, tuple):
        for name, v in zip(Moments._fields, moments, strict=False):
            check_numbers(v, "moments", (*path, name))
    try:
        rules.check_moments(moments, {"mean": layer.batch_stats["mean"]})
    except ValueError as error:
        raise ValueError(f"{path_name(path)}: {error}") from None


def _row(name: str, layer: Found, moments: Moments | None, epsilon: float) -> LayerSummary:
    params = {k: _wide(v) for k, v in layer.params.items()}
    stats = {k: _wide(v) for k, v in layer.batch_stats.items()}
    mean, var = stats["mean"], stats["var"]
    # A scale that domains share has fewer axes than their statistics.
    finite = np.all(np.broadcast_arrays(*(np.isfinite(v) for v in (mean, var, *params.values()))), axis=0)
    dead = (var < epsilon) | (np.abs(params.get("scale", np.ones(()))) <= DEAD_SCALE)
    distances = (None, None) if moments is None else _distances(mean, var, moments, epsilon)
    return LayerSummary(
        layer=name,
        num_features=mean.size,
        updates=int(stats["count"].max(initial=0)) if "count" in stats else None,
        smallest_var=float(var.min()) if var.size else math.nan,
        largest_var=float(var.max()) if var.size else math.nan,
        dead=int(dead.sum()),
        not_finite=int((~finite).sum()),
        mean_distance=distances[0],
        var_distance=distances[1],
    )


def _distances(mean, var, moments: Moments, epsilon: float) -> tuple[float | None, float | None]:
    """Those of the channel that is farthest off, in standard errors of a batch drawn from the running statistics.

    A channel that is constant in both, except for traces of older batches, is dead rather than off.
    """
    count, batch_mean, batch_var = (_wide(m) for m in moments)
    count = np.broadcast_to(count, var.shape)
    seen = (count > 0) & ((var >= epsilon) | (batch_var >= epsilon))
    return (
        _farthest(np.abs(batch_mean - mean)[seen], np.sqrt(var[seen] / count[seen])),
        _farthest(np.abs(batch_var - var)[seen], var[seen] * np.sqrt(2 / count[seen])),
    )


def _farthest(difference: np.ndarray, error: np.ndarray) -> float | None:
    if not difference.size:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.where(difference == 0, 0.0, difference / error)
    return float(np.where(np.isnan(distance), np.inf, distance).max())


def _wide(value: Any) -> np.ndarray:
    value = np.asarray(value)
    return value.astype(np.complex128 if np.iscomplexobj(value) else np.float64)


def _cell(text: str, sick: bool) -> str:
    return f"[bold red]{text}[/]" if sick else text
