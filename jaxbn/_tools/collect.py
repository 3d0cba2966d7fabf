"""The moments of what enters each batch norm of a model, in one forward pass, whichever statistics normalize in it.

A functional forward returns them. Those of Flax's modules, and of ours, are taken from outside as a module is called:
it need not train for that, and where it normalizes groups of devices apart, the moments are still those of all.
"""

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxbn._core.batch_norm import batch_moments
from jaxbn._core.merge import merge_into, zeros_of_layer
from jaxbn._core.types import BatchStats, Moments
from jaxbn._models.find import Path, find_batch_norms, is_nnx, path_name, plain_path, set_at

Forward = Callable[[Any, Any], Any]


def collect_moments(forward: Forward, model: Any, batch: Any) -> dict[Path, Moments]:
    """Moments of what enters each batch norm while `forward` runs on one batch.

    Args:
      forward: `forward(model, batch)`, the call of the model, run under `jax.jit`. It decides which statistics
        normalize (`use_running_average`), what is masked, and over which devices the batch is split.
          - linen: `(y, {'batch_moments': ...})`, as `apply` with `mutable=['batch_moments']` returns it. A
            `flax.linen.BatchNorm` in training needs `mutable=['batch_moments', 'batch_stats']`.
          - nnx: calls the model; what it returns is not used.
          - functional: `(y, moments)`, where `moments` is the tree of `batch_stats` with a `jaxbn.Moments` in the place
            of each layer's statistics.
      model: variables {'params': ..., 'batch_stats': ...}, or an nnx module. It stays as it is.
      batch: a pytree of arrays.

    Returns:
      The `Moments` of each batch norm by its path, with counts, means and variances [C]: those of all its calls where
      there are several, of no example where `forward` does not reach it.

    Raises:
      ValueError: `forward` gives no moments, or gives some where the model has no batch norm.
      TypeError: `model` is neither variables nor an nnx module.

    Example:
      >>> import jax.numpy as jnp, jaxbn
      >>> params, batch_stats = jaxbn.init(1)
      >>> variables = {"params": {"bn": params}, "batch_stats": {"bn": batch_stats}}
      >>> def forward(variables, x):
      ...     y, moments = jaxbn.normalize_batch(variables["params"]["bn"], variables["batch_stats"]["bn"], x)
      ...     return y, {"bn": moments}
      >>> jaxbn.collect_moments(forward, variables, jnp.array([[1.0], [3.0]]))[("bn",)].mean.tolist()
      [2.0]

      The same with linen and with nnx:

      >>> import jax, jaxbn.linen, jaxbn.nnx
      >>> from flax import nnx
      >>> model = jaxbn.linen.BatchNorm(use_running_average=False)
      >>> variables = model.init(jax.random.key(0), jnp.ones((2, 1)))
      >>> def forward(variables, x):
      ...     return model.apply(variables, x, mutable=["batch_moments"])
      >>> jaxbn.collect_moments(forward, variables, jnp.array([[1.0], [3.0]]))[()].mean.tolist()
      [2.0]
      >>> model = jaxbn.nnx.BatchNorm(1, rngs=nnx.Rngs(0))
      >>> jaxbn.collect_moments(lambda model, x: model(x), model, jnp.array([[1.0], [3.0]]))[()].mean.tolist()
      [2.0]
    """
    found = find_batch_norms(model)
    run, state = collector(forward, model)
    return dict(zip(found, run(state, [f.batch_stats for f in found.values()], batch), strict=True))


def collector(forward: Forward, model: Any) -> tuple[Callable[[Any, list[BatchStats], Any], list[Moments]], Any]:
    """`run(state, statistics of each layer, batch)`, jitted, which gives the moments of each layer, and its `state`."""
    paths = list(find_batch_norms(model))
    collect, state = _from_nnx(forward, model, paths) if is_nnx(model) else (_from_variables(forward, paths), model)

    @jax.jit
    def run(state, stats, batch):
        moments = collect(state, stats, batch)
        places = f"the batch norms of the model, {', '.join(map(path_name, paths))}"
        if not moments:
            raise ValueError(
                f"`forward` must return (y, moments) with the moments of {places}, got none. With linen it returns "
                "what model.apply(variables, ..., mutable=['batch_moments']) returns."
            )
        unknown = sorted(path_name(path) for path in set(moments) - set(paths))
        if unknown:
            raise ValueError(f"`forward` must return moments in the places of {places}, got some at {unknown}.")
        zeros = [zeros_of_layer(s["mean"]) for s in stats]
        return [_add(zero, moments[path]) if path in moments else zero for path, zero in zip(paths, zeros, strict=True)]

    return run, state


