"""What the layers of a model return, wherever they are called: inside scan, remat and jit too.

A value inside a transformation belongs to its trace and cannot be passed out of it. But the program can be read: every
output is marked with a named identity, and the program is run equation by equation, with inner programs inlined.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from jaxbn._compat import evaluate, inputs_of_scan

_START = "jaxbn.layer "
_INLINED = {
    "jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2", "custom_jvp_call", "custom_vjp_call",
}  # fmt: skip
"""Primitives that do what the program inside them does, and nothing else."""


class Output(NamedTuple):
    """One array that a layer returned."""

    layer: str
    leaf: str
    """its path in the output of the layer; '' if that is an array"""
    step: str
    """', step 2' of a scan; '' outside"""
    value: jax.Array | None
    """None inside a transformation whose program is not read: cond, while, shard_map"""


def marked(layer: str, output: Any) -> Any:
    """The output of a layer, unchanged, marked with its name."""

    def mark(keys, leaf):
        if not isinstance(leaf, jax.Array) or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        return checkpoint_name(
            leaf, _START + json.dumps([layer, jax.tree_util.keystr(keys, simple=True, separator="/")])
        )

    return jax.tree_util.tree_map_with_path(mark, output)


def outputs_of_layers(f: Callable, *args: Any) -> list[Output]:
    """The outputs that are marked while `f(*args)` runs, in the order of execution."""
    program = jax.make_jaxpr(f)(*args)
    outputs: list[Output] = []
    _run(program, jax.tree.leaves(args), "", outputs)
    return outputs


def _run(program: core.ClosedJaxpr, args: list[Any], step: str, outputs: list[Output]) -> list[Any]:
    jaxpr = program.jaxpr
    values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*program.consts, *args), strict=True))

    def read(v):
        return v.val if isinstance(v, core.Literal) else values[v]

    for eqn in jaxpr.eqns:
        inputs = [read(v) for v in eqn.invars]
        values.update(zip(eqn.outvars, _of_equation(eqn, inputs, step, outputs), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _of_equation(eqn, inputs: list[Any], step: str, outputs: list[Output]) -> list[Any]:
    mark = _mark_of(eqn)
    if mark is not None:
        outputs.append(Output(mark[0], mark[1], step, inputs[0]))
        return inputs
    inside = _programs(eqn)
    marks = [mark for program in inside for mark in _marks_in(program.jaxpr)]
    if marks and eqn.primitive.name == "scan":
        return _run_scan(eqn, inputs, step, outputs)
    if marks and eqn.primitive.name in _INLINED and len(inside[0].jaxpr.invars) == len(inputs):
        return _run(inside[0], inputs, step, outputs)
    outputs.extend(Output(mark[0], mark[1], step, None) for mark in marks)
    with eqn.ctx.manager:  # the options of JAX under which it was written
        return evaluate(eqn, inputs)


def _run_scan(eqn, inputs: list[Any], step: str, outputs: list[Output]) -> list[Any]:
    """Runs a scan step by step, without a loop."""
    (program,), length = _programs(eqn), eqn.params["length"]
    consts, carry, xs = inputs_of_scan(eqn, inputs)
    rows: list[Any] = [None] * length
    for i in reversed(range(length)) if eqn.params["reverse"] else range(length):
        results = _run(program, [*consts, *carry, *(x[i] for x in xs)], f"{step}, step {i + 1}", outputs)
        carry, rows[i] = results[: len(carry)], results[len(carry) :]
    return [*carry, *(jnp.stack(ys) for ys in zip(*rows, strict=True))]


def _mark_of(eqn) -> list[str] | None:
    name = str(eqn.params.get("name"))
    is_mark = eqn.primitive.name == "name" and name.startswith(_START)
    return json.loads(name.removeprefix(_START)) if is_mark else None


def _marks_in(jaxpr: core.Jaxpr) -> list[list[str]]:
    marks = []
    for eqn in jaxpr.eqns:
        mark = _mark_of(eqn)
        marks += [mark] if mark is not None else [m for p in _programs(eqn) for m in _marks_in(p.jaxpr)]
    return marks


def _programs(eqn) -> list[core.ClosedJaxpr]:
    """The programs inside an equation."""

    def is_program(v):
        return isinstance(v, core.ClosedJaxpr | core.Jaxpr)

    found = [v for v in jax.tree.leaves(eqn.params, is_leaf=is_program) if is_program(v)]
    return [v if isinstance(v, core.ClosedJaxpr) else core.ClosedJaxpr(v, ()) for v in found]
