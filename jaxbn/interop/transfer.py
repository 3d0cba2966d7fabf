"""Weights of another framework into the variables of a model, and out of them: all or none."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np

from jaxbn.interop.arrays import as_array
from jaxbn.interop.layout import Framework
from jaxbn.interop.slots import Slot


def take(framework: Framework, source, slots: list[Slot], build: Callable):
    """`build` of the values of `source`, where all of them fit."""
    if not isinstance(source, Mapping):
        raise TypeError(f"A checkpoint must map names to arrays or tensors, got {type(source).__name__}.")
    arrays = {
        key: as_array(key, value, "A checkpoint must map names to arrays or tensors") for key, value in source.items()
    }
    values, problems = [], []
    for slot in slots:
        if _absent(framework, slot):
            values.append(slot.value)
        elif slot.key not in arrays:
            problems.append(f"missing: {slot.key!r}, for {slot.name} {list(slot.value.shape)}")
        else:
            theirs = arrays[slot.key]
            value = _convert(framework, slot, theirs, export=False)
            if value is None or value.shape != tuple(slot.value.shape):
                becomes = "" if value is None or value.shape == theirs.shape else f", here {list(value.shape)}"
                problems.append(
                    f"of another shape: {slot.key!r} {list(theirs.shape)}{becomes}, for {slot.name} "
                    f"{list(slot.value.shape)}"
                )
            else:
                values.append(jnp.asarray(value.astype(slot.value.dtype)))
    taken = {slot.key for slot in slots}
    surplus = {k: v for k, v in arrays.items() if k not in taken and not k.endswith(framework.ignored)}
    problems += [f"left over: {k!r} {list(v.shape)}, for which the model has no variable" for k, v in surplus.items()]
    if problems:
        lines = "\n  ".join(problems)
        raise ValueError(f"The weights of {framework.name} do not fit the model; nothing was imported:\n  {lines}")
    return build(values)


def give(framework: Framework, slots: list[Slot]) -> dict[str, np.ndarray]:
    """The arrays of the model by their names in the other framework."""
    exported = {}
    for slot in slots:
        if _absent(framework, slot):
            continue
        value = np.asarray(slot.value)
        if value.dtype.name == "bfloat16":
            value = value.astype(np.float32)
        value = _convert(framework, slot, value, export=True)
        if value is None:
            raise ValueError(f"{slot.name} {list(slot.value.shape)} does not have the layout {slot.layout!r}.")
        # A copy: PyTorch wants arrays that it may write to.
        exported[slot.key] = np.array(value, np.int64 if slot.leaf == "count" else None, order="C")
    return exported


def _absent(framework: Framework, slot: Slot) -> bool:
    """Whether the framework has no such variable at all."""
    return slot.leaf == "count" and "count" not in framework.leaves


def _convert(framework: Framework, slot: Slot, value: np.ndarray, export: bool) -> np.ndarray | None:
    """The value in the other layout; None where its shape has no such layout."""
    if slot.leaf != "kernel":
        return value
    try:
        return framework.kernel(value, slot.layout, export)
    except ValueError:  # another rank or size than the layout has
        return None
