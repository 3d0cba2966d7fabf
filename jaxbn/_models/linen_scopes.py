"""Which collections a linen module can reach from inside the transformations around it.

nn.scan and nn.vmap pass on the collections that their `variable_axes` name and no others. If the entry for
'batch_moments' is missing, a module inside can neither read nor write it, and nothing says so.
"""

from typing import Any

from flax.linen import module as flax_module

from jaxbn._models import notes
from jaxbn._models.tree import path_name

MOMENTS = "batch_moments"


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
    passing = [type(outer).__name__ for outer in _around(module) if not hidden_from(outer, MOMENTS)]
    if passing:
        return (
            f"a transformation inside {passing[-1]} (nn.scan, nn.vmap) that does not hand it on: `variable_axes` must "
            "have an entry 'batch_moments' like that of 'batch_stats'"
        )
    return (
        "collections that it may not write: `forward` must apply the model with "
        "mutable=['batch_moments', 'batch_stats'], or mutable=['batch_moments'] in evaluation"
    )


def _around(module: Any) -> list[Any]:
    """The modules whose methods are running, outermost first."""
    running = [m for m in flax_module._context.module_stack if m is not None and m.scope is not None]
    return [m for m in running if m is not module]
