"""Folding, the side of nnx: where the weights of a layer stand in the model, and how its calls are marked."""

from collections.abc import Iterable

import jax
from flax import nnx

from jaxbn._tools.folding import layers
from jaxbn._tools.folding.flow import Flow, marked, trace
from jaxbn.nnx import BatchNorm

LAYERS = (
    ((BatchNorm, nnx.BatchNorm), layers.describe_batch_norm),
    ((nnx.Linear,), layers.describe_dense),
    ((nnx.Conv,), layers.describe_conv),
    ((nnx.ConvTranspose,), layers.describe_conv_transpose),
)
NAMES = ("kernel", "scale", "bias", "mean", "var", "count")


class NnxModel:
    """An nnx module, and the arguments with which it evaluates."""

    def __init__(self, model: nnx.Module, *args, **kwargs):
        self.subject, self.args = model, args
        self._kwargs = kwargs
        graphdef, _ = nnx.split(_evaluating(model))
        self._evaluate = jax.jit(lambda state: nnx.merge(graphdef, state)(*args, **kwargs))

    def evaluate(self, model: nnx.Module):
        """The output of `model`, which has the structure of this one."""
        return self._evaluate(nnx.split(_evaluating(model))[1])

    def flow(self) -> Flow:
        """Where the outputs of its layers go."""
        graphdef, state = nnx.split(_evaluating(self.subject))

        def program(state, args):
            model = nnx.merge(graphdef, state)
            for path, module in _modules(model).items():
                _mark_calls(path, module)
            return model(*args, **self._kwargs)

        return trace(program, state, self.args)

    def weights(self, paths: Iterable[str]) -> dict[str, dict[str, jax.Array]]:
        """path -> {'kernel', 'bias'} of a layer, {'scale', 'bias', 'mean', 'var', ...} of a batch norm."""
        modules = _modules(self.subject)
        return {path: {k: v[...] for k, v in _variables(modules[path]).items()} for path in paths}

    def with_weights(self, weights: dict[str, dict[str, jax.Array]]) -> nnx.Module:
        """A new model of the same structure."""
        model = nnx.clone(self.subject)
        modules = _modules(model)
        for path, values in weights.items():
            variables = _variables(modules[path])
            for name, value in values.items():
                variables[name][...] = value
        return model


def _evaluating(model: nnx.Module) -> nnx.Module:
    """A copy in evaluation mode."""
    copy = nnx.clone(model)
    copy.eval()
    return copy


def _modules(model: nnx.Module) -> dict[str, nnx.Module]:
    """The layers of the model that folding knows, by path."""
    types = tuple(t for types, _ in LAYERS for t in types)
    return {"/".join(map(str, path)): m for path, m in nnx.iter_modules(model) if isinstance(m, types)}


def _variables(module: nnx.Module) -> dict[str, nnx.Variable]:
    return {k: v for k, v in vars(module).items() if k in NAMES and isinstance(v, nnx.Variable)}


def _mark_calls(path: str, module: nnx.Module) -> None:
    """Gives `module` a class of its own, whose calls are marked: a call looks its method up in the class."""
    plain = type(module)
    describe = next(d for types, d in LAYERS if isinstance(module, types))

    def call(self, x, *rest, **kwargs):
        described = describe(path, self, x, *rest, **kwargs)
        return marked(described, lambda x: plain.__call__(self, x, *rest, **kwargs), x)

    object.__setattr__(module, "__class__", type(plain.__name__, (plain,), {"__call__": call}))
