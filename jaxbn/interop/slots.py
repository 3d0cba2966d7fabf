"""The variables of a model one by one, with the names that another framework gives them."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from jaxbn._models.find import Path, as_variables, is_nnx, plain_path
from jaxbn.interop.layout import ConvTranspose, Framework, Layout
from jaxbn.interop.names import kind


class Slot(NamedTuple):
    """One variable of a model."""

    name: str
    """'params/conv1/kernel'"""
    path: str
    """the path of its layer, 'conv1'"""
    leaf: str
    """'kernel'"""
    key: str
    """its name in the other framework, 'conv1.weight'"""
    layout: Layout
    told: bool
    """whether the layout is known, rather than assumed to be that of most layers"""
    value: Any
    """the array, or its shape and dtype"""


class Opened(NamedTuple):
    """A model as a list of variables."""

    variables: list[tuple[str, Path, str, Any]]
    """a (collection, path of the layer, leaf, value) for each"""
    kinds: dict[str, str]
    """path of a layer -> its kind"""
    layouts: dict[str, Layout]
    """the layouts of the layers whose class is known"""
    build: Callable[[list[Any]], Any]
    """makes a model of the same kind from as many values"""


def open_model(model: Any) -> Opened:
    """The variables of a model in the collections 'params' and 'batch_stats'.

    Raises:
      TypeError: it is neither variables nor an nnx module.
    """
    is_plain = isinstance(model, Mapping) and "params" in model and not is_nnx(model)
    variables = model if is_plain else as_variables(model)
    collections = {k: variables[k] for k in ("params", "batch_stats") if k in variables}
    keyed, structure = jax.tree_util.tree_flatten_with_path(collections)
    paths = [plain_path(keys) for keys, _ in keyed]
    # A box of Flax (nn.Partitioned) adds one more step to the path, with the name `value`.
    paths = [p[:-1] if hasattr(keys[-1], "name") else p for p, (keys, _) in zip(paths, keyed, strict=True)]
    for path, (_, value) in zip(paths, keyed, strict=True):
        if len(path) < 2 or not (hasattr(value, "shape") and hasattr(value, "dtype")):
            raise TypeError(
                "`model` must be variables, {'params': ..., 'batch_stats': ...} of named arrays, or an nnx module, got "
                f"{type(value).__name__} at {_join(path)}."
            )
    layers: dict[str, dict[str, int]] = {}
    for (_, *path, leaf), (_, value) in zip(paths, keyed, strict=True):
        layers.setdefault(_join(path), {})[str(leaf)] = len(value.shape)

    def build(values):
        new = jax.tree.unflatten(structure, values)
        if is_nnx(model):
            return _rebuilt_nnx(model, new)
        same: Any = type(model)
        return same({**model, **new})

    return Opened(
        [(str(c), tuple(path), str(leaf), v) for (c, *path, leaf), (_, v) in zip(paths, keyed, strict=True)],
        {path: kind(leaves, leaves.__getitem__) for path, leaves in layers.items()},
        _known_layouts(model),
        build,
    )


def name_slots(
    opened: Opened,
    framework: Framework,
    names: Mapping[str, str] | None,
    prefix: str,
    layouts: Mapping[str, Layout] | None,
) -> list[Slot]:
    """The variables of a model with their names in the other framework.

    Raises:
      TypeError: one of the `layouts` is not a layout.
      ValueError: `names` or `layouts` has a layer that the model does not have, or two variables get the same name.
    """
    names, given = dict(names or {}), dict(layouts or {})
    for what, mapping in (("names", names), ("layouts", given)):
        unknown = sorted(set(mapping) - set(opened.kinds))
        if unknown:
            raise ValueError(f"`{what}` must speak of layers of the model, {sorted(opened.kinds)}, got {unknown}.")
    known = {**opened.layouts, **given}
    slots, owner = [], {}
    for collection, parts, leaf, value in opened.variables:
        path, layout = _join(parts), known.get(_join(parts))
        if not isinstance(layout, Layout):
            raise TypeError(f"`layouts[{path!r}]` must be ConvTranspose, AfterFlatten or Depthwise, got {layout!r}.")
        is_norm = opened.kinds[path] in ("batch norm", "other")
        theirs = (framework.leaves | (framework.norm_leaves if is_norm else {})).get(leaf, leaf)
        outer = names.get(path, path.replace("/", framework.separator))
        key = prefix + (f"{outer}{framework.separator}{theirs}" if outer else theirs)
        slot = Slot(_join((collection, *parts, leaf)), path, leaf, key, layout, path in known, value)
        if key in owner:
            raise ValueError(
                "`names` must give each layer a name of its own, got one twice: "
                f"{owner[key]} and {slot.name} have one name in {framework.name}, {key!r}."
            )
        owner[key] = slot.name
        slots.append(slot)
    return slots


def may_be_transposed(slot: Slot) -> bool:
    """Whether a kernel may belong to a transposed convolution that was not declared: its shape fits both ways.

    Plain variables do not say; names like Flax's, and windows of an even size, suggest it.
    """
    shape = slot.value.shape
    if slot.leaf != "kernel" or slot.told or len(shape) < 3 or shape[-1] != shape[-2]:
        return False
    window = shape[:-2]
    words = re.search(r"transpose|deconv", f"{slot.path} {slot.key}", re.IGNORECASE)
    last = re.search(r"(^|[/._])(up|tconv|convt|upconv|upsample)[^/.]*$", slot.path, re.IGNORECASE)
    return bool(words or last) or all(n % 2 == 0 for n in window)


def _join(path) -> str:
    return "/".join(map(str, path))


def _known_layouts(model) -> dict[str, Layout]:
    """The layouts of the convolutions of an nnx module; in plain variables they all look alike."""
    if not is_nnx(model):
        return {}
    from flax import nnx

    if not isinstance(model, nnx.Module):
        return {}
    modules = {_join(path): module for path, module in nnx.iter_modules(model)}
    plain: dict[str, Layout] = {path: None for path, m in modules.items() if isinstance(m, nnx.Conv)}
    return plain | {
        path: ConvTranspose(m.transpose_kernel) for path, m in modules.items() if isinstance(m, nnx.ConvTranspose)
    }


def _rebuilt_nnx(model, new):
    from flax import nnx

    copy = nnx.clone(model)
    for collection, tree in new.items():
        state = nnx.state(copy, {"params": nnx.Param, "batch_stats": nnx.BatchStat}[collection])
        nnx.replace_by_pure_dict(state, tree)
        nnx.update(copy, state)
    return copy
