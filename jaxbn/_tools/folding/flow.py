"""What a model does with the outputs of its layers, read off its program.

Every layer marks what enters and what leaves it with a named identity. In the program (the jaxpr) of the model, an
output that one layer reads, and nothing else, is a variable with one use: the mark at the entrance of that layer.
"""

import json
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core


class Call(NamedTuple):
    """One call of a layer or a batch norm."""

    path: str
    is_batch_norm: bool
    obstacle: str | None = None
    """why it takes part in no folding"""
    obstacle_next: str | None = None
    """why it does not fold into the next layer, or takes no batch norm from before it"""
    epsilon: float = 0.0
    out_axis: int = -1
    """of the kernel"""
    groups: int = 1


class Flow(NamedTuple):
    """The calls of a model and where their outputs go."""

    calls: dict[str, Call]
    """by path, in the order of execution"""
    reader: dict[str, str]
    """path -> the one call that reads its output, where nothing else does"""
    source: dict[str, str]
    """path -> what made its input: the path of another call, or something else in words"""


def trace(program: Callable, *args) -> Flow:
    """The flow of `program(*args)`, which calls each layer `f` as `marked(call, f, x)` and not as `f(x)`."""
    # Another precision is another key of the caches of jit: a part of the model that has run before is traced again.
    with jax.default_matmul_precision("highest"):
        jaxpr = jax.make_jaxpr(program)(*args).jaxpr
    flow, times = Flow({}, {}, {}), Counter()
    _read(jaxpr, flow, times)
    for path, n in times.items():
        if n > 1:
            flow.calls[path] = flow.calls[path]._replace(obstacle=f"it is called {n} times")
    return flow


def marked(call: Call, f: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """f(x), with marks at its entrance and its exit. They say all: a trace may be taken from a cache."""
    words = json.dumps(call)
    return checkpoint_name(f(checkpoint_name(x, f"jaxbn.fold in {words}")), f"jaxbn.fold out {words}")


def _mark(eqn, side: str) -> Call | None:
    """The call whose entrance ('in') or exit ('out') the equation marks."""
    name, start = str(eqn.params.get("name")), f"jaxbn.fold {side} "
    is_mark = eqn.primitive.name == "name" and name.startswith(start)
    return Call(*json.loads(name.removeprefix(start))) if is_mark else None


def _read(jaxpr, flow: Flow, times: Counter) -> None:
    """Fills in who is called, how many times, and who reads whom, in this program and in those inside it."""
    makers, readers = {}, {}
    for eqn in jaxpr.eqns:
        makers.update((v, eqn) for v in eqn.outvars)
        for v in eqn.invars:
            if not isinstance(v, core.Literal):
                readers.setdefault(v, []).append(eqn)
    results = [v for v in jaxpr.outvars if not isinstance(v, core.Literal)]
    for eqn in jaxpr.eqns:
        for inner in _programs(eqn):
            _read(inner, flow, times)
        entered, left = _mark(eqn, "in"), _mark(eqn, "out")
        if entered is not None:
            flow.calls[entered.path] = entered
            flow.source[entered.path] = _maker(makers.get(eqn.invars[0]))
            times[entered.path] += 1
        if left is not None:
            (y,) = eqn.outvars
            entrances = [_mark(e, "in") for e in readers.get(y, [])]
            if len(entrances) == 1 and entrances[0] is not None and y not in results:
                flow.reader[left.path] = entrances[0].path


def _programs(eqn) -> list[core.Jaxpr]:
    """The programs inside an equation."""

    def is_program(v):
        return isinstance(v, core.ClosedJaxpr | core.Jaxpr)

    return [getattr(v, "jaxpr", v) for v in jax.tree.leaves(eqn.params, is_leaf=is_program) if is_program(v)]


def _maker(eqn) -> str:
    """The path of the call whose output the equation marks, or its name in backticks."""
    if eqn is None:
        return "an input of the model or of a part of it"
    left = _mark(eqn, "out")
    if left is not None:
        return left.path
    inner = _programs(eqn)
    if "name" not in eqn.params and len(inner) == 1 and len(inner[0].eqns) == 1:
        return _maker(inner[0].eqns[0])  # a function with a derivative of its own, as relu is
    return f"`{eqn.params.get('name', eqn.primitive.name)}`"
