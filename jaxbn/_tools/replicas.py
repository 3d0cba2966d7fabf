"""One state out of several: the statistics of replicas that were trained without communicating."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxbn._core.checks import check_array, describe
from jaxbn._core.merge import merge_stacked
from jaxbn._core.types import Moments
from jaxbn._models.tree import Path, map_layers, path_name, plain_path
from jaxbn._sync.sharding import stack
from jaxbn._tools.accumulate import check_tree
from jaxbn._tools.checks import check_iterable, check_layer, check_numbers


def merge_batch_stats(
    batch_stats: Mapping[str, Any] | Sequence[Mapping[str, Any]], counts: jax.Array | None = None
) -> dict[str, Any]:
    """The running statistics of all replicas together, including the variance between their means.

    Averaging the variances would leave that part out.

    Args:
      batch_stats: {'mean': [N, C], 'var': [N, C]} of N replicas, or nested dicts and lists of these, such as the
        `batch_stats` collection of a Flax model that `vmap`, `pmap` or `shard_map` returns; or a sequence of N of
        them, [C] each.
      counts: [N], how many examples each replica has seen, >= 0 and not all 0; None if all have seen the same number.

    Returns:
      The same tree, [C], in the same dtypes. The number of updates, 'count', is the largest among the replicas.

    Raises:
      ValueError: there is no replica, they differ in layers or shapes, or `counts` does not hold one number >= 0 for
        each.
      TypeError: `batch_stats` is neither a dict of layers nor a sequence of these, or a layer holds something else than
        arrays of numbers; or `counts` are random keys.

    References:
      Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".

    Example:
      >>> import jax.numpy as jnp, jaxbn
      >>> a = {"mean": jnp.array([1.0]), "var": jnp.array([2.0])}
      >>> b = {"mean": jnp.array([5.0]), "var": jnp.array([2.0])}
      >>> merged = jaxbn.merge_batch_stats([a, b])
      >>> merged["mean"].tolist(), merged["var"].tolist()
      ([3.0], [6.0])
    """
    if counts is not None:
        _check_counts(counts)
    if not isinstance(batch_stats, Mapping):
        check_iterable(batch_stats, "batch_stats", "be a dict of layers, or a sequence of these, one for each replica")
        batch_stats = _stacked(list(batch_stats))

    def merge(path: Path, layer: Mapping[str, Any]) -> dict[str, jax.Array]:
        check_layer(layer, "batch_stats", path)
        mean, var = (check_array(layer[name], f"batch_stats[{name!r}]") for name in ("mean", "var"))
        if mean.ndim < 1 or mean.shape != var.shape:
            raise ValueError(
                "`batch_stats` must have a mean and a var of one shape, [N, C] of N replicas, got "
                f"{describe(mean)} and {describe(var)}."
            )
        weights = jnp.ones(mean.shape[:1], var.dtype) if counts is None else jnp.asarray(counts).astype(var.dtype)
        if weights.ndim != 1 or not weights.size or weights.shape != mean.shape[:1]:
            raise ValueError(
                "`counts` must hold one number for each replica, those along the first axis of the statistics, "
                f"{list(mean.shape)}, got {list(weights.shape)}."
            )
        _, mean, var = merge_stacked(Moments(weights, mean, var))
        merged = {"mean": mean, "var": var}
        if "count" in layer:
            merged["count"] = jnp.max(layer["count"], axis=0)
        return merged

    def stop(path: Path, leaf: Any) -> Any:
        raise TypeError(
            "`batch_stats` must be a dict, or nested dicts and lists, of layers with 'mean' and 'var', got "
            f"{type(leaf).__name__} at {path_name(path)}."
        )

    return map_layers(batch_stats, merge, stop)


def _stacked(replicas: list[Any]) -> Any:
    if not replicas:
        raise ValueError("`batch_stats` must hold at least one replica, got none.")
    for replica in replicas:
        check_tree(replica, "batch_stats")
    shapes = [jax.tree_util.tree_map_with_path(_shape, replica) for replica in replicas]
    other = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
    if other is not None:
        raise ValueError(
            f"`batch_stats` must have the same layers and shapes in all replicas, {shapes[0]}, got {shapes[other]} "
            f"in number {other}, counted from 0."
        )
    return jax.tree.map(lambda *values: stack(*map(jnp.asarray, values)), *replicas)


def _shape(keys, leaf: Any) -> tuple[int, ...]:
    check_numbers(leaf, "batch_stats", plain_path(keys))
    return jnp.shape(check_array(leaf, "batch_stats"))


def _check_counts(counts: jax.Array) -> None:
    rule = "`counts` must be numbers >= 0, finite and not all 0"
    if isinstance(counts, jax.Array) and jnp.issubdtype(counts.dtype, jax.dtypes.extended):  # random keys
        raise TypeError(f"{rule}, got {describe(counts)}.")
    if isinstance(counts, Tracer):
        return
    values = np.asarray(counts)
    if values.dtype.kind not in "iuf" or not (np.all(values >= 0) and np.all(np.isfinite(values)) and values.any()):
        raise ValueError(f"{rule}, got {values.tolist()}.")
