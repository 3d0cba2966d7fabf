"""Which collections a linen module can reach from inside the transformations around it.

nn.scan and nn.vmap pass on the collections that their `variable_axes` name and no others; other transformations have
other arguments for it. If the entry for 'batch_moments' is missing, a module inside can neither read nor write it, and
nothing says so.
"""

import itertools
import re
from typing import Any

from flax.linen import module as flax_module

from jaxbn._models import notes
from jaxbn._models.tree import path_name

MOMENTS = "batch_moments"

_ENTRY = "must have an entry 'batch_moments' like that of 'batch_stats'"
_ADVICE = {
    **dict.fromkeys(("scan", "vmap"), f"`variable_axes` {_ENTRY}"),
    "while_loop": f"`carry_variables` {_ENTRY}",
    **dict.fromkeys(
        ("cond", "fold_rngs", "jit", "jvp", "remat", "switch", "value_and_grad", "vjp"), f"`variables` {_ENTRY}"
    ),
    "map_variables": "`mutable` must be True where 'batch_moments' is mapped",
}
"""A transformation of linen -> what lets a module inside it write 'batch_moments'."""


def check_moments_reach(module: Any) -> None:
    """Checks that a batch norm that is meant to accumulate moments can do so.

    Raises:
      ValueError: `apply` was given 'batch_moments', or has it in `mutable` without 'batch_stats', and the module
        cannot reach it.
    """
    if not hidden_from(module, MOMENTS) or notes.current() is not None:
        return
    for outer in _around(module):
        given = bool(outer.scope.root.variables().get(MOMENTS))
        if not hidden_from(outer, MOMENTS) and (given or hidden_from(outer, "batch_stats")):
            raise ValueError(
                f"The batch norm {path_name(module.path)} must be able to write 'batch_moments', as the model around "
                f"it is applied to accumulate moments, got {why_hidden(module)}"
            )


def hidden_from(module: Any, collection: str) -> bool:
    """Whether the module cannot write the collection."""
    return not module.is_mutable_collection(collection)


def why_hidden(module: Any) -> str:
    """What keeps a module from 'batch_moments', and what to do."""
    passing = [outer for outer in _around(module) if not hidden_from(outer, MOMENTS)]
    if passing:
        within = type(passing[-1]).__name__
        found = _between(passing[-1], module) or ["scan", "vmap", "while_loop"]
        return (
            f"a transformation inside {within} ({', '.join(f'nn.{lift}' for lift in found)}) that does not hand it on: "
            f"{', or '.join(dict.fromkeys(_ADVICE[lift] for lift in found))}"
        )
    return (
        "collections that it may not write: `forward` must apply the model with "
        "mutable=['batch_moments', 'batch_stats'], or mutable=['batch_moments'] in evaluation"
    )


def _between(outer: Any, inner: Any) -> list[str]:
    """The transformations between two modules that may leave out collections, as far as Flax tells.

    It has them in the path that its errors show: ('encoder', 'remat(scan(ScanBlock_0))', 'bn').
    """
    found = []
    for before, after in itertools.zip_longest(outer.scope.debug_path, inner.scope.debug_path, fillvalue=""):
        found += re.findall(r"(\w+)\(", after.replace(before, ""))
    return [lift for lift in dict.fromkeys(found) if lift in _ADVICE]


def _around(module: Any) -> list[Any]:
    """The modules whose methods are running, outermost first."""
    running = [m for m in flax_module._context.module_stack if m is not None and m.scope is not None]
    return [m for m in running if m is not module]
