"""Trees of layers, made of dicts, lists and tuples: one way to walk them, one way to name a path."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxbn._core.types import Moments

Path = tuple[str | int, ...]


def path_name(path: Path) -> str:
    """'encoder/0/bn', as messages and tables show a path; '.' for the whole tree."""
    return "/".join(map(str, path)) or "."


def plain_path(keys) -> Path:
    """A key path of `jax.tree_util` as names and indices."""
    return tuple(next(getattr(k, a) for a in ("key", "idx", "name") if hasattr(k, a)) for k in keys)


def leaf_name(keys) -> str:
    """'Block_0/kernel': a key path of `jax.tree_util` as text, without the attributes of the boxes around a leaf."""
    return "/".join(str(k) for k in plain_path([k for k in keys if not hasattr(k, "name")]))


def nodes(tree: Any, is_node: Callable[[Any], bool]) -> dict[Path, Any]:
    """Every outermost node of `tree` for which `is_node` is true, by path, in the order of the tree."""
    found = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_node)[0]
    return {plain_path(keys): node for keys, node in found if is_node(node)}


def is_batch_stats(node: Any) -> bool:
    """Whether these are the statistics of one layer, rather than a dict of layers."""
    return isinstance(node, Mapping) and all(k in node and not isinstance(node[k], Mapping) for k in ("mean", "var"))


def is_moments(node: Any) -> bool:
    """Whether these are the moments of one layer: `jaxbn.Moments`, or a dict of 'count', 'mean' and 'var'."""
    return isinstance(node, Moments) or (is_batch_stats(node) and "count" in node)


def moments_by_path(tree: Any) -> dict[Path, Moments]:
    """The moments in a tree like `batch_stats`, by the path of the layer."""
    return {
        path: node if isinstance(node, Moments) else Moments(*(node[name] for name in Moments._fields))
        for path, node in nodes(tree, is_moments).items()
    }


DROPPED: Any = object()
"""A value that `map_layers` leaves out."""


def map_layers(
    tree: Any, of_layer: Callable[[Path, Any], Any], of_other: Callable[[Path, Any], Any], path: Path = ()
) -> Any:
    """A copy of `tree` in which functions replace its layers, and the leaves beside them.

    `DROPPED` is left out; in a list or a tuple an empty dict keeps its place.
    """
    if is_batch_stats(tree):
        return of_layer(path, tree)
    if isinstance(tree, Mapping):
        children = {k: map_layers(v, of_layer, of_other, (*path, k)) for k, v in tree.items()}
        kept = {k: v for k, v in children.items() if v is not DROPPED}
        return kept if kept or not tree else DROPPED
    if isinstance(tree, list | tuple):
        children = [map_layers(v, of_layer, of_other, (*path, i)) for i, v in enumerate(tree)]
        if children and all(v is DROPPED for v in children):
            return DROPPED
        return rebuilt(tree, [{} if v is DROPPED else v for v in children])
    return of_other(path, tree)


_ABSENT = object()


def get_at(tree: Any, path: Path, default: Any = _ABSENT) -> Any:
    """What `tree` holds at `path`.

    Raises:
      KeyError: there is nothing, and no default.
    """
    for i, key in enumerate(path):
        try:
            tree = tree[key]
        except (KeyError, IndexError, TypeError):
            if default is not _ABSENT:
                return default
            raise KeyError(f"Nothing stands at {path_name(path[: i + 1])!r}.") from None
    return tree


def set_at(tree: Any, path: Path, value: Any) -> Any:
    """A copy of `tree` with `value` at `path`; the rest is shared, and containers keep their types."""
    if not path:
        return tree.replace_boxed(value) if hasattr(tree, "replace_boxed") else value
    child = set_at(get_at(tree, path[:1]), path[1:], value)
    if isinstance(tree, Mapping):
        same: Any = type(tree)
        return same({**tree, path[0]: child})
    return rebuilt(tree, [child if i == path[0] else v for i, v in enumerate(tree)])


def rebuilt(sequence: Any, children: list[Any]) -> Any:
    """The children in a list, tuple or named tuple of the same type as `sequence`."""
    same: Any = type(sequence)
    return same(*children) if hasattr(sequence, "_fields") else same(children)
