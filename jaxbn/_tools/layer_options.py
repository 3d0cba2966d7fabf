"""The momentum and `unbiased` of each batch norm of a linen model, read off its modules."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxbn._models.tree import path_name
from jaxbn._models.unbound_axes import run_layer, with_axes_bound
from jaxbn._models.watch import Call, watch_linen
from jaxbn._tools.batches import as_arrays
from jaxbn._tools.checks import check_function, check_mapping


def layer_options(forward: Callable[[Any, Any], Any], variables: Mapping[str, Any], batch: Any) -> dict[str, Any]:
    """The `momentum` and `unbiased` of each batch norm that `forward` calls, by the path of the layer.

    This is for `jaxbn.commit_moments`, which sees variables but not modules. nnx modules know their own options, so
    `jaxbn.nnx.commit_moments` does not need it.

    Args:
      forward: `forward(variables, batch)`, the call of a linen model. It is only traced; nothing is computed.
      variables: {'params': ..., 'batch_stats': ...}.
      batch: a pytree of arrays, or of their shapes and dtypes (`jax.ShapeDtypeStruct`).

    Returns:
      {'momentum': {'encoder/0/bn': 0.9, ...}, 'unbiased': {'encoder/0/bn': False, ...}}, one dict by path for
      each option. Add by hand what a linen module cannot tell because it calls functions:
      {**options['momentum'], 'norm': 0.9}.

    Raises:
      ValueError: `forward` calls no linen batch norm, or `variables` have no `batch_stats`.
      TypeError: `forward` is not a function of two arguments, `variables` is not a dict, or `batch` does not consist of
        arrays.

    Example:
      >>> import jax, jax.numpy as jnp, jaxbn
      >>> from jaxbn import layer_options
      >>> from flax import linen as nn
      >>> from jaxbn.linen import BatchNorm
      >>> model = nn.Sequential([BatchNorm(False, momentum=0.5), BatchNorm(False, unbiased=True)])
      >>> x = jnp.array([[1.0], [3.0]])
      >>> variables = model.init(jax.random.key(0), x)
      >>> options = layer_options(lambda v, x: model.apply(v, x, mutable=["batch_stats"]), variables, x)
      >>> options["momentum"], options["unbiased"]
      ({'layers_0': 0.5, 'layers_1': 0.99}, {'layers_0': False, 'layers_1': True})
      >>> moments = jaxbn.zero_moments(variables["batch_stats"])
      >>> _, written = model.apply({**variables, "batch_moments": moments}, x, mutable=["batch_moments"])
      >>> new = jaxbn.commit_moments(variables["batch_stats"], written["batch_moments"], **options)
      >>> new["layers_0"]["mean"].tolist()
      [1.0]
    """
    check_function(forward, "forward", ("variables", "batch"))
    rule = "be variables of linen, {'params': ..., 'batch_stats': ...}"
    check_mapping(variables, "variables", rule)
    if "batch_stats" not in variables:
        raise ValueError(f"`variables` must {rule}, got the keys {sorted(map(str, variables))}.")
    options: dict[str, dict[str, Any]] = {"momentum": {}, "unbiased": {}}
    if "flax.linen" in sys.modules:
        from flax import linen as nn

        from jaxbn.linen import BatchNorm

        def note(call: Call) -> Any:
            if call.owner in (BatchNorm, nn.BatchNorm) and call.method == "__call__":
                options["momentum"][path_name(call.path)] = call.layer.momentum
                options["unbiased"][path_name(call.path)] = getattr(call.layer, "unbiased", False)
                return run_layer(call)
            return call.run(*call.args, **call.kwargs)

        def run(variables, batch):
            with watch_linen(note):
                return jax.tree.leaves(with_axes_bound(lambda: forward(variables, batch)))

        structs = jax.tree.map(lambda v: v if isinstance(v, jax.ShapeDtypeStruct) else as_arrays(v), batch)
        jax.eval_shape(run, variables, structs)
    if not options["momentum"]:
        raise ValueError("`forward` must call a batch norm of flax.linen or jaxbn.linen, got none.")
    return options
