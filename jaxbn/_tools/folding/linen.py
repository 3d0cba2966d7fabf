"""Folding, the side of linen: where the weights of a layer stand in the variables, and how its calls are marked."""

from collections.abc import Iterable
from typing import Any

import jax
from flax import linen as nn
from flax.core import FrozenDict, freeze, meta, unfreeze
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxbn._tools.folding import layers
from jaxbn._tools.folding.flow import Flow, marked, trace
from jaxbn.linen import BatchNorm

LAYERS = (
    ((BatchNorm, nn.BatchNorm), layers.describe_batch_norm),
    ((nn.Dense,), layers.describe_dense),
    ((nn.Conv,), layers.describe_conv),
    ((nn.ConvTranspose,), layers.describe_conv_transpose),
)
COLLECTIONS = ("params", "batch_stats")


class LinenModel:
    """A linen module, its variables, and the arguments with which it evaluates."""

    def __init__(self, model: nn.Module, variables, *args, **kwargs):
        self.subject, self.args = variables, args
        self._model, self._kwargs = model, kwargs
        self.evaluate = jax.jit(lambda variables: model.apply(variables, *args, **kwargs))

    def flow(self) -> Flow:
        """Where the outputs of its layers go."""

        def program(variables, args):
            def interceptor(call, call_args, call_kwargs, context):
                describe = next((d for types, d in LAYERS if isinstance(context.module, types)), None)
                if describe is None or context.method_name != "__call__" or not call_args:
                    return call(*call_args, **call_kwargs)
                x, *rest = call_args
                described = describe("/".join(context.module.path), context.module, x, *rest, **call_kwargs)
                return marked(described, lambda x: call(x, *rest, **call_kwargs), x)

            with nn.intercept_methods(interceptor):
                return self._model.apply(variables, *args, **self._kwargs)

        return trace(program, self.subject, self.args)

    def weights(self, paths: Iterable[str]) -> dict[str, dict[str, jax.Array]]:
        """path -> {'kernel', 'bias'} of a layer, {'scale', 'bias', 'mean', 'var', ...} of a batch norm."""
        flat = _flatten(self.subject)
        return {
            path: {keys[-1]: v for keys, v in flat.items() if keys[0] in COLLECTIONS and "/".join(keys[1:-1]) == path}
            for path in paths
        }

    def with_weights(self, weights: dict[str, dict[str, jax.Array]]):
        """New variables of the same structure."""
        flat = _flatten(self.subject)
        for keys in flat:
            if keys[0] in COLLECTIONS:
                flat[keys] = weights.get("/".join(keys[1:-1]), {}).get(keys[-1], flat[keys])
        tree = unflatten_dict(flat)
        return meta.replace_boxed(self.subject, freeze(tree) if isinstance(self.subject, FrozenDict) else tree)


def _flatten(variables) -> dict[tuple[str, ...], Any]:
    return dict(flatten_dict(unfreeze(meta.unbox(variables)), keep_empty_nodes=True))
