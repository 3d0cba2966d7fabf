"""Folding in nnx: where the weights of a layer are in the model, and how its calls are marked."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jax.errors import TracerBoolConversionError

from jaxbn._tools.folding import flow, layers
from jaxbn._tools.folding.affine import Weights
from jaxbn._tools.folding.arguments import split_arrays, split_input
from jaxbn._tools.folding.program import trace
from jaxbn.nnx import BatchNorm

LAYERS = (
    (BatchNorm, layers.describe_batch_norm),
    (nnx.BatchNorm, layers.describe_batch_norm),
    (nnx.Linear, layers.describe_dense),
    (nnx.LinearGeneral, layers.describe_dense_general),
    (nnx.Einsum, layers.describe_einsum),
    (nnx.Conv, layers.describe_conv),
    (nnx.ConvTranspose, layers.describe_conv_transpose),
)
NAMES = ("kernel", "scale", "bias", "mean", "var", "count")


class NnxModel:
    """An nnx module, and the arguments with which it evaluates."""

    def __init__(self, model: nnx.Module, *args, **kwargs) -> None:
        self._model, self._kwargs = model, kwargs
        self._arrays, self._join = split_arrays(args)

    def flow(self):
        """Where the outputs of its layers go, and path -> name -> the value in the program of each weight."""
        copy = nnx.clone(self._model)
        copy.eval()
        graphdef, state = nnx.split(copy)
        numbers: dict[str, dict[str, int]] = {}
        seen: list[flow.Call] = []

        def program(state, arrays):
            model = nnx.merge(graphdef, state)
            leaves = jax.tree.leaves(state)
            for path, module in _modules(model).items():
                traced = {k: v.get_raw_value() for k, v in _variables(module).items()}
                places = {k: [i for i, leaf in enumerate(leaves) if leaf is v] for k, v in traced.items()}
                numbers[path] = {k: i[0] for k, i in places.items() if i}
                _mark_calls(path, module, seen)
            return model(*self._join(arrays), **self._kwargs)

        try:
            found = flow.find(trace(program, state, self._arrays))
        except TracerBoolConversionError as error:  # the last one is Flax's, which needs to know whether it trains
            layers.check_evaluation(seen[-1:])
            raise error
        return found, {p: {k: found.program.inputs[i] for k, i in w.items()} for p, w in numbers.items()}

    def weights(self) -> dict[str, Weights]:
        """path -> {'kernel', 'bias'} for a layer, {'scale', 'bias', 'mean', 'var', ...} for a batch norm."""
        modules = _modules(self._model)
        return {path: {k: v.get_value() for k, v in _variables(m).items()} for path, m in modules.items()}

    def with_weights(self, weights: Mapping[str, Weights]) -> nnx.Module:
        """A new model of the same structure."""
        model = nnx.clone(self._model)
        modules = _modules(model)
        for path, values in weights.items():
            variables = _variables(modules[path])
            for name, value in values.items():
                variables[name].set_value(value)
        return model


def _modules(model: nnx.Module) -> dict[str, nnx.Module]:
    """The layers of the model that folding knows, by path."""
    types = tuple(cls for cls, _ in LAYERS)
    return {"/".join(map(str, path)): m for path, m in nnx.iter_modules(model) if isinstance(m, types)}


def _variables(module: nnx.Module) -> dict[str, Any]:
    return {k: v for k, v in vars(module).items() if k in NAMES and isinstance(v, nnx.Variable)}


def _mark_calls(path: str, module: nnx.Module, seen: list[flow.Call]) -> None:
    """Marks the calls of a layer that folding knows, and lists them: those of that class, whatever a subclass does.

    The module gets a class of its own, in whose method resolution order the marks come right before that class: both a
    call and `super()` look the method up there. The class stays with the module through jit and scan.
    """
    plain = type(module)
    known, describe = next(row for row in LAYERS if isinstance(module, row[0]))

    def call(self, *args, **kwargs):
        x, rest, kwargs = split_input(args, kwargs)
        described = describe(path, self, x, *rest, **kwargs)
        seen.append(described)
        return flow.marked(described, lambda x: known.__call__(self, x, *rest, **kwargs), x)

    marks = type(known.__name__, (known,), {"__call__": call})
    object.__setattr__(module, "__class__", marks if plain is known else type(plain.__name__, (plain, marks), {}))
