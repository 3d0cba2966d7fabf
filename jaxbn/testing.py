"""For your own tests, on one CPU: is a training step of my model the same however its batch is split?

The devices are lanes of `jax.vmap` here: its collectives are those that `pmap` and `shard_map` would have.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbn._core import checks
from jaxbn._models.functions import as_function
from jaxbn._models.marks import Output, outputs_of_layers
from jaxbn._models.tree import leaf_name
from jaxbn._tools.checks import check_function, check_mapping, check_text

DESCRIPTIONS = {
    "layers": "the output of {}",
    "output": "the output {}",
    "state": "the state {}",
    "gradients": "the gradient of {}",
}
"""What is compared, in this order, and what the message calls it."""


def assert_split_invariant(
    model: Any,
    *inputs: Any,
    variables: Mapping[str, Any] | None = None,
    axis_name: str = "batch",
    parts: int = 2,
    loss: Callable[..., jax.Array] | None = None,
    tolerance: float = 1e-4,
    **options: Any,
) -> None:
    """Runs a training step with the batch whole and with it split over an axis, and compares all results.

    They are compared in this order, so that the earliest difference is the one reported: the outputs of the layers in
    the order of their calls, the output of the model, the statistics of each part and all other state that the step
    writes, and the gradients of the parameters and of the inputs.

    Args:
      model: a `flax.linen` or `flax.nnx` module, in training mode, whose batch norm has `axis_name`. It must not draw
        random numbers: each part would draw its own.
      *inputs: [N, ...] each, passed to the model; N is the size of the batch. Anything else (a flag, None, a
        number) is passed unchanged. Inputs that hold only 0 and 1 (masks, paddings) are not differentiated.
      variables: of a linen model, as its `init` returns them; None initializes them with key 0.
      axis_name: that of the model's batch norm.
      parts: number of parts into which the batch is split, a divisor of N, at least 2.
      loss: a function of `(output, *inputs)` that returns [] float, the mean over the examples it is given. None is a
        fixed random projection of the output.
      tolerance: largest difference allowed, as a fraction of the largest value of an array (or of a hundredth of
        the largest of its kind, if that is more: a gradient that is zero except for rounding has no scale of its own).
      **options: keyword arguments of the model's call, such as `train=True`.

    Raises:
      AssertionError: something differs; the message names the first layer in which it does, and by how much.
      ValueError: the batch cannot be split into `parts`.
      TypeError: `model` is not a linen or nnx module.

    Example:
      >>> import jax, jax.numpy as jnp, jaxbn.testing
      >>> from jaxbn.linen import BatchNorm
      >>> x = jax.random.normal(jax.random.key(0), (8, 3))
      >>> jaxbn.testing.assert_split_invariant(BatchNorm(False, axis_name="batch"), x)
      >>> jaxbn.testing.assert_split_invariant(BatchNorm(False), x)  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      AssertionError: the output of BatchNorm is the first that changes when the batch is split into 2: by ...
    """
    check_text(axis_name, "axis_name")
    checks.check_integer(parts, "parts", 2)
    if loss is not None:
        check_function(loss, "loss", ("output", *(f"input {i}" for i in range(len(inputs)))))
    if not checks.check_number(tolerance, "tolerance") >= 0:
        raise ValueError(f"`tolerance` must not be negative, got {tolerance!r}.")
    if variables is not None:
        check_mapping(variables, "variables", "be None or variables of linen, {'params': ..., 'batch_stats': ...}")
    leaves, treedef = jax.tree.flatten(inputs)
    arrays = {i: jnp.asarray(v) for i, v in enumerate(leaves) if np.ndim(v) > 0}
    sizes = {v.shape[0] for v in arrays.values()}
    if len(sizes) != 1 or sizes.pop() % parts:
        raise ValueError(
            "`parts` must divide the batch, the first axis of all inputs, got "
            f"{parts} and {[checks.describe(v) for v in arrays.values()]}."
        )

    def as_inputs(arrays):
        return jax.tree.unflatten(treedef, [arrays.get(i, v) for i, v in enumerate(leaves)])

    network = as_function(model, variables, as_inputs(arrays), options)
    paths = [leaf_name(path) for path, _ in jax.tree.leaves_with_path(inputs)]
    differentiated = {i for i, v in arrays.items() if _has_gradient(v)}
    outputs: list[Output] = []

    def step(count):
        """Everything that a step with the batch in `count` parts computes, with a leading axis for the parts."""

        def of_part(params, arrays):
            inputs = as_inputs(arrays)
            output, state = network.apply(params, *inputs)
            value = _projection(output) if loss is None else loss(output, *inputs)
            return value, output, state

        def outputs_of_part(arrays):
            outputs[:] = outputs_of_layers(
                lambda params, arrays: network.apply_marked(params, *as_inputs(arrays)), network.params, arrays
            )
            return [output.value for output in outputs]

        def split(arrays):
            return {i: v.reshape(count, -1, *v.shape[1:]) for i, v in arrays.items()}

        def mean_loss(params, floats):
            over_parts = jax.vmap(of_part, in_axes=(None, 0), axis_name=axis_name)
            value, output, state = over_parts(params, split(arrays | floats))
            return value.mean(), {"output": output, "state": state}

        gradients, found = jax.grad(mean_loss, argnums=(0, 1), has_aux=True)(
            network.params, {i: arrays[i] for i in differentiated}
        )
        of_params = {leaf_name(path): v for path, v in jax.tree.leaves_with_path(gradients[0])}
        of_inputs = {f"input {paths[i]}": v for i, v in gradients[1].items()}
        of_layers = jax.vmap(outputs_of_part, axis_name=axis_name)(split(arrays))
        return found | {"layers": of_layers, "gradients": of_params | of_inputs}

    whole, split = (jax.device_get(jax.jit(step, static_argnums=0)(count)) for count in (1, parts))
    names = _names(outputs)
    for tree in whole, split:
        tree["layers"] = {name: v for name, v in zip(names, tree["layers"], strict=True) if v is not None}
    layers = list(dict.fromkeys(output.layer for output in outputs))
    for kind, description in DESCRIPTIONS.items():
        difference = _first_difference(kind, whole[kind], split[kind], layers, tolerance)
        if difference is not None:
            name, error, size = difference
            raise AssertionError(
                f"{description.format(name)} is the first that changes when the batch is split into {parts}: by "
                f"{error:.2g}, where its values are up to {size:.2g}. Has each batch norm up to there "
                f"axis_name={axis_name!r}, and does no other layer look at the batch?"
                + _unseen(names[: names.index(name)] if name in names else [], whole["layers"])
            )


def _projection(output) -> jax.Array:
    """[] float, a mean over examples. Batch norm would cancel the gradient of a plain mean, or of a mean of squares."""
    terms = [jnp.sin(2 * p.astype(jnp.float32) + 1) for v in jax.tree.leaves(output) for p in (v.real, v.imag)]
    return sum((t.mean() for t in terms), jnp.zeros(()))


def _has_gradient(v: jax.Array) -> bool:
    """Whether it is a float array, but no mask or padding: one of zeros and ones is not a quantity that varies."""
    return jnp.issubdtype(v.dtype, jnp.inexact) and not np.isin(np.asarray(v), (0, 1)).all()


def _names(outputs: list[Output]) -> list[str]:
    """The layer and the number of its call: 'bn', 'bn, call 2', or 'bn, step 3' of a scan."""
    names, times = [], Counter()
    for output in outputs:
        name = "/".join(filter(None, (output.layer, output.leaf))) + output.step
        times[name] += 1
        names.append(f"{name}, call {times[name]}" if times[name] > 1 else name)
    return names


def _first_difference(kind: str, whole, split, layers: list[str], tolerance: float):
    """(name, error, size) of the first array that differs, in the order of the layers; None if none does."""
    whole, split = _by_name(whole), _by_name(split)
    largest = max((np.abs(v).max(initial=0) for v in whole.values()), default=0)

    def position(name):
        return next((i for i, layer in enumerate(layers) if f"{name}/".startswith(f"{layer}/")), len(layers))

    # The outputs of layers are already in the order in which they ran.
    for name in whole if kind == "layers" else sorted(whole, key=position):
        a, b = whole[name], split[name]
        if kind in ("layers", "output"):
            a, b = a[0], _joined(a[0], b)
        if b is None:
            continue
        size = max(np.abs(a).max(initial=0), largest / 100)
        error = np.abs(a - b).max(initial=0)
        # `not <=`, because a NaN is a difference too, unless both have it.
        if not (error <= tolerance * size or np.array_equal(np.broadcast_to(a, b.shape), b, equal_nan=True)):
            return name, error, size
    return None


def _joined(whole: np.ndarray, parts: np.ndarray) -> np.ndarray | None:
    """The parts [parts, ...] as one array like `whole`; None for an inner result without an axis of examples."""
    if whole.ndim == 0:
        return parts.mean(0)
    longer = [a for a, (m, n) in enumerate(zip(whole.shape, parts.shape[1:], strict=True)) if m != n]
    if len(longer) != 1:
        return None
    joined = np.concatenate(list(parts), longer[0])
    return joined if joined.shape == whole.shape else None


def _unseen(before: list[str], seen) -> str:
    """A remark on the layers just before it that ran inside a transformation whose program is not read."""
    unseen = []
    while before and before[-1] not in seen:
        unseen.insert(0, before.pop())
    return f" It may be one before it, inside a cond, while or shard_map: {', '.join(unseen)}." if unseen else ""


def _by_name(tree) -> dict[str, np.ndarray]:
    leaves = {leaf_name(path): np.asarray(v) for path, v in jax.tree.leaves_with_path(tree)}
    if isinstance(tree, dict) and set(leaves) <= set(tree):
        leaves = {name: leaves[name] for name in tree if name in leaves}  # in the dict's own order; JAX sorts the keys
    return {k: v.astype(np.promote_types(v.dtype, np.float32)) for k, v in leaves.items()}
