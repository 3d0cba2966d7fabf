"""A batch norm layer of linen or nnx as a function, and the program that is compared: two steps and an evaluation.

A layer here is `layer(params, batch_stats, x, mask, train) -> y, new_stats`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tests.flax_cases import Case


def linen_layer(cls, case: Case, axis_name):
    """That class of linen as a function."""
    module = cls(axis_name=axis_name, force_float32_reductions=case.force_float32_reductions, **_fields(case))

    def layer(params, stats, x, mask, train):
        variables = {"params": params, "batch_stats": stats}
        y, new = module.apply(variables, x, use_running_average=not train, mask=mask, mutable=["batch_stats"])
        return y, new["batch_stats"]

    return layer


def nnx_layer(cls, case: Case, axis_name):
    """That class of nnx as a function."""
    module = cls(case.features[0], axis_name=axis_name, rngs=nnx.Rngs(0), **_fields(case))
    graphdef, state = nnx.split(module)

    def layer(params, stats, x, mask, train):
        values = {**params, **stats}
        module = nnx.merge(graphdef, jax.tree.map_with_path(lambda path, _: values[path[0].key], state))
        y = module(x, use_running_average=not train, mask=mask)
        return y, {name: getattr(module, name)[...] for name in stats}

    return layer


def _fields(case: Case) -> dict[str, Any]:
    return {
        "axis": case.axis,
        "momentum": case.momentum,
        "epsilon": case.epsilon,
        "use_bias": case.use_bias,
        "use_scale": case.use_scale,
        "dtype": None if case.out is None else jnp.dtype(case.out),
        "param_dtype": jnp.dtype(case.param_dtype),
        "use_fast_variance": case.use_fast_variance,
    }


def life(layer, params, stats, x, dy, mask, *, scan: bool = False):
    """Two training steps with their gradients, and the evaluation of the first batch with the first statistics.

    Returns:
      'y' [2, ...], 'mean' and 'var' after the second step, the gradients of sum(y dy), 'dx' [2, ...], 'dscale' and
      'dbias' [2, ...]; 'evaluated', and its gradients 'evaluated dx', 'evaluated dscale' and so on.
    """

    def forward_and_backward(stats, x, dy, train):
        y, vjp, new = jax.vjp(lambda params, x: layer(params, stats, x, mask, train), params, x, has_aux=True)
        dparams, dx = vjp(dy.astype(y.dtype))
        return new, {"y": y, "dx": dx, **{f"d{k}": v for k, v in dparams.items()}}

    def step(stats, inputs):
        new, found = forward_and_backward(stats, *inputs, True)
        return jax.tree.map(lambda old, new: new.astype(old.dtype), stats, new), found

    _, evaluation = forward_and_backward(stats, x[0], dy[0], False)
    if scan:
        stats, steps = jax.lax.scan(step, stats, (x, dy))
    else:
        stats, first = step(stats, (x[0], dy[0]))
        stats, second = step(stats, (x[1], dy[1]))
        steps = jax.tree.map(lambda a, b: jnp.stack([a, b]), first, second)
    evaluation = {"evaluated" if k == "y" else f"evaluated {k}": v for k, v in evaluation.items()}
    return {**steps, **stats, **evaluation}
