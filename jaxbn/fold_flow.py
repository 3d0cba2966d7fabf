"""What a model does with the outputs of its layers, read off its program.

Every layer marks what enters and what leaves it with a named identity. In the program (the jaxpr) of the model, an
output that one layer reads, and nothing else, is a variable with one use: the mark at the entrance of that layer.
"""

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
    """path -> what made its input: the path of another call, or a primitive in backticks"""


def trace(program: Callable, *args) -> Flow:
    """The flow of `program(marked, *args)`, which replaces each call `f(x)` of a layer by `marked(call, f, x)`."""
    calls: list[Call] = []

    def marked(call: Call, f: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        index = len(calls)
        calls.append(call)
        return _mark("out", index, f(_mark("in", index, x)))

    jaxpr = jax.make_jaxpr(lambda *args: program(marked, *args))(*args).jaxpr
    reader: dict[int, int] = {}
    source: dict[int, int | str] = {}
    _read(jaxpr, reader, source)
    # A scan traces its body more than once, and only what stands in the program counts.
    times = Counter(calls[i].path for i in source)
    by_path = {}
    for call in (calls[i] for i in source):
        n = times[call.path]
        by_path[call.path] = call if n == 1 else call._replace(obstacle=f"it is called {n} times")
    return Flow(
        by_path,
        {calls[a].path: calls[b].path for a, b in reader.items()},
        {calls[a].path: b if isinstance(b, str) else calls[b].path for a, b in source.items()},
    )


def _mark(side: str, index: int, x: jax.Array) -> jax.Array:
    return checkpoint_name(x, f"jaxbn.fold {side} {index}")


def _marked(eqn, side: str) -> int | None:
    """The number of the call whose entrance ('in') or exit ('out') the equation marks."""
    words = str(eqn.params["name"]).split() if eqn.primitive.name == "name" else []
    return int(words[2]) if words[:2] == ["jaxbn.fold", side] else None


def _read(jaxpr, reader: dict[int, int], source: dict[int, int | str]) -> None:
    """Fills in who reads whom, in this program and in those inside it."""
    makers, readers = {}, {}
    for eqn in jaxpr.eqns:
        makers.update((v, eqn) for v in eqn.outvars)
        for v in eqn.invars:
            if not isinstance(v, core.Literal):
                readers.setdefault(v, []).append(eqn)
    results = [v for v in jaxpr.outvars if not isinstance(v, core.Literal)]
    for eqn in jaxpr.eqns:
        for inner in _programs(eqn):
            _read(inner, reader, source)
        entered, left = _marked(eqn, "in"), _marked(eqn, "out")
        if entered is not None:
            source[entered] = _maker(makers.get(eqn.invars[0]))
        if left is not None:
            (y,) = eqn.outvars
            entrances = [_marked(e, "in") for e in readers.get(y, [])]
            if len(entrances) == 1 and entrances[0] is not None and y not in results:
                reader[left] = entrances[0]


def _programs(eqn) -> list[core.Jaxpr]:
    """The programs inside an equation."""

    def is_program(v):
        return isinstance(v, core.ClosedJaxpr | core.Jaxpr)

    return [getattr(v, "jaxpr", v) for v in jax.tree.leaves(eqn.params, is_leaf=is_program) if is_program(v)]


def _maker(eqn) -> int | str:
    """The number of the call whose output the equation marks, or its name in backticks."""
    if eqn is None:
        return "an input of the model or of a part of it"
    left = _marked(eqn, "out")
    if left is not None:
        return left
    inner = _programs(eqn)
    if "name" not in eqn.params and len(inner) == 1 and len(inner[0].eqns) == 1:
        return _maker(inner[0].eqns[0])  # a function with a derivative of its own, as relu is
    return f"`{eqn.params.get('name', eqn.primitive.name)}`"
