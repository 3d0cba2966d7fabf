"""What only the lowering knows: the platform of the program being compiled, and over how many devices it runs."""

import jax
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import mlir

_program_fits_p = Primitive("program_fits")


def program_fits(*platforms: str, parts: int = 1) -> jax.Array:
    """A [] bool constant of the program: whether it is for one of `platforms` (any, if none is named) and an array in
    `parts` equal parts has whole parts on each device.

    With `parts=1`: whether arrays are in one piece, as in a program for one device, and inside a `shard_map` or `pmap`
    over all axes of its mesh; under plain `jit` over sharded arrays they are not. Only the lowering knows, so it is no
    Python bool; XLA folds it away, and the branch of a `cond` that it decides against.
    """
    return _program_fits_p.bind(platforms=platforms, parts=parts)


@_program_fits_p.def_abstract_eval
def _(**_):
    return ShapedArray((), np.dtype(bool))


@_program_fits_p.def_impl
def _(**_):
    return np.bool_(False)  # op by op there is no program: the plain way is right everywhere


def _lower(ctx, *, platforms, parts):
    module = ctx.module_context
    mesh = getattr(module.axis_context, "mesh", None)
    if mesh is None:
        pieces = getattr(module.axis_context, "num_devices", 0)
    else:
        pieces = int(np.prod([n for name, n in mesh.shape.items() if name not in module.axis_context.manual_axes]))
    fits = pieces > 0 and parts % pieces == 0
    return [mlir.ir_constant(np.bool_(fits and (not platforms or set(module.platforms) <= set(platforms))))]


mlir.register_lowering(_program_fits_p, _lower)
