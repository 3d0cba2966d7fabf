"""Gradient accumulation for networks: moments kept beside `batch_stats` and merged one microbatch at a time.

Each layer of `batch_stats`, {'mean', 'var'}, has its {'count', 'mean', 'var'} in `batch_moments`: [C] each, the moments
of the microbatches so far, and beside them {'count_rest', 'mean_rest'}, what rounding has dropped. The Flax modules
merge into them; this file has how they start and how they are committed.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp

from jaxbn._core import checks
from jaxbn._core.merge import zeros_of_layer
from jaxbn._core.numbers import as_complex_as
from jaxbn._core.state import update_batch_stats
from jaxbn._core.types import Moments, Momentum
from jaxbn._models.tree import DROPPED, Path, is_batch_stats, is_moments, map_layers, moments_by_path, nodes, path_name
from jaxbn._tools.checks import check_layer


def zero_moments(batch_stats: Mapping[str, Any]) -> dict[str, Any]:
    """Empty moments for each layer of `batch_stats`, with which every optimizer step starts.

    Args:
      batch_stats: {'mean': [C], 'var': [C]}, or nested dicts, lists and tuples of these, such as the `batch_stats`
        collection of a Flax model; [L, C] for stacked layers.

    Returns:
      The same tree with {'count': [C], 'mean': [C], 'var': [C]} in place of each layer's statistics, and with what
      rounding will drop from the first two, 'count_rest' [C] and 'mean_rest' [C]: a float32 mean alone gets stuck after
      a few thousand microbatches. All are zero, at least float32, and each is an array of its own, so that they can be
      donated. Nodes of other layers are left out; in a list, an empty dict keeps their place.

    Raises:
      TypeError: `batch_stats` is not a dict, list or tuple, or a layer holds something else than arrays of numbers.

    Example:
      >>> import jax, jaxbn
      >>> _, batch_stats = jaxbn.init(2)
      >>> zeros = jaxbn.zero_moments({"bn": batch_stats})["bn"]
      >>> zeros["count"].tolist(), zeros["mean"].tolist(), zeros["var"].tolist()
      ([0.0, 0.0], [0.0, 0.0], [0.0, 0.0])
    """
    check_tree(batch_stats, "batch_stats")

    def zeros_of(path: Path, stats: Mapping[str, Any]) -> dict[str, jax.Array]:
        check_layer(stats, "batch_stats", path)
        return zeros_of_layer(stats["mean"])._asdict()

    zeros = map_layers(batch_stats, zeros_of, lambda *_: DROPPED)
    return {} if zeros is DROPPED else zeros


def commit_moments(
    batch_stats: Mapping[str, Any],
    batch_moments: Mapping[str, Any],
    *,
    momentum: Momentum | Mapping[str, Momentum],
    unbiased: bool | Mapping[str, bool] = False,
) -> dict[str, Any]:
    """`jaxbn.update_batch_stats` for each layer of a model, once per optimizer step.

    Args:
      batch_stats: {'mean': [C], 'var': [C]} and perhaps 'count', or nested dicts, lists and tuples of these; [L, C] for
        stacked layers.
      batch_moments: the same tree of {'count': [C], 'mean': [C], 'var': [C]}, and others beside them; a layer that is
        absent, or that has seen no examples, keeps its statistics.
      momentum: weight of the old value, as in `jaxbn.update_batch_stats`: either one for all layers, or a dict from
        the path of a layer, such as 'encoder/0/bn', to its momentum. `*` matches any characters, and the first key
        that matches is used: {'encoder/*': 0.9, '*': 0.99}. `jaxbn.layer_options` reads such a dict off a model.
      unbiased: whether the running variances are divided by `count - 1`, where `count` is that of the whole step;
        either one for all layers, or a dict by path.

    Returns:
      New `batch_stats` with the same tree, shapes and dtypes; a FrozenDict becomes a dict.

    Raises:
      ValueError: `batch_moments` has no layers, or one that `batch_stats` lacks; a dict by path matches a layer with
        none of its keys, or has a key that matches no layer; or an argument breaks a rule of
        `jaxbn.update_batch_stats`.
      TypeError: one of the trees is not a dict, list or tuple.

    References:
      Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".

    Example:
      A step of two microbatches, through a `jaxbn.linen` module; the same carry goes through `jax.lax.scan`.

      >>> import jax, jax.numpy as jnp, jaxbn
      >>> from jaxbn.linen import BatchNorm
      >>> model = BatchNorm(use_running_average=False)
      >>> microbatches = jnp.array([[[1.0], [3.0]], [[5.0], [7.0]]])
      >>> variables = model.init(jax.random.key(0), microbatches[0])
      >>> batch_stats, batch_moments = variables["batch_stats"], jaxbn.zero_moments(variables["batch_stats"])
      >>> for x in microbatches:
      ...     given = {**variables, "batch_moments": batch_moments}
      ...     y, written = model.apply(given, x, mutable=["batch_moments"])
      ...     batch_moments = written["batch_moments"]
      >>> batch_stats = jaxbn.commit_moments(batch_stats, batch_moments, momentum=0.5)
      >>> batch_stats["mean"].tolist(), batch_stats["var"].tolist()
      ([2.0], [3.0])
    """
    check_tree(batch_stats, "batch_stats")
    check_tree(batch_moments, "batch_moments")
    moments, layers = moments_by_path(batch_moments), nodes(batch_stats, is_batch_stats)
    _check_places(batch_moments, moments, layers)
    momenta = _by_path(momentum, list(layers), "momentum")
    corrections = _by_path(unbiased, list(layers), "unbiased")

    def commit(path: Path, stats: Mapping[str, Any]) -> Mapping[str, Any]:
        if path not in moments:
            return stats
        _check_count(path, stats)

        def update(stats, moments):
            return update_batch_stats(stats, moments, momentum=momenta[path], unbiased=corrections[path])

        of_step = moments[path]
        # Layers stacked by nn.vmap or nn.scan may have a count each.
        for _ in range(jnp.ndim(stats["count"]) if _counts_layers(stats) else 0):
            update = jax.vmap(update)
        return update({**stats, "mean": as_complex_as(of_step.mean, stats["mean"])}, of_step)

    return map_layers(batch_stats, commit, lambda _, leaf: leaf)


def _check_count(path: Path, stats: Mapping[str, Any]) -> None:
    """Checks that there is one count for each layer of a stack, [] or [L], or for each channel, [L, C]."""
    mean, count = (jnp.shape(checks.check_array(stats.get(k, 0), f"batch_stats[{k!r}]")) for k in ("mean", "count"))
    if count != mean[: len(count)]:
        raise ValueError(
            f"`batch_stats['count']` must have the shape of the mean, {list(mean)}, or its first axes, got "
            f"{list(count)} at {path_name(path)}."
        )


def _counts_layers(stats: Mapping[str, Any]) -> bool:
    return "count" in stats and jnp.shape(stats["count"]) != jnp.shape(stats["mean"])


def _check_places(tree: Any, moments: Mapping[Path, Moments], layers: Mapping[Path, Any]) -> None:
    if layers and not moments and not nodes(tree, lambda node: not isinstance(node, Mapping | list | tuple)):
        raise ValueError(
            f"`batch_moments` must hold moments of a layer of `batch_stats`, {[*map(path_name, layers)]}, got none."
        )
    for path in nodes(tree, lambda node: is_moments(node) or not isinstance(node, Mapping | list | tuple)):
        if path not in moments:
            here = sorted(p[-1] for p in nodes(tree, lambda n: not isinstance(n, Mapping)) if p[:-1] == path[:-1])
            raise ValueError(
                "`batch_moments` must hold 'count', 'mean' and 'var' for each layer, got "
                f"{here} at {path_name(path[:-1])}."
            )
    unknown = sorted(path_name(path) for path in set(moments) - set(layers))
    if unknown:
        raise ValueError(
            f"`batch_moments` must hold layers of `batch_stats` only, {[*map(path_name, layers)]}, got {unknown}."
        )


def _by_path(rule: Any, paths: list[Path], name: str) -> dict[Path, Any]:
    """The value for each layer, from one value for all or from a dict by path."""
    if not isinstance(rule, Mapping):
        return dict.fromkeys(paths, rule)
    chosen = {path: next((p for p in rule if fnmatchcase(path_name(path), str(p))), None) for path in paths}
    silent = [path_name(path) for path, pattern in chosen.items() if pattern is None]
    idle = [p for p in rule if not any(fnmatchcase(path_name(path), str(p)) for path in paths)]
    if silent or idle:
        raise ValueError(
            f"`{name}` by path must have a key that fits for each layer, {[*map(path_name, paths)]}, and no other, got "
            f"{list(rule)}: nothing for {silent}, nowhere {idle}."
        )
    return {path: rule[pattern] for path, pattern in chosen.items()}


def check_tree(tree: object, name: str) -> None:
    """Checks that the tree is a dict, a list or a tuple.

    Raises:
      TypeError: it is not.
    """
    if not isinstance(tree, Mapping | list | tuple):
        raise TypeError(f"`{name}` must be a dict, or nested dicts and lists, of layers, got {type(tree).__name__}.")
