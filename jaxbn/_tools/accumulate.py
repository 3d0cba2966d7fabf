"""Gradient accumulation for networks: a collection of moments beside `batch_stats`, merged a microbatch at a time.

Each layer of `batch_stats`, {'mean', 'var'}, has its {'count', 'mean', 'var'} in `batch_moments`: [C] each, the moments
of the microbatches so far. The Flax modules merge into them; here is how they start and how they are committed.
"""

from collections.abc import Mapping
from typing import Any

from jaxbn._core.merge import zeros_of_layer
from jaxbn._core.numbers import as_complex_as
from jaxbn._core.state import update_batch_stats
from jaxbn._core.types import Moments, Momentum


def zero_moments(batch_stats: Mapping[str, Any]) -> dict[str, Any]:
    """Moments of no example, for each layer of `batch_stats`: the start of every optimizer step.

    Args:
      batch_stats: {'mean': [C], 'var': [C]}, or nested dicts of these, as the `batch_stats` collection of a Flax model.

    Returns:
      The same tree with {'count': [C], 'mean': [C], 'var': [C]} in the place of each layer's statistics, all zero, at
      least float32. Nodes of other layers are left out.

    Raises:
      TypeError: `batch_stats` is no dict.

    Example:
      >>> import jax, jaxbn
      >>> _, batch_stats = jaxbn.init(2)
      >>> jax.tree.map(lambda v: v.tolist(), jaxbn.zero_moments({"bn": batch_stats}))
      {'bn': {'count': [0.0, 0.0], 'mean': [0.0, 0.0], 'var': [0.0, 0.0]}}
    """
    check_tree(batch_stats, "batch_stats")
    if is_layer(batch_stats):
        return zeros_of_layer(batch_stats["mean"])._asdict()
    below = {k: zero_moments(v) for k, v in batch_stats.items() if isinstance(v, Mapping)}
    return {k: v for k, v in below.items() if v}


def commit_moments(
    batch_stats: Mapping[str, Any], batch_moments: Mapping[str, Any], *, momentum: Momentum, unbiased: bool = False
) -> dict[str, Any]:
    """`jaxbn.update_batch_stats` for each layer of a model, once per optimizer step.

    Args:
      batch_stats: {'mean': [C], 'var': [C]} and perhaps 'count' [], or nested dicts of these.
      batch_moments: the same tree of {'count': [C], 'mean': [C], 'var': [C]}; a layer that is absent, or that has seen
        no example, keeps its statistics.
      momentum: weight of the old value, as in `jaxbn.update_batch_stats`; one for all layers.
      unbiased: whether the running variances are divided by `count - 1`, where count is that of the whole step.

    Returns:
      New `batch_stats` with the tree, shapes and dtypes of the old one.

    Raises:
      ValueError: `batch_moments` has a layer that `batch_stats` has not, or an argument breaks a rule of
        `jaxbn.update_batch_stats`.
      TypeError: one of the trees is no dict.

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
    if is_layer(batch_stats):
        missing = sorted(set(Moments._fields) - set(batch_moments))
        if missing:
            raise ValueError(
                f"`batch_moments` must hold 'count', 'mean' and 'var' for each layer, got {sorted(batch_moments)}."
            )

        moments = Moments(**{k: batch_moments[k] for k in Moments._fields})
        stats = {**batch_stats, "mean": as_complex_as(moments.mean, batch_stats["mean"])}
        return update_batch_stats(stats, moments, momentum=momentum, unbiased=unbiased)
    unknown = sorted(set(batch_moments) - set(batch_stats))
    if unknown:
        raise ValueError(
            f"`batch_moments` must hold layers of `batch_stats` only, {sorted(batch_stats)}, got {unknown}."
        )
    return {
        k: commit_moments(v, batch_moments[k], momentum=momentum, unbiased=unbiased) if k in batch_moments else v
        for k, v in batch_stats.items()
    }


def is_layer(node: Mapping[str, Any]) -> bool:
    """Whether these are the statistics of one layer, and not a dict of layers."""
    return all(k in node and not isinstance(node[k], Mapping) for k in ("mean", "var"))


def check_tree(tree: object, name: str) -> None:
    """The tree is a dict.

    Raises:
      TypeError: it is not.
    """
    if not isinstance(tree, Mapping):
        raise TypeError(f"`{name}` must be a dict, or nested dicts, of layers, got {type(tree).__name__}.")
