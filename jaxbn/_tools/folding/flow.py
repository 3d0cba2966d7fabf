"""Which layer reads which: the layers and batch norms that a model calls, found in its program.

Every layer marks what enters and what leaves it with a named identity. Between two marks, only operations that move
values about (reshapes, slices, means) are passed over; `region` finds out whether a batch norm can cross them.
"""

import json
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name

from jaxbn._tools.folding import program as programs
from jaxbn._tools.folding.program import Equation, Program, Value

PASSED = {
    *("reshape", "squeeze", "expand_dims", "broadcast_in_dim", "transpose", "rev", "copy", "copy_p", "name"),
    *("slice", "dynamic_slice", "gather", "convert_element_type", "reduce_precision", "sharding_constraint"),
    *("reduce_sum", "reduce_window_sum", "mul", "div", "optimization_barrier"),
}
"""Primitives that may stand between a layer and a batch norm if all but one of their inputs are constant."""


class Call(NamedTuple):
    """A layer or a batch norm, as it is called."""

    path: str
    is_batch_norm: bool
    obstacle: str | None = None
    """why it cannot be folded at all"""
    obstacle_next: str | None = None
    """why it does not fold into the next layer, or does not absorb a batch norm before it"""
    epsilon: float = 0.0
    out_axis: int = -1
    """of the kernel"""
    in_axis: int = -2
    """of the kernel, the one that holds the features of the input"""
    num_out_axes: int = 1
    """how many of the kernel's last axes are output features, which the bias has too"""
    groups: int = 1
    kind: str = ""
    """'batch norm', 'dense', 'convolution', 'transposed convolution'"""


class Ends(NamedTuple):
    """Where a call stands in the program."""

    given: Value
    """what is passed to it"""
    entrance: Value
    """the same, after the mark"""
    exit: Value
    """what it returns, after the mark"""


class Flow(NamedTuple):
    """A model's calls and its program."""

    program: Program
    calls: dict[str, Call]
    """by path, in the order of execution"""
    ends: dict[str, Ends]
    """of the calls that can be folded"""
    source: dict[str, str]
    """path -> what produced its input: the path of another call, or a description of something else"""
    targets: dict[str, list[str]]
    """path -> the calls that read its output; empty if anything else does too"""
    others: dict[str, str]
    """path -> a description of what else reads its output, or of the calls that do"""


def marked(call: Call, f: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """f(x), with marks at its entrance and exit that hold the whole call, because a trace may come from a cache."""
    words = json.dumps(call)
    return checkpoint_name(f(checkpoint_name(x, f"jaxbn.fold in {words}")), f"jaxbn.fold out {words}")


def find(program: Program) -> Flow:
    """The calls in a program whose layers were called by `marked`."""
    flow = Flow(program, {}, {}, {}, {}, {})
    entered: dict[str, list[Equation]] = {}
    left: dict[str, list[Equation]] = {}
    for equation in program.equations:
        for eqn in programs.inside(equation):
            call = _mark(eqn, "in")
            if call is not None:
                where = f"it stands inside a `{equation.primitive}`, where its variables may be stacked"
                flow.calls[call.path] = call._replace(obstacle=call.obstacle or where)
                flow.source[call.path] = f"something inside the `{equation.primitive}`"
        for side, marks in (("in", entered), ("out", left)):
            call = _mark(equation.eqn, side)
            if call is not None:
                flow.calls.setdefault(call.path, call)
                marks.setdefault(call.path, []).append(equation)
    for path in flow.calls:
        times = len(entered.get(path, ()))
        if times > 1:
            flow.calls[path] = flow.calls[path]._replace(obstacle=f"it is called {times} times")
        elif times == len(left.get(path, ())) == 1:
            (start,), (end,) = entered[path], left[path]
            (given,) = start.reads() or [-1]
            flow.ends[path] = Ends(given, start.outputs[0], end.outputs[0])
    outgoing = {end.outputs[0]: path for path, equations in left.items() for end in equations}
    incoming = {start.outputs[0]: path for path, equations in entered.items() for start in equations}
    for path, starts in entered.items():
        flow.source[path] = _source(program, starts[0].reads(), outgoing)
    for path, ends in flow.ends.items():
        found: list[str] = []
        other = _targets(program, ends.exit, incoming, found)
        flow.targets[path] = [] if other else list(dict.fromkeys(found))
        flow.others[path] = other or ", ".join(flow.targets[path])
    return flow


def _mark(eqn, side: str) -> Call | None:
    """The call whose entrance ('in') or exit ('out') the equation marks."""
    name, start = str(eqn.params.get("name")), f"jaxbn.fold {side} "
    is_mark = eqn.primitive.name == "name" and name.startswith(start)
    return Call(*json.loads(name.removeprefix(start))) if is_mark else None


def _source(program: Program, values: list[Value], outgoing: dict[Value, str]) -> str:
    """The path of the call whose output this is, apart from what is passed over; or a description of its origin."""
    while values:
        (value,) = values
        if value in outgoing:
            return outgoing[value]
        if value not in program.maker:
            return "an input of the model"
        equation = program.equations[program.maker[value]]
        values = [v for v in equation.reads() if v not in program.fixed]
        if equation.primitive not in PASSED or len(values) != 1:
            return f"`{equation.label}`"
    return "a constant"


def _targets(program: Program, value: Value, incoming: dict[Value, str], found: list[str]) -> str | None:
    """Adds to `found` the calls that read the value, and returns a description of anything else that reads it."""
    if value in program.outputs:
        return "the end of the model"
    for i in program.readers.get(value, ()):
        equation = program.equations[i]
        (output, *more), other = equation.outputs, None
        if output in incoming:
            found.append(incoming[output])
        elif equation.primitive in PASSED and not more:
            other = _targets(program, output, incoming, found)
        else:
            other = f"`{equation.label}`"
        if other is not None:
            return other
    return None
