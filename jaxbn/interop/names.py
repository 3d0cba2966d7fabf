"""Names of layers in another framework, by patterns: a table pairs them in groups instead of one by one.

A row is `pattern in the model: pattern in the checkpoint`. `*` stands for anything within one part of a name, `**` for
any number of parts. Matches are paired by kind (convolutions with convolutions, batch norms with batch norms) and in
order (2 before 10), the first with the first; both sides must have the same number. Rows are applied from the top, and
what one row has matched is not available to the next.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from jaxbn._tools.checks import check_mapping, check_text

Kinds = Mapping[str, str]
"""name of a layer -> its kind"""

TORCHVISION_RESNET: Mapping[str, str] = MappingProxyType(
    {
        "conv_init": "conv1",
        "bn_init": "bn1",
        "*ResNetBlock_*/Conv_*": "layer*.*.conv*",
        "*ResNetBlock_*/BatchNorm_*": "layer*.*.bn*",
        "*ResNetBlock_*/conv_proj": "layer*.*.downsample.0",
        "*ResNetBlock_*/norm_proj": "layer*.*.downsample.1",
        "Dense_0": "fc",
    }
)
"""ResNets, ResNeXts and wide ResNets of torchvision and timm, for a model named as in Flax's ImageNet example."""
TORCHVISION_MOBILENET_V2: Mapping[str, str] = MappingProxyType(
    {
        "InvertedResidual_*/**": "features.*.conv.**",
        "Conv_*": "features.*.0",
        "BatchNorm_*": "features.*.1",
        "Dense_0": "classifier.1",
    }
)
"""MobileNetV2 of torchvision, for a compact module of a stem, `InvertedResidual_*`, last convolution and `Dense_0`."""
TIMM_MOBILENET_V2: Mapping[str, str] = MappingProxyType(
    {
        "InvertedResidual_0/Conv_0": "blocks.0.0.conv_dw",
        "InvertedResidual_0/Conv_1": "blocks.0.0.conv_pw",
        "InvertedResidual_*/Conv_0": "blocks.*.*.conv_pw",
        "InvertedResidual_*/Conv_1": "blocks.*.*.conv_dw",
        "InvertedResidual_*/Conv_2": "blocks.*.*.conv_pwl",
        "InvertedResidual_*/BatchNorm_*": "blocks.*.*.bn*",
        "Conv_0": "conv_stem",
        "Conv_1": "conv_head",
        "BatchNorm_*": "bn*",
        "Dense_0": "classifier",
    }
)
"""The same network in timm, whose first block has no expansion and different names."""
TABLES = {
    "TORCHVISION_RESNET": TORCHVISION_RESNET,
    "TORCHVISION_MOBILENET_V2": TORCHVISION_MOBILENET_V2,
    "TIMM_MOBILENET_V2": TIMM_MOBILENET_V2,
}


def check_names(names: Any, prefix: Any, layouts: Any = None) -> None:
    """Checks the names, the prefix and the layouts as far as that is possible without a model.

    Raises:
      TypeError: one of them has the wrong type.
    """
    for argument, given, values in (("names", names, str), ("layouts", layouts, object)):
        rule = f"map paths of layers to {argument}"
        check_mapping({} if given is None else given, argument, f"be None or {rule}")
        for row in (given or {}).items():
            if not (isinstance(row[0], str) and isinstance(row[1], values)):
                raise TypeError(f"`{argument}` must {rule}, got {row[0]!r}: {row[1]!r}.")
    check_text(prefix, "prefix")


def resolve(names: Mapping[str, str], ours: Kinds, theirs: Kinds, separator: str) -> dict[str, str]:
    """The names of the layers that the rows match: path -> name in the other framework.

    Args:
      names: the table; a row without `*` is used as it is.
      ours, theirs: the layers of both sides.
      separator: what separates the parts of their names; in ours it is '/'.

    Raises:
      ValueError: a row without `*` names no layer of the model, or one with `*` matches more layers on one side.
    """
    found: dict[str, str] = {}
    for path, name in names.items():
        if not is_pattern(path, name):
            if path not in ours:
                raise ValueError(f"`names` must speak of layers of the model, {_some(ours)}, got {path!r}.")
            found[path] = name
            continue
        mine = _matching(path, "/", ours, found)
        other = _matching(name, separator, theirs, found.values())
        for kind in sorted({ours[p] for p in mine} | {theirs[n] for n in other}):
            a, b = [p for p in mine if ours[p] == kind], [n for n in other if theirs[n] == kind]
            if len(a) != len(b):
                raise ValueError(
                    f"A row of `names` must match as many layers of a kind on both sides: {path!r} matches {len(a)} "
                    f"({kind}) of the model, {_some(a)}, and {name!r} {len(b)} of the checkpoint, {_some(b)}."
                )
            found.update(zip(a, b, strict=True))
    return found


def by_shape(ours: Mapping[str, object], theirs: Mapping[str, object]) -> dict[str, str]:
    """A guess: pairs each of our layers with the first of theirs, in order, that has its kind and shapes."""
    left, guess = sorted(theirs, key=in_order), {}
    for path in sorted(ours, key=in_order):
        name = next((n for n in left if theirs[n] == ours[path]), None)
        if name is not None:
            left.remove(name)
            guess[path] = name
    return guess


def is_pattern(*texts: str) -> bool:
    """Whether one of them has a `*`."""
    return any("*" in text for text in texts)


def in_order(name: str) -> list[tuple[int, int, str]]:
    """The sort key by which 'block2' comes before 'block10'."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)|[/._]", name) if part]


def kind(leaves: Iterable[str], rank: Callable[[str], int]) -> str:
    """The kind of a layer, judged by its variables (in any framework) and how many axes they have."""
    leaves = set(leaves)
    if leaves & {"mean", "running_mean", "moving_mean"}:
        return "batch norm"
    kernel = next(iter(leaves & {"kernel", "weight", "embedding", "embeddings"}), None)
    ranks = {None: "other", 1: "other", 2: "dense"}
    return ranks.get(None if kernel is None else rank(kernel), "convolution")


def _matching(pattern: str, separator: str, names: Iterable[str], taken) -> list[str]:
    one = f"[^{re.escape(separator)}]*"
    regex = re.escape(pattern).replace(r"\*\*", ".*").replace(r"\*", one)
    return sorted((n for n in names if n not in taken and re.fullmatch(regex, n)), key=in_order)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return f"{names[:4]}" + (f" and {len(names) - 4} more" if len(names) > 4 else "")
