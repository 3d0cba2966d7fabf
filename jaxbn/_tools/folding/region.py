"""Whether a fold changes what a model computes, decided from its program and not from an example.

A batch norm and the layers beside it are cut out of the program with everything between them: whatever depends on their
weights or their input, up to their output. Nothing inside may be read from outside. Then that part is run by itself on
random weights and inputs, as it is and folded. The two agree for all weights, or differ for almost all of them: so a
model that normalizes, shares or adds to a kernel, or is nonlinear in between, is found whatever its weights are now.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbn._tools.folding import program as programs
from jaxbn._tools.folding.affine import FeaturesError, fold_weights
from jaxbn._tools.folding.flow import Call, Flow
from jaxbn._tools.folding.program import Constant, Program, Value

Leaves = Mapping[str, Mapping[str, Value]]
"""path -> {'kernel': its value in the program, ...}"""
SAME = 1e-3
"""as a fraction of the largest output: how far the same float32 sums in two orders may differ, with a margin"""


class Fold(NamedTuple):
    """A batch norm and the layers that absorb it."""

    norm: str
    layers: tuple[str, ...]
    """the one layer before it, or all layers that read it"""
    backward: bool

    def pairs(self) -> list[tuple[str, str]]:
        """The pairs of a layer and a batch norm, in the order of the data."""
        return [(layer, self.norm) if self.backward else (self.norm, layer) for layer in self.layers]


class Region(NamedTuple):
    """A part of a program."""

    numbers: list[int]
    """the numbers of its equations"""
    entrance: Value
    exits: list[Value]
    own: dict[Value, tuple[str, str]]
    """the weights of its layers: value -> (path, name)"""
    free: list[Value]
    """what else comes from outside and is not constant"""


def why_not(flow: Flow, leaves: Leaves, fold: Fold, known: dict[Any, str | None]) -> str | None:
    """Why the fold would change the model; None if it does not. `known` caches the answers for identical parts."""
    region = _cut_out(flow, leaves, fold)
    escape = _escape(flow, fold, region)
    if escape is not None:
        return escape
    calls = [flow.calls[path] for path in (fold.norm, *fold.layers)]
    key = _fingerprint(flow.program, region, fold, calls)
    if key not in known:
        with jax.transfer_guard("allow"):  # random numbers are made on the host
            known[key] = _try(flow, fold, region)
    return known[key]


def _cut_out(flow: Flow, leaves: Leaves, fold: Fold) -> Region:
    program, ends = flow.program, flow.ends
    own = {v: (path, name) for path in (fold.norm, *fold.layers) for name, v in leaves[path].items()}
    first = fold.layers[0] if fold.backward else fold.norm
    entrance = ends[first].entrance
    exits = [ends[path].exit for path in ((fold.norm,) if fold.backward else fold.layers)]
    within = programs.reached(program, [entrance, *own]) & programs.needed(program, exits, (entrance,))
    made = {v for i in within for v in program.equations[i].outputs}
    read = {v for i in within for v in program.equations[i].reads()} - made - {entrance} - set(own)
    fixed = programs.needed(program, read & program.fixed)
    return Region(sorted(within | fixed), entrance, exits, own, sorted(read - program.fixed))


def _escape(flow: Flow, fold: Fold, region: Region) -> str | None:
    """Which value of the region is read from outside, as a reason not to fold; None if there is none."""
    program, numbers = flow.program, set(region.numbers)

    def is_read_outside(value: Value) -> bool:
        return value in program.outputs or any(i not in numbers for i in program.readers.get(value, ()))

    for value, (path, name) in region.own.items():
        if is_read_outside(value):
            return f"{path}: its {name} is used in another place too"
    for i in region.numbers:
        for value in program.equations[i].outputs:
            if value not in region.exits and value not in program.fixed and is_read_outside(value):
                first, second = fold.pairs()[0]
                return f"what is made of the weights of {first} and {second} is used in another place too"
    return None


def _try(flow: Flow, fold: Fold, region: Region) -> str | None:
    rng = np.random.default_rng(0)
    program = flow.program
    values = {v: _random(rng, program.avals[v]) for v in (region.entrance, *region.free)}
    weights: dict[str, dict[str, Any]] = {path: {} for path in (fold.norm, *fold.layers)}
    for value, (path, name) in region.own.items():
        weights[path][name] = _random(rng, program.avals[value], name)
    calls = [flow.calls[path] for path in (fold.norm, *fold.layers)]

    def outputs(weights):
        given = {value: weights[path][name] for value, (path, name) in region.own.items()}
        return programs.run(program, region.numbers, {**values, **given}, region.exits)

    @jax.jit
    def before_and_after(weights):
        norm, layers, _ = fold_weights(weights[fold.norm], [weights[p] for p in fold.layers], calls, fold.backward)
        return outputs(weights), outputs({fold.norm: norm, **dict(zip(fold.layers, layers, strict=True))})

    try:
        before, after = before_and_after(weights)
    except FeaturesError as error:
        return str(error)
    dtypes = [v.dtype for v in (*before, *jax.tree.leaves(weights), *values.values())]
    precise = all(jnp.finfo(d).bits >= 32 for d in dtypes if jnp.issubdtype(d, jnp.inexact))
    for x, y in zip(before, after, strict=True):
        x, y = (np.asarray(v).astype(np.complex128) for v in (x, y))
        largest = np.abs(x).max(initial=0.0)
        if not np.abs(x - y).max(initial=0.0) <= (SAME if precise else 0.05) * largest:
            return (
                "the outputs would change: weights are computed from others, or what stands between them does not "
                "leave a channel's shift and scale as they are"
            )
    return None


def _random(rng: np.random.Generator, aval, name: str = "") -> Any:
    """A random value with that shape and dtype, positive if it is a variance or a scale."""
    if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), aval.shape)
    if not jnp.issubdtype(aval.dtype, jnp.inexact):
        return jnp.ones(aval.shape, aval.dtype)
    if name in ("var", "scale"):
        return jnp.asarray(rng.uniform(0.5, 2.0, aval.shape), aval.dtype)
    fan_in = np.prod(aval.shape[:-1], initial=1.0) if name == "kernel" else 1.0
    value = rng.normal(0.0, 1 / np.sqrt(max(fan_in, 1.0)), aval.shape)
    if jnp.issubdtype(aval.dtype, jnp.complexfloating):
        value = value + 1j * rng.normal(size=aval.shape)
    return jnp.asarray(value, aval.dtype)


def _fingerprint(program: Program, region: Region, fold: Fold, calls: Sequence[Call]) -> str:
    """A key that is equal for parts that compute the same."""
    number: dict[Value, int] = {}

    def of(value) -> str:
        if isinstance(value, Constant):
            return f"{value.value!r}" if np.ndim(value.value) == 0 else f"constant {id(value.value)}"
        return f"{number.setdefault(value, len(number))}:{program.avals[value]}"

    def params(equation) -> str:
        return "" if equation.primitive == "name" else str(equation.eqn.params)

    lines = [
        f"{[of(v) for v in e.outputs]} = {e.primitive} {params(e)} {[of(v) for v in e.inputs]}"
        for e in (program.equations[i] for i in region.numbers)
    ]
    own = [
        (of(v), calls.index(next(c for c in calls if c.path == path)), name) for v, (path, name) in region.own.items()
    ]
    ends = [of(region.entrance), *map(of, region.exits), *map(of, region.free)]
    return str((lines, own, ends, fold.backward, [call._replace(path="") for call in calls]))
