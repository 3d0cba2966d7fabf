"""Several processes (`jax.distributed`), each with batches of its own: their results, merged, and the same in each.

Nothing is exchanged until each process has read all its batches, so their numbers may differ. A process that fails
tells the others, which would otherwise wait for it forever.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec


class Group:
    """All processes of the program. If there is only one, it does nothing."""

    def __init__(self) -> None:
        self._replicated: NamedSharding | None = None
        """on all devices; None unless the batches are arrays that span all processes"""

    def own(self, batch: Any, tree: Any) -> Any:
        """`tree` to go with these batches: arrays of this process alone, unless the batches span all processes.

        Raises:
          ValueError: an array of `tree` is split over the processes, and the batches are not.
        """
        if jax.process_count() == 1:
            return tree
        spanning = [v.sharding for v in jax.tree.leaves(batch) if _spans(v)]
        if spanning:
            self._replicated = NamedSharding(spanning[0].mesh, PartitionSpec())
            return tree
        return jax.tree.map(_own, tree)

    def fail(self) -> None:
        """Tells the others that this process has no result."""
        if jax.process_count() > 1:
            self._headers(failed=True, number=0, size=0)

    def merged(self, total: Any, number: int, merge: Callable[[Any, Any], Any]) -> Any:
        """The merged results of all processes, the same in each.

        Args:
          total: the result of this process, a pytree of arrays; None if it had no batch.
          number: how many batches it had.
          merge: a function of two results that returns that of both.

        Raises:
          ValueError: a process had no batch, or batches or a model of a different kind from the others.
          RuntimeError: a process failed.
        """
        if jax.process_count() == 1:
            return total
        leaves, structure = jax.tree.flatten(total)
        own = self._replicated is None
        arrays = [np.asarray(leaf) for leaf in leaves] if own else []
        headers = self._headers(failed=False, number=number, size=sum(a.nbytes for a in arrays))
        failed, numbers, spans, sizes = headers.T
        if failed.any():
            raise RuntimeError(
                f"Another process failed while it read its batches: of the processes, {np.flatnonzero(failed).tolist()}"
                ". The statistics are as they were."
            )
        if not numbers.all():
            raise ValueError(
                "`batches` must hold at least one batch in each process, got none in the processes "
                f"{np.flatnonzero(numbers == 0).tolist()}. The statistics are as they were."
            )
        if len(set(spans)) > 1 or len(set(sizes)) > 1:
            raise ValueError(
                "The batches of all processes must be of one kind, arrays of each or arrays over all of them, and the "
                f"model the same, got {sizes.tolist()} bytes of moments, arrays over all in {spans.tolist()}."
            )
        if not own:
            return jax.jit(lambda tree: tree, out_shardings=self._replicated)(total)
        everyone = _gather(np.concatenate([a.reshape(-1).view(np.uint8) for a in arrays]))
        return functools.reduce(merge, [jax.tree.unflatten(structure, _unpacked(row, arrays)) for row in everyone])

    def _headers(self, *, failed: bool, number: int, size: int) -> np.ndarray:
        """[processes, 4]: failed, number of batches, whether they span the processes, bytes."""
        header = np.array([failed, number, self._replicated is not None, size], np.int64)
        return np.stack([np.frombuffer(row.tobytes(), np.int64) for row in _gather(header.view(np.uint8))])


def placed_as(old: Any, new: jax.Array) -> jax.Array:
    """`new` on the devices of `old`, in all processes; uncommitted if `old` is."""
    if _spans(old):
        value = np.asarray(new)
        return jax.make_array_from_callback(value.shape, old.sharding, value.__getitem__)
    if isinstance(old, jax.Array) and old.committed:
        return jax.device_put(new, old.sharding)
    return jnp.asarray(np.asarray(new))


def _gather(row: np.ndarray) -> np.ndarray:
    """[n] bytes from each process -> [processes, n]."""
    return np.asarray(multihost_utils.process_allgather(row))


def _unpacked(row: np.ndarray, like: list[np.ndarray]) -> list[jax.Array]:
    cuts = np.cumsum([a.nbytes for a in like])[:-1]
    parts = zip(np.split(row, cuts), like, strict=True)
    return [jnp.asarray(np.frombuffer(part.tobytes(), a.dtype).reshape(a.shape)) for part, a in parts]


def _spans(v: Any) -> bool:
    return isinstance(v, jax.Array) and not v.is_fully_addressable


def _own(v: Any) -> Any:
    if not _spans(v):
        return v
    if not v.is_fully_replicated:
        raise ValueError(
            "A model that is split over processes needs batches that are arrays over all of them "
            f"(jax.make_array_from_process_local_data), got {v.sharding} in the model and batches of one process."
        )
    v = v.addressable_data(0)
    if jnp.issubdtype(v.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(np.asarray(jax.random.key_data(v))), impl=jax.random.key_impl(v))
    return np.asarray(v)
