"""The variables of a model one by one, with the names that another framework gives them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxbn._models.find import as_variables, is_nnx, plain_path
from jaxbn.interop.layout import ConvTranspose, Framework, Layout


class Slot(NamedTuple):
    """One variable of a model."""

    name: str
    """'params/conv1/kernel'"""
    path: str
    """of its layer: 'conv1'"""
    leaf: str
    """'kernel'"""
    key: str
    """its name in the other framework, 'conv1.weight'"""
    layout: Layout
    value: Any
    """array, or its shape and dtype"""


def open_model(
    model, framework: Framework, names, prefix: str, layouts
) -> tuple[list[Slot], Callable[[list[Any]], Any]]:
    """The variables of a model, and what makes a model of the same kind of as many values.

    Raises:
      TypeError: it is neither variables nor an nnx module, or a layout is none.
      ValueError: `names` or `layouts` speak of a layer that the model does not have; or two variables get one name.
    """
    variables = as_variables(model)
    keyed, structure = jax.tree_util.tree_flatten_with_path({k: variables[k] for k in _collections(variables)})
    paths = [plain_path(keys) for keys, _ in keyed]
    # A box of Flax (nn.Partitioned) is one more step, under the name `value`.
    paths = [p[:-1] if hasattr(keys[-1], "name") else p for p, (keys, _) in zip(paths, keyed, strict=True)]
    layers: dict[str, set[str]] = {}
    for _, *path, leaf in paths:
        layers.setdefault(_join(path), set()).add(str(leaf))
    layouts = {**_transposed(model), **dict(layouts or {})}
    _check_layers("names", names, layers)
    _check_layers("layouts", layouts, layers)
    slots = []
    for (collection, *path, leaf), (_, value) in zip(paths, keyed, strict=True):
        layer = _join(path)
        layout = layouts.get(layer)
        if not isinstance(layout, Layout):
            raise TypeError(f"`layouts[{layer!r}]` must be ConvTranspose, AfterFlatten or Depthwise, got {layout!r}.")
        norm = {} if layers[layer] & {"kernel", "embedding"} else framework.norm_leaves
        theirs = (framework.leaves | norm).get(str(leaf), str(leaf))
        outer = (names or {}).get(layer, layer.replace("/", framework.separator))
        key = prefix + (f"{outer}{framework.separator}{theirs}" if outer else theirs)
        slots.append(Slot(_join((collection, *path, leaf)), layer, str(leaf), key, layout, value))
    _check_keys(slots, framework)

    def build(values):
        new = jax.tree.unflatten(structure, values)
        if not is_nnx(model):
            return type(model)({**model, **new})
        from flax import nnx

        copy = nnx.clone(model)
        for kind, tree in new.items():
            state = nnx.state(copy, {"params": nnx.Param, "batch_stats": nnx.BatchStat}[kind])
            nnx.replace_by_pure_dict(state, tree)
            nnx.update(copy, state)
        return copy

    return slots, build


def _collections(variables) -> list[str]:
    return [k for k in ("params", "batch_stats") if k in variables]


def _join(path) -> str:
    return "/".join(map(str, path))


def _transposed(model) -> dict[str, Layout]:
    """The transposed convolutions of an nnx module; those of plain variables look like any other."""
    if not is_nnx(model):
        return {}
    from flax import nnx

    return {
        _join(path): ConvTranspose(module.transpose_kernel)
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.ConvTranspose)
    }


def _check_layers(name: str, mapping, layers) -> None:
    unknown = sorted(set(mapping or {}) - set(layers))
    if unknown:
        raise ValueError(f"`{name}` must speak of layers of the model, {sorted(layers)}, got {unknown}.")


def _check_keys(slots: list[Slot], framework: Framework) -> None:
    owner: dict[str, str] = {}
    for slot in slots:
        if slot.key in owner:
            raise ValueError(f"{owner[slot.key]} and {slot.name} have one name in {framework.name}, {slot.key!r}.")
        owner[slot.key] = slot.name
