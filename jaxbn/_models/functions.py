"""A Flax model as a function of its parameters, for `jaxbn.testing`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxbn._models.marks import marked
from jaxbn._models.tree import leaf_name, path_name
from jaxbn._models.watch import Call, watch_linen, watch_nnx
from jaxbn._tools.optional import load


class Network(NamedTuple):
    """A model as a function."""

    params: Any
    apply: Callable
    """(params, *inputs) -> output, state written"""
    apply_marked: Callable
    """the same, with the output of each layer marked for `marks.outputs_of_layers`"""


def as_function(model, variables, inputs, options) -> Network:
    """The model in training, called with `options`.

    Raises:
      TypeError: it is neither a linen nor an nnx module.
    """
    linen, nnx = load("flax.linen", "jaxbn.testing"), load("flax.nnx", "jaxbn.testing")
    if isinstance(model, linen.Module):
        return _of_linen(linen, model, variables, inputs, options)
    if isinstance(model, nnx.Module):
        return _of_nnx(nnx, model, options)
    raise TypeError(f"`model` must be a flax.linen.Module or a flax.nnx.Module, got {type(model).__name__}.")


def _marking(root: str) -> Callable[[Call], Any]:
    """A watcher that marks what a layer returns to its caller."""

    def watch(call: Call) -> Any:
        output = call.run(*call.args, **call.kwargs)
        is_layer = call.outermost and call.method == "__call__"
        return marked(path_name(call.path) if call.path else root, output) if is_layer else output

    return watch


def _of_linen(linen, model, variables, inputs, options) -> Network:
    if variables is None:
        variables = jax.jit(lambda key: model.init(key, *inputs, **options))(jax.random.key(0))
    variables = dict(variables)
    params = variables.pop("params", {})

    def apply(params, *inputs):
        given = {"params": params, **variables}
        output, state = model.apply(given, *inputs, **options, mutable=linen.DenyList("params"))
        # The collection goes last, so that names start with that of the layer.
        return output, {f"{leaf_name(p[1:])} ({leaf_name(p[:1])})": v for p, v in jax.tree.leaves_with_path(state)}

    def apply_marked(params, *inputs):
        with watch_linen(_marking(type(model).__name__)):
            return apply(params, *inputs)

    return Network(params, apply, apply_marked)


def _of_nnx(nnx, model, options) -> Network:
    filters = (nnx.Param, nnx.RngState, ...)
    graphdef, params, random, others = nnx.split(model, *filters)
    watched = watch_nnx(model, _marking(type(model).__name__), lambda path, module: type(module))
    marked_graphdef = nnx.split(watched, *filters)[0]

    def applied(graphdef, params, inputs):
        model = nnx.merge(graphdef, params, random, others, copy=True)
        output = model(*inputs, **options)
        return output, nnx.split(model, *filters)[3]

    return Network(
        params,
        lambda params, *inputs: applied(graphdef, params, inputs),
        lambda params, *inputs: applied(marked_graphdef, params, inputs),
    )
