"""For your own tests, on one CPU: is a training step of my model the same however its batch is split?

The devices are lanes of `jax.vmap` here: its collectives are those that `pmap` and `shard_map` would have.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbn._core import checks
from jaxbn._models.functions import as_function, name_of

DESCRIPTIONS = {
    "layers": "the output of {}",
    "output": "the output {}",
    "state": "the state {}",
    "gradients": "the gradient of {}",
}
"""What is compared, in this order, and how it is called."""


def assert_split_invariant(
    model: Any,
    *inputs: jax.Array,
    variables: Mapping[str, Any] | None = None,
    axis_name: str = "batch",
    parts: int = 2,
    loss: Callable[..., jax.Array] | None = None,
    tolerance: float = 1e-4,
    **options: Any,
) -> None:
    """Runs a training step with the batch in one piece, and split over an axis, and compares all that comes out.

    In this order, so that the first difference is named first: the outputs of the layers as they are called, the
    output, the statistics (of each part) and all other state that the step writes, the gradients of the parameters and
    of the inputs.

    Args:
      model: a `flax.linen` or `flax.nnx` module, in training mode, whose batch norm has `axis_name`. It must not draw
        random numbers: each part would draw its own.
      *inputs: [N, ...] each, passed to the model; N is the size of the batch.
      variables: of a linen model, as its `init` returns them; initialized with key 0 where None.
      axis_name: that of the model's batch norm.
      parts: into how many the batch is split, a divisor of N, at least 2.
      loss: of `(output, *inputs)`, [] float, the mean over the examples it is given; a fixed random projection of the
        output where None.
      tolerance: largest difference allowed, as a fraction of the largest value of an array (or of a hundredth of
        the largest of its kind, where that is more: a gradient that is zero but for rounding has no size).
      **options: keyword arguments of the model's call, `train=True` say.

    Raises:
      AssertionError: something differs; the message names the first layer in which it does, and by how much.
      ValueError: the batch cannot be split into `parts`.
      TypeError: `model` is no module of linen or nnx.

    Example:
      >>> import jax, jax.numpy as jnp, jaxbn.testing
      >>> from jaxbn.linen import BatchNorm
      >>> x = jax.random.normal(jax.random.key(0), (8, 3))
      >>> jaxbn.testing.assert_split_invariant(BatchNorm(False, axis_name="batch"), x)
      >>> jaxbn.testing.assert_split_invariant(BatchNorm(False), x)  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      AssertionError: the output of BatchNorm is the first that changes when the batch is split into 2: by ...
    """
    leaves, treedef = jax.tree.flatten(inputs)
    leaves = [jnp.asarray(v) for v in leaves]
    sizes = {v.shape[:1] for v in leaves}
    if len(sizes) != 1 or not all(sizes) or parts < 2 or leaves[0].shape[0] % parts:
        raise ValueError(
            "`parts` must be at least 2 and divide the batch, the first axis of all inputs, got "
            f"{parts} and {[checks.describe(v) for v in leaves]}."
        )
    network = as_function(model, variables, inputs, options)

    def step(count):
        """All that a step with the batch in `count` parts gives, put together again."""

        def of_part(params, *leaves):
            output, state, layers = network.apply(params, *jax.tree.unflatten(treedef, leaves))
            value = _projection(output) if loss is None else loss(output, *jax.tree.unflatten(treedef, leaves))
            return value, output, state, layers

        def mean_loss(params, floats):
            given = iter(floats)
            whole = [next(given) if _is_float(v) else v for v in leaves]
            split = [v.reshape(count, -1, *v.shape[1:]) for v in whole]
            over_parts = jax.vmap(of_part, in_axes=(None, *[0] * len(split)), axis_name=axis_name)
            value, output, state, layers = over_parts(params, *split)
            join = functools.partial(jax.tree.map, lambda v: v.reshape(-1, *v.shape[2:]) if v.ndim > 1 else v.mean(0))
            return value.mean(), {"layers": join(layers), "output": join(output), "state": state}

        gradients, found = jax.grad(mean_loss, argnums=(0, 1), has_aux=True)(
            network.params, [v for v in leaves if _is_float(v)]
        )
        of_params = {name_of(path): v for path, v in jax.tree.leaves_with_path(gradients[0])}
        return found | {"gradients": of_params | {f"input {i}": v for i, v in enumerate(gradients[1])}}

    whole, split = (jax.device_get(jax.jit(step, static_argnums=0)(count)) for count in (1, parts))
    for kind, description in DESCRIPTIONS.items():
        difference = _first_difference(whole[kind], split[kind], network.order, tolerance)
        if difference is not None:
            name, error, size = difference
            raise AssertionError(
                f"{description.format(name)} is the first that changes when the batch is split into {parts}: by "
                f"{error:.2g}, where its values are up to {size:.2g}. Has each batch norm up to there "
                f"axis_name={axis_name!r}, and does no other layer look at the batch?"
                + _unseen(name, network.order, whole["layers"])
            )


def _projection(output) -> jax.Array:
    """[] float, a mean over examples. Batch norm would cancel the gradient of a plain mean, and of one of squares."""
    terms = [jnp.sin(2 * p.astype(jnp.float32) + 1) for v in jax.tree.leaves(output) for p in (v.real, v.imag)]
    return sum((t.mean() for t in terms), jnp.zeros(()))


def _is_float(v) -> bool:
    return jnp.issubdtype(v.dtype, jnp.inexact)


def _first_difference(whole, split, order: list[str], tolerance: float):
    """(name, error, size) of the first array that differs, in the order of the layers; None where none does."""
    whole, split = _by_name(whole), _by_name(split)
    largest = max((np.abs(v).max(initial=0) for v in whole.values()), default=0)

    def position(name):
        return next((i for i, layer in enumerate(order) if f"{name}/".startswith(f"{layer}/")), len(order))

    for name in sorted(whole, key=position):
        a, b = whole[name], split[name]
        if name in order and a.shape != b.shape:
            continue  # an inner result without the axis of the examples
        size = max(np.abs(a).max(initial=0), largest / 100)
        error = np.abs(a - b).max(initial=0)
        # `not <=`, because a NaN is a difference too; but not where both have it.
        if not (error <= tolerance * size or np.array_equal(np.broadcast_to(a, b.shape), b, equal_nan=True)):
            return name, error, size
    return None


def _unseen(name: str, order: list[str], outputs) -> str:
    """A remark on the layers right before this one that ran inside a transformation and kept their outputs there."""
    before = order[: order.index(name)] if name in order else []
    unseen = []
    while before and before[-1] not in outputs:
        unseen.insert(0, before.pop())
    return f" It may be one before it, inside a jax.checkpoint or scan: {', '.join(unseen)}." if unseen else ""


def _by_name(tree) -> dict[str, np.ndarray]:
    leaves = {name_of(path): np.asarray(v) for path, v in jax.tree.leaves_with_path(tree)}
    return {k: v.astype(np.promote_types(v.dtype, np.float32)) for k, v in leaves.items()}
