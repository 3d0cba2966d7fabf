"""What the batch norms of a model see in a whole data set: the moments of all batches, in all processes."""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbn._core.merge import Accumulated, merge_into, zeros_of_layer
from jaxbn._core.numbers import as_complex_as, promote
from jaxbn._core.state import update_batch_stats
from jaxbn._core.types import BatchStats, Moments
from jaxbn._sync.sharding import split_as, where
from jaxbn._tools import processes
from jaxbn._tools.collect import Collector


class Seen(NamedTuple):
    """What a layer has seen."""

    moments: Accumulated
    """[C] each"""
    batches: jax.Array
    """[C] int32, how many batches had an example of the channel"""


@jax.jit
def _merge(a: list[Seen], b: list[Seen]) -> list[Seen]:
    return [Seen(merge_into(m.moments, n.moments), m.batches + n.batches) for m, n in zip(a, b, strict=True)]


@jax.jit
def _with_batch(total: list[Seen], moments: list[Moments]) -> list[Seen]:
    new = [Seen(merge_into(zeros_of_layer(m.mean), m), (m.count > 0).astype(jnp.int32)) for m in moments]
    return _merge(total, new) if total else new


def look_at_all(collector: Collector, batches: Iterable[Any]) -> list[Seen]:
    """What each layer sees in all batches, in all processes."""
    group, number, state = processes.Group(), 0, collector.start
    total: list[Seen] = []
    structure = None
    try:
        for batch in batches:
            if not number:
                state, collector.stats = group.own(batch, (state, collector.stats))
                structure = jax.tree.structure(batch)
            try:
                moments, state = collector(state, batch)
            except Exception as error:
                if jax.tree.structure(batch) == structure:
                    raise
                raise ValueError(
                    f"`forward` must take every batch: it failed on number {number}, counted from 0, of the structure "
                    f"{jax.tree.structure(batch)}, where the first was {structure}. The statistics are as they were."
                ) from error
            total = _with_batch(total, moments)
            number += 1
    except Exception:
        group.fail()
        raise
    total = group.merged(total, number, _merge)
    if not number:
        raise ValueError("`batches` must hold at least one batch, got none. The statistics are as they were.")
    counts = [seen.moments.count for seen in total]
    if any(c.size for c in counts) and not any(np.any(c) for c in counts):
        raise ValueError(
            f"`batches` must bring at least one example to a batch norm, got none in {number} batches: everything is "
            "masked, or `forward` does not call the model. The statistics are as they were."
        )
    return total


@functools.partial(jax.jit, static_argnames="unbiased")
def with_seen(stats: list[BatchStats], seen: list[Seen], *, unbiased: bool) -> list[BatchStats]:
    return [_set_layer(s, m, unbiased) for s, m in zip(stats, seen, strict=True)]


def _set_layer(batch_stats: BatchStats, seen: Seen, unbiased: bool) -> BatchStats:
    """The statistics, replaced by the moments in each channel in which these are usable."""
    moments = seen.moments.moments
    old = {name: jnp.asarray(batch_stats[name]) for name in ("mean", "var")}
    old["mean"] = as_complex_as(moments.mean, old["mean"])
    # The old ones do not take part: even with a weight of 0 a NaN would stay.
    fresh = {name: jnp.zeros_like(v, promote(v.dtype, jnp.float32)) for name, v in old.items()}
    fresh = update_batch_stats(fresh, moments, momentum=0.0, unbiased=unbiased)
    usable = (moments.count > 0) & jnp.isfinite(moments.mean) & jnp.isfinite(moments.var)
    new = {name: split_as(where(usable, fresh[name].astype(v.dtype), v), v) for name, v in old.items()}
    if "count" in batch_stats:
        count = jnp.asarray(batch_stats["count"])
        batches = jnp.where(usable, seen.batches, 0)
        if count.shape != usable.shape:  # one count for all channels of a layer
            channels = tuple(range(count.ndim, usable.ndim))
            usable, batches = usable.any(channels), batches.max(channels)
        new["count"] = split_as(where(usable, batches.astype(count.dtype), count), count)
    return new
