"""The program (the jaxpr) of a model as one flat list of equations, and parts of it run by themselves.

Calls of jit, of remat and of functions with a custom derivative are inlined; a loop or a branch remains one equation.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import jax
from jax.extend import core

from jaxbn._compat import evaluate, jaxprs_in_params

Value = int
"""a value of the program, numbered in the order of computation"""

CALLS = {
    *("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
}
"""Names of the primitives that only call the program inside them."""


class Constant(NamedTuple):
    """A constant in the program."""

    value: Any


class Equation(NamedTuple):
    """One operation."""

    eqn: core.JaxprEqn
    inputs: list[Value | Constant]
    outputs: list[Value]
    label: str
    """what messages call it: the function it is part of, such as 'relu', or the primitive"""

    @property
    def primitive(self) -> str:
        """The name of the primitive."""
        return self.eqn.primitive.name

    def reads(self) -> list[Value]:
        """The inputs that are not constants."""
        return [v for v in self.inputs if not isinstance(v, Constant)]


class Program(NamedTuple):
    """A flat program."""

    inputs: list[Value]
    outputs: list[Value | Constant]
    equations: list[Equation]
    """the ones that the outputs need, in order"""
    maker: dict[Value, int]
    """value -> the number of the equation that computes it; inputs have none"""
    readers: dict[Value, list[int]]
    avals: dict[Value, Any]
    """value -> its shape and dtype"""
    fixed: set[Value]
    """values that follow from constants alone"""


def read(closed: core.ClosedJaxpr) -> Program:
    """The flat program of a jaxpr."""
    avals: dict[Value, Any] = {}
    equations: list[Equation] = []

    def new(v) -> Value:
        avals[len(avals)] = v.aval
        return len(avals) - 1

    def write_out(jaxpr, env: dict, label: str | None) -> list[Value | Constant]:
        def of(v):
            return Constant(v.val) if isinstance(v, core.Literal) else env[v]

        for eqn in jaxpr.eqns:
            inputs, inner = [of(v) for v in eqn.invars], _called(eqn)
            name = eqn.params.get("name")
            inside = name if isinstance(name, str) and eqn.primitive.name != "name" else label
            if inner is None:
                outputs = [new(v) for v in eqn.outvars]
                equations.append(Equation(eqn, inputs, outputs, (inside or eqn.primitive.name).strip("_")))
            else:
                below = dict(zip(inner.jaxpr.invars, inputs, strict=True))
                below.update(zip(inner.jaxpr.constvars, map(Constant, inner.consts), strict=True))
                outputs = write_out(inner.jaxpr, below, inside)
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [of(v) for v in jaxpr.outvars]

    inputs = [new(v) for v in closed.jaxpr.invars]
    env: dict = dict(zip(closed.jaxpr.invars, inputs, strict=True))
    env.update(zip(closed.jaxpr.constvars, map(Constant, closed.consts), strict=True))
    outputs = write_out(closed.jaxpr, env, None)
    return _indexed(inputs, outputs, equations, avals)


def inside(equation: Equation) -> Iterable[core.JaxprEqn]:
    """The equations of the programs inside an equation, at any depth."""
    for jaxpr in jaxprs_in_params(equation.eqn.params):
        yield from _all(jaxpr)


def run(program: Program, numbers: Iterable[int], values: Mapping[Value, Any], wanted: Collection[Value]) -> list[Any]:
    """The values `wanted`, computed by the equations with these numbers, in order, from the `values` that they need."""
    values = dict(values)
    for i in numbers:
        eqn, inputs, outputs, _ = program.equations[i]
        arguments = [v.value if isinstance(v, Constant) else values[v] for v in inputs]
        values.update(zip(outputs, evaluate(eqn, arguments), strict=True))
    return [values[v] for v in wanted]


def reached(program: Program, seeds: Iterable[Value]) -> set[int]:
    """The numbers of the equations whose results depend on one of these values."""
    values, numbers = set(seeds), set()
    for i, equation in enumerate(program.equations):
        if not values.isdisjoint(equation.reads()):
            numbers.add(i)
            values.update(equation.outputs)
    return numbers


def needed(program: Program, results: Iterable[Value], stop: Collection[Value] = ()) -> set[int]:
    """The numbers of the equations on which these results depend, as far back as the values `stop`."""
    values, numbers = set(results), set()
    for i in range(len(program.equations) - 1, -1, -1):
        if not values.isdisjoint(program.equations[i].outputs):
            numbers.add(i)
            values.update(v for v in program.equations[i].reads() if v not in stop)
    return numbers


def _indexed(inputs, outputs, equations, avals) -> Program:
    every = Program(inputs, outputs, equations, {}, {}, avals, set())
    live = sorted(needed(every, (v for v in outputs if not isinstance(v, Constant))))
    program = every._replace(equations=[equations[i] for i in live])
    for i, equation in enumerate(program.equations):
        program.maker.update((v, i) for v in equation.outputs)
        for v in equation.reads():
            program.readers.setdefault(v, []).append(i)
        if program.fixed.issuperset(equation.reads()):
            program.fixed.update(equation.outputs)
    return program


def _called(eqn) -> core.ClosedJaxpr | None:
    """The program that an equation only calls."""
    if eqn.primitive.name not in CALLS:
        return None
    inner = [v for v in eqn.params.values() if isinstance(v, core.ClosedJaxpr | core.Jaxpr)]
    if len(inner) != 1 or len(
        inner[0].jaxpr.invars if isinstance(inner[0], core.ClosedJaxpr) else inner[0].invars
    ) != len(eqn.invars):
        return None
    return inner[0] if isinstance(inner[0], core.ClosedJaxpr) else core.ClosedJaxpr(inner[0], ())


def _all(jaxpr) -> Iterable[core.JaxprEqn]:
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from _all(inner)


def trace(f: Callable, *args) -> Program:
    """The flat program of `f(*args)`, for arrays of these shapes and dtypes, whatever devices they are on."""

    def shape(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else leaf

    # A different precision is a different key of jit's caches, so that a part of the model that ran before is retraced.
    with jax.default_matmul_precision("highest"):
        return read(jax.make_jaxpr(f)(*jax.tree.map(shape, args)))
