"""Folding in linen: where the weights of a layer are among the variables, and how its calls are marked."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from flax.core import FrozenDict, freeze, meta, unfreeze
from flax.errors import ModifyScopeVariableError
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.errors import TracerBoolConversionError

from jaxbn._tools.folding import flow, layers
from jaxbn._tools.folding.affine import Weights
from jaxbn._tools.folding.arguments import split_arrays, split_input
from jaxbn._tools.folding.program import trace
from jaxbn.linen import BatchNorm

LAYERS = (
    (BatchNorm, layers.describe_batch_norm),
    (nn.BatchNorm, layers.describe_batch_norm),
    (nn.Dense, layers.describe_dense),
    (nn.DenseGeneral, layers.describe_dense_general),
    (nn.Einsum, layers.describe_einsum),
    (nn.Conv, layers.describe_conv),
    (nn.ConvTranspose, layers.describe_conv_transpose),
)
COLLECTIONS = ("params", "batch_stats")
NAMES = ("kernel", "scale", "bias", "mean", "var", "count")


class LinenModel:
    """A linen module, its variables, and the arguments with which it evaluates."""

    def __init__(self, model: nn.Module, variables, *args, **kwargs) -> None:
        self._variables, self._model, self._kwargs = variables, model, kwargs
        self._arrays, self._join = split_arrays(args)

    def flow(self):
        """Where the outputs of its layers go, and path -> name -> the value in the program of each weight."""

        seen: list[flow.Call] = []

        def program(variables, arrays):
            with nn.intercept_methods(functools.partial(_mark, seen)):
                outputs = self._model.apply(variables, *self._join(arrays), **self._kwargs)
            if self._kwargs.get("mutable") in (None, False):
                return outputs
            # Returning the weights and statistics would count as using them.
            return outputs[0], {k: v for k, v in outputs[1].items() if k not in COLLECTIONS}

        try:
            found = flow.find(trace(program, self._variables, self._arrays))
        except (ModifyScopeVariableError, TracerBoolConversionError) as error:
            # The last one wants to write its statistics, or is Flax's, which needs to know whether it is in training.
            layers.check_evaluation(seen[-1:])
            raise error
        numbers = jax.tree.unflatten(
            jax.tree.structure(self._variables), found.program.inputs[: len(jax.tree.leaves(self._variables))]
        )
        return found, _by_layer(numbers)

    def weights(self) -> dict[str, Weights]:
        """path -> {'kernel', 'bias'} for a layer, {'scale', 'bias', 'mean', 'var', ...} for a batch norm."""
        return dict(_by_layer(self._variables))

    def with_weights(self, weights: Mapping[str, Weights]):
        """New variables of the same structure."""
        flat = _flatten(self._variables)
        for keys in flat:
            if keys[0] in COLLECTIONS:
                flat[keys] = weights.get("/".join(keys[1:-1]), {}).get(keys[-1], flat[keys])
        tree = unflatten_dict(flat)
        return meta.replace_boxed(self._variables, freeze(tree) if isinstance(self._variables, FrozenDict) else tree)


def _mark(seen, call, args, kwargs, context):
    """Marks the call of a layer that folding knows: the call of that class, whatever a subclass does around it."""
    known, describe = next((row for row in LAYERS if isinstance(context.module, row[0])), (None, None))
    if known is None or describe is None or context.orig_method.func is not inspect.unwrap(known.__call__):
        return call(*args, **kwargs)
    x, rest, kwargs = split_input(args, kwargs)
    about = describe("/".join(context.module.path), context.module, x, *rest, **kwargs)
    seen.append(about)
    return flow.marked(about, lambda x: call(x, *rest, **kwargs), x)


def _by_layer(variables) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for keys, v in _flatten(variables).items():
        if keys[0] in COLLECTIONS and keys[-1] in NAMES:
            found.setdefault("/".join(keys[1:-1]), {})[keys[-1]] = v
    return found


def _flatten(variables) -> dict[tuple[str, ...], Any]:
    return dict(flatten_dict(unfreeze(meta.unbox(variables)), keep_empty_nodes=True))
