"""What only the lowering knows: whether the program that is being compiled runs over several devices."""

import jax
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import mlir

_spans_one_device_p = Primitive("spans_one_device")


def spans_one_device() -> jax.Array:
    """A [] bool constant of the program: True where an array is in one piece.

    That is so in a program for one device, and inside a `shard_map` or `pmap` over all axes of its mesh; under plain
    `jit` over sharded arrays it is False. Only the lowering knows it, so it is no Python bool; XLA folds it away.
    """
    return _spans_one_device_p.bind()


@_spans_one_device_p.def_abstract_eval
def _(*_):
    return jax.core.ShapedArray((), np.dtype(bool))


def _lower(ctx):
    context = ctx.module_context.axis_context
    mesh = getattr(context, "mesh", None)
    if mesh is None:
        one = getattr(context, "num_devices", None) == 1
    else:
        one = all(mesh.shape[name] == 1 for name in mesh.axis_names if name not in context.manual_axes)
    return [mlir.ir_constant(np.bool_(one))]


mlir.register_lowering(_spans_one_device_p, _lower)