def moments_by_path(tree: Any) -> dict[Path, Moments]:
    """The moments in a tree like `batch_stats`: `Moments`, or dicts of 'count', 'mean' and 'var'."""

    def is_moments(node):
        return isinstance(node, Moments) or (isinstance(node, Mapping) and set(Moments._fields) <= set(node))

    nodes = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_moments)[0]
    return {
        plain_path(keys): node if isinstance(node, Moments) else Moments(*(node[name] for name in Moments._fields))
        for keys, node in nodes
        if is_moments(node)
    }


def _add(old: Moments, new: Moments) -> Moments:
    """Both, [C] each; complex where the new ones are."""
    return merge_into(old._replace(mean=old.mean.astype(jnp.promote_types(old.mean.dtype, new.mean.dtype))), new)


def _from_variables(forward: Forward, paths: list[Path]):
    def collect(variables, stats, batch):
        variables = {name: tree for name, tree in variables.items() if name != "batch_moments"}
        for path, s in zip(paths, stats, strict=True):
            for name, value in s.items():
                variables = set_at(variables, ("batch_stats", *path, name), value)
        linen = sys.modules.get("flax.linen")
        if linen is None:
            out = forward(variables, batch)
        else:
            with linen.intercept_methods(_watch_linen):
                out = forward(variables, batch)
        if not (isinstance(out, tuple) and len(out) == 2):
            return {}
        tree = out[1]
        if isinstance(tree, Mapping) and {"batch_moments", "batch_stats"} & set(tree):
            tree = tree.get("batch_moments")
        return moments_by_path(tree)

    return collect


def _watch_linen(call, args, kwargs, context):
    from flax import linen as nn

    from jaxbn.linen import BatchNorm

    module = context.module
    watched = isinstance(module, BatchNorm | nn.BatchNorm) and context.method_name == "__call__"
    if not (watched and module.is_mutable_collection("batch_moments")):
        return call(*args, **kwargs)
    old = {name: module.get_variable("batch_moments", name) for name in Moments._fields}
    y = call(*args, **kwargs)
    zeros = zeros_of_layer(module.get_variable("batch_stats", "mean"))
    old = zeros if old["count"] is None else Moments(**old)
    x = args[0] if args else kwargs["x"]
    # What jaxbn's module may have written there itself is replaced: counted twice it would be wrong.
    for name, value in _add(old, _moments_of_input(module, x, kwargs.get("mask")))._asdict().items():
        module.put_variable("batch_moments", name, value)
    return y


def _moments_of_input(module, x: jax.Array, mask: jax.Array | None) -> Moments:
    return batch_moments(jnp.asarray(x), axis=module.axis, mask=mask, axis_name=module.axis_name)


def _from_nnx(forward: Forward, model: Any, paths: list[Path]):
    from flax import nnx

    from jaxbn.nnx import BatchMoments

    if isinstance(model, nnx.State):
        raise TypeError("`model` must be variables or an nnx module, which `forward` can call, got an nnx.State.")
    watched = nnx.merge(*nnx.split(model))
    for layer in _nnx_layers(watched).values():
        layer.__class__ = _watched_class(type(layer))
        zeros = zeros_of_layer(layer.mean[...])._asdict()
        layer.entered = nnx.data({name: BatchMoments(zero) for name, zero in zeros.items()})
    graphdef, state = nnx.split(watched)

    def collect(state, stats, batch):
        model = nnx.merge(graphdef, state)
        layers = _nnx_layers(model)
        for path, s in zip(paths, stats, strict=True):
            for name, value in s.items() if path in layers else ():
                getattr(layers[path], name).set_value(value)
        forward(model, batch)
        return {path: _entered(layer) for path, layer in layers.items()}

    return collect, state


def _nnx_layers(model: Any) -> dict[Any, Any]:
    from flax import nnx

    return {path: module for path, module in nnx.iter_modules(model) if isinstance(module, nnx.BatchNorm)}


@functools.cache
def _watched_class(layer_class):
    """The class of a batch norm that notes the moments of what enters it."""

    class Watched(layer_class):
        def __call__(self, x, *args, **kwargs):
            moments = _add(_entered(self), _moments_of_input(self, x, kwargs.get("mask")))
            for name, value in moments._asdict().items():
                self.entered[name].set_value(value)
            return super().__call__(x, *args, **kwargs)

    return Watched


def _entered(layer: Any) -> Moments:
    return Moments(**{name: variable.get_value() for name, variable in layer.entered.items()})
