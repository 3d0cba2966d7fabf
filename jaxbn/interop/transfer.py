"""Weights of another framework into the variables of a model, and back: all or none."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxbn._tools.checks import check_mapping
from jaxbn.interop.arrays import as_array
from jaxbn.interop.layout import Framework, Layout
from jaxbn.interop.misfits import Misfit, explain
from jaxbn.interop.names import check_names, is_pattern, kind, resolve
from jaxbn.interop.slots import Opened, Slot, may_be_transposed, name_slots, open_model


def take(
    framework: Framework,
    source: Any,
    model: Any,
    names: Mapping[str, str] | None,
    prefix: str,
    layouts: Mapping[str, Layout] | None,
) -> Any:
    """The model with the values of `source`, if all of them fit."""
    check_names(names, prefix, layouts)
    arrays = as_arrays(source, framework.weights)
    opened = open_model(model)

    def attempt(names, prefix):
        names = plain_names(framework, names, prefix, opened, arrays)
        return match(framework, arrays, name_slots(opened, framework, names, prefix, layouts))

    values, misfits = attempt(names, prefix)
    if misfits:
        raise ValueError(explain(framework, misfits, opened, arrays, attempt))
    return opened.build([jnp.asarray(v) if isinstance(v, np.ndarray) else v for v in values])


def as_arrays(source: Any, argument: str) -> dict[str, np.ndarray]:
    """The entries of a checkpoint.

    Raises:
      TypeError: one of them is not an array.
    """
    rule = "map names to arrays or tensors"
    check_mapping(source, argument, rule)
    return {str(name): as_array(str(name), value, f"`{argument}` must {rule}") for name, value in source.items()}


def match(framework: Framework, arrays: Mapping[str, np.ndarray], slots: list[Slot]) -> tuple[list[Any], list[Misfit]]:
    """The values for the slots, and what does not fit."""
    values, misfits = [], []
    for slot in slots:
        value: Any = slot.value
        if not _absent(framework, slot):
            value, misfit = _value(framework, slot, arrays.get(slot.key))
            misfits += [misfit] if misfit else []
        values.append(value)
    taken = {slot.key for slot in slots}
    for key, array in arrays.items():
        if key not in taken and not key.endswith(framework.ignored):
            shape = list(array.shape)
            misfits.append(Misfit("left over", key, None, f"{key!r} {shape}, for which the model has no variable"))
    return values, misfits


def plain_names(
    framework: Framework, names: Mapping[str, str] | None, prefix: str, opened: Opened, arrays: Mapping[str, np.ndarray]
) -> dict[str, str]:
    """`names` without patterns: path of a layer -> its name in `arrays`, without the prefix."""
    names = dict(names or {})
    if not any(is_pattern(*row) for row in names.items()):
        return names
    return resolve(names, opened.kinds, layers(framework, arrays, prefix), framework.separator)


def layers(framework: Framework, arrays: Mapping[str, np.ndarray], prefix: str = "") -> dict[str, str]:
    """The layers of a checkpoint under a prefix, and the kind of each."""
    leaves: dict[str, dict[str, int]] = {}
    for key, array in arrays.items():
        if key.startswith(prefix):
            name, _, leaf = key.removeprefix(prefix).rpartition(framework.separator)
            leaves.setdefault(name, {})[leaf] = array.ndim
    return {name: kind(of_layer, of_layer.__getitem__) for name, of_layer in leaves.items()}


def give(
    framework: Framework, model: Any, names: Mapping[str, str] | None, prefix: str, layouts: Mapping[str, Layout] | None
) -> dict[str, np.ndarray]:
    """The arrays of the model by name in the other framework."""
    check_names(names, prefix, layouts)
    if any(is_pattern(*row) for row in dict(names or {}).items()):
        raise ValueError(
            "`names` must be without patterns where no checkpoint is there to match: "
            f"names=interop.match_names(state_dict, model, names), got {dict(names or {})}."
        )
    exported = {}
    for slot in name_slots(open_model(model), framework, names, prefix, layouts):
        if _absent(framework, slot):
            continue
        if slot.leaf in ("mean", "var") and len(slot.value.shape) > 1:
            raise ValueError(
                f"`model` must have batch norms with statistics [C], got {slot.name} {list(slot.value.shape)}; of "
                "several domains, jaxbn.select_domain(model, domain) takes one."
            )
        if may_be_transposed(slot):
            raise ValueError(f"`model` has {slot.name} {list(slot.value.shape)}, which {_AMBIGUOUS.format(slot.path)}.")
        value = as_array(slot.name, slot.value, "`model` must hold arrays")
        if value.dtype.name == "bfloat16":
            value = value.astype(np.float32)
        value = _convert(framework, slot, value, export=True)
        if value is None:
            raise ValueError(
                f"`layouts[{slot.path!r}]` must fit its layer, got a kernel that does not: {slot.name} "
                f"{list(slot.value.shape)} does not have the layout {slot.layout!r}."
            )
        # A copy: PyTorch wants arrays that it may write to.
        exported[slot.key] = np.array(value, np.int64 if slot.leaf == "count" else None, order="C")
    return exported


_AMBIGUOUS = (
    "may be the kernel of a transposed convolution, which is read from its other end: name the layer in `layouts`, "
    "{!r}: interop.ConvTranspose(), or None if it is a plain one; interop.find_layouts(model, variables, x) does"
)


def _value(framework: Framework, slot: Slot, theirs: np.ndarray | None) -> tuple[Any, Misfit | None]:
    shape = list(slot.value.shape)

    def misfit(what: str, text: str):
        return None, Misfit(what, slot.key, slot.path, text)

    if theirs is None:
        return misfit("missing", f"{slot.key!r}, for {slot.name} {shape}")
    value = _convert(framework, slot, theirs, export=False)
    if value is None or list(value.shape) != shape:
        becomes = "" if value is None or value.shape == theirs.shape else f", here {list(value.shape)}"
        return misfit("of another shape", f"{slot.key!r} {list(theirs.shape)}{becomes}, for {slot.name} {shape}")
    if may_be_transposed(slot):
        return misfit("not clear", f"{slot.key!r} {list(theirs.shape)} {_AMBIGUOUS.format(slot.path)}")
    new = _cast(value, np.dtype(slot.value.dtype))
    if new is None:
        dtype = np.dtype(slot.value.dtype).name
        return misfit("out of range", f"{slot.key!r}, {theirs.dtype.name} beyond what {slot.name}, {dtype}, can hold")
    return new, None


def _cast(value: np.ndarray, dtype: np.dtype) -> np.ndarray | None:
    """The value in a different dtype; None if finite values or imaginary parts would be lost."""
    if np.iscomplexobj(value) and not jnp.issubdtype(dtype, jnp.complexfloating):
        return None
    if jnp.issubdtype(dtype, jnp.integer) and value.dtype != dtype:  # a count is never beyond its largest value
        return np.clip(value.astype(np.int64), jnp.iinfo(dtype).min, jnp.iinfo(dtype).max).astype(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        new = value.astype(dtype)
    is_inexact = jnp.issubdtype(dtype, jnp.inexact) and jnp.issubdtype(value.dtype, jnp.inexact)
    return None if is_inexact and np.any(np.isfinite(value) & ~np.isfinite(new)) else new


def _absent(framework: Framework, slot: Slot) -> bool:
    """Whether the framework has no such variable at all."""
    return slot.leaf == "count" and "count" not in framework.leaves


def _convert(framework: Framework, slot: Slot, value: np.ndarray, export: bool) -> np.ndarray | None:
    """The value in the other layout; None if its shape does not have that layout."""
    if slot.leaf == "count":  # one for all channels there, one for each channel here
        return (
            np.max(value, initial=0)
            if export
            else np.broadcast_to(value, slot.value.shape if value.size == 1 else value.shape)
        )
    if slot.leaf == "negative_slope" and value.size == 1:  # [1] there, [] here
        return value.reshape(1) if export else value.reshape(slot.value.shape)
    if slot.leaf != "kernel":
        return value
    try:
        return framework.kernel(value, slot.layout, export)
    except ValueError:  # its rank or size is not that of the layout
        return None
