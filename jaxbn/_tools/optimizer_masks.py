"""Which parameters are the scales and biases of batch norms, for optimizers that treat these differently."""

import sys
from typing import Any

import jax

from jaxbn._models.find import find_batch_norms, is_nnx
from jaxbn._models.tree import plain_path


def batch_norm_mask(model: Any) -> Any:
    """A tree like the parameters: True at every scale and bias of a batch norm, False elsewhere.

    For optax: to exempt them from weight decay, to freeze them, or to train nothing else. LayerNorm and GroupNorm have
    scales and biases with the same names; those are False, because only a batch norm has running statistics.

    Three choices about a batch norm are independent of each other:
      - which statistics normalize: `use_running_average`, in the call or on the module;
      - whether the running statistics are updated: keep the new `batch_stats` or the old ones. `momentum=1.0` keeps
        them too, and so does `use_running_average=True`, in Flax's modules and ours;
      - whether scale and bias are trained: this mask, with `optax.multi_transform` or `optax.masked`.

    Args:
      model: variables {'params': ..., 'batch_stats': ...}, an nnx module or its `nnx.State`.

    Returns:
      A tree of bools like `variables['params']`. For nnx an `nnx.State` like `nnx.state(model, nnx.Param)`, with one
      bool for each variable, as `nnx.Optimizer(model, optimizer, wrt=nnx.Param)` takes it.

    Raises:
      ValueError: the model has no batch norm.
      TypeError: `model` is none of the above.

    Example:
      No weight decay on scales and biases of batch norms:

      >>> import jax, jax.numpy as jnp, jaxbn, optax
      >>> params, batch_stats = jaxbn.init(2)
      >>> variables = {"params": {"bn": params, "kernel": jnp.ones(2)}, "batch_stats": {"bn": batch_stats}}
      >>> mask = jaxbn.batch_norm_mask(variables)
      >>> mask
      {'bn': {'bias': True, 'scale': True}, 'kernel': False}
      >>> optimizer = optax.adamw(1e-3, mask=jax.tree.map(lambda is_batch_norm: not is_batch_norm, mask))

      Frozen, everything else trained:

      >>> labels = jax.tree.map(lambda is_batch_norm: "frozen" if is_batch_norm else "trained", mask)
      >>> optimizer = optax.multi_transform({"trained": optax.sgd(0.1), "frozen": optax.set_to_zero()}, labels)

      The same with linen and with nnx:

      >>> import jaxbn.linen, jaxbn.nnx
      >>> from flax import nnx
      >>> variables = jaxbn.linen.BatchNorm(use_running_average=True).init(jax.random.key(0), jnp.ones((1, 2)))
      >>> jaxbn.batch_norm_mask(variables)
      {'bias': True, 'scale': True}
      >>> model = nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), jaxbn.nnx.BatchNorm(2, rngs=nnx.Rngs(0)))
      >>> labels = jax.tree.map(lambda b: "frozen" if b else "trained", jaxbn.batch_norm_mask(model))
      >>> optimizer = optax.multi_transform({"trained": optax.sgd(0.1), "frozen": optax.set_to_zero()}, labels)
      >>> optimizer = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
    """
    layers = set(find_batch_norms(model))

    def is_of_batch_norm(keys, _):
        path = plain_path(keys)
        return any(path[:i] in layers and path[i] in ("scale", "bias") for i in range(len(path)))

    return jax.tree_util.tree_map_with_path(is_of_batch_norm, _params(model), is_leaf=_is_nnx_variable)


def _params(model: Any) -> Any:
    if not is_nnx(model):
        return model.get("params", {})
    from flax import nnx

    return nnx.filter_state(model, nnx.Param) if isinstance(model, nnx.State) else nnx.state(model, nnx.Param)


def _is_nnx_variable(node: Any) -> bool:
    # A bool for the whole variable fits both what optax starts from and what nnx.Optimizer updates: they differ inside.
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(node, nnx.Variable)
