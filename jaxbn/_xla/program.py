"""What only the lowering knows, the platform of a program and over how many devices it runs, and plans that use it.

An operation has one meaning, a function that is right everywhere, and plans, functions of the same results that are
faster where their preconditions hold. The meaning is what is traced, differentiated, batched and run eagerly; when the
program is lowered, the first plan that fits it takes the place of the meaning, and the others are not even traced.
JAXBN_TUNING=off in the environment leaves the meaning alone.
"""

import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.core import ShapedArray
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jax.sharding import AbstractMesh

TUNING = os.environ.get("JAXBN_TUNING", "on").lower() not in ("off", "0", "false")


class Program(NamedTuple):
    """The program that is lowered."""

    platforms: tuple[str, ...]
    """that it must run on: 'cpu', 'cuda', 'rocm', 'tpu', ..."""
    pieces: int
    """into how many the partitioner may cut an array; 1 on one device and inside a shard_map over all axes of its mesh;
    0 where that is not known"""

    def runs_on(self, *platforms: str) -> bool:
        """Whether it runs on some of `platforms` and on no other."""
        return set(self.platforms) <= set(platforms)


def program_of(module) -> Program:
    """Read off the context of a module that is lowered."""
    mesh = getattr(module.axis_context, "mesh", None)
    if mesh is None:
        pieces = getattr(module.axis_context, "num_devices", 0)
    else:
        pieces = math.prod(n for name, n in mesh.shape.items() if name not in module.axis_context.manual_axes)
    return Program(tuple(module.platforms), pieces)


Plan = Callable[[Program], Callable | None]
"""The function to lower for a program, None where the preconditions do not hold."""

_planned_p = Primitive("planned")
_planned_p.multiple_results = True


def planned(meaning: Callable, *plans: Plan) -> Callable:
    """A function of arrays like `meaning`, for which the first plan that fits the program is lowered."""
    if not TUNING or not plans:
        return meaning

    def call(*args):
        leaves, tree = jax.tree.flatten(args)

        def flat(f: Callable) -> Callable:
            return lambda *leaves: jax.tree.leaves(f(*tree.unflatten(leaves)))

        jaxpr, shapes = jax.make_jaxpr(lambda *leaves: meaning(*tree.unflatten(leaves)), return_shape=True)(*leaves)
        plans_of_leaves = tuple(_after(plan, flat) for plan in plans)
        out = _planned_p.bind(*leaves, meaning=jaxpr, plans=plans_of_leaves)
        return jax.tree.unflatten(jax.tree.structure(shapes), out)

    return call


def _after(plan: Plan, change: Callable) -> Plan:
    """The plan with `change` made to the function that it gives."""

    def changed(program: Program):
        f = plan(program)
        return None if f is None else change(f)

    return changed


@_planned_p.def_impl
def _evaluate(*args, meaning, **_):
    return jaxpr_as_fun(meaning)(*args)


def _jvp(primals, tangents, *, meaning, **_):
    return jax.jvp(jaxpr_as_fun(meaning), list(primals), [ad.instantiate_zeros(t) for t in tangents])


def _batch(args, dims, *, meaning, plans):
    def over_batch(f: Callable) -> Callable:
        return jax.vmap(f, in_axes=tuple(dims))

    out = _planned_p.bind(
        *args,
        meaning=jax.make_jaxpr(over_batch(jaxpr_as_fun(meaning)))(*args),
        plans=tuple(_after(plan, over_batch) for plan in plans),
    )
    return out, [0] * len(out)


def _lower(ctx, *args, meaning, plans):
    program = program_of(ctx.module_context)
    for plan in plans:
        f = plan(program)
        if f is not None:
            # What the types say of splits and of mapped axes is checked by now, and plans leave it to the partitioner.
            plain = [ShapedArray(a.shape, a.dtype, weak_type=a.weak_type) for a in ctx.avals_in]
            with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
                return mlir.lower_fun(f, multiple_results=True)(ctx.replace(avals_in=plain), *args)
    return mlir.lower_fun(jaxpr_as_fun(meaning), multiple_results=True)(ctx, *args)


_planned_p.def_abstract_eval(lambda *_, meaning, **__: meaning.out_avals)
ad.primitive_jvps[_planned_p] = _jvp
batching.primitive_batchers[_planned_p] = _batch
mlir.register_lowering(_planned_p, _lower)


def is_static(*arrays: Any) -> bool:
    """Whether all sizes are numbers, as they are not in an export with a symbolic batch."""
    return all(isinstance(n, int) for a in arrays for n in a.shape)
