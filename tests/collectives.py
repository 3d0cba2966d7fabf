"""The collectives of a compiled program, read from its text."""

import math
import re
from typing import NamedTuple

import numpy as np

KINDS = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all|collective-broadcast"
_DEFINITION = re.compile(r"^\s*(?:ROOT )?(%[\w.-]+) = (.*?) ([\w-]+)\((.*?)\)(.*)$", re.MULTILINE)
_SHAPE = re.compile(r"\b[a-z]+\d+\w*\[([\d,]*)\]")
_KIND = re.compile(rf"^({KINDS})(-start)?$")
_MESH = re.compile(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? ?\{(.*?)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_LISTS = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")


class Collective(NamedTuple):
    """One collective of the program."""

    kind: str
    numbers: int
    """numbers that each device gives to it"""
    groups: list[list[int]]
    """devices that it joins; empty where the text names none (all of them, or a permutation)"""


def collectives(compiled) -> list[Collective]:
    """Those of a compiled program (`jax.jit(f).lower(...).compile()`); one that XLA merged from several is one."""
    definitions = _DEFINITION.findall(compiled.as_text())
    numbers = {name: _numbers(shape) for name, shape, *_ in definitions}
    found = []
    for _, _, operation, operands, attributes in definitions:
        kind = _KIND.match(operation)
        if kind:
            moved = sum(numbers[name] for name in re.findall(r"%[\w.-]+", operands))
            found.append(Collective(kind[1], moved, _groups(attributes)))
    return found


def _numbers(shapes: str) -> int:
    return sum(math.prod(_ints(dimensions)) for dimensions in _SHAPE.findall(shapes))


def _ints(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]


def _groups(attributes: str) -> list[list[int]]:
    """The three ways in which XLA writes groups: lists, a transposed range, names of a mesh."""
    if found := _LISTS.search(attributes):
        return [_ints(group) for group in re.findall(r"\{([\d,]*)\}", found[1])]
    if found := _IOTA.search(attributes):
        return _range(found[2], found[3]).reshape(_ints(found[1])).tolist()
    if found := _MESH.search(attributes):
        # 'd':(2)3 is the middle factor of an axis d of size 2 * 3 * the rest; 'd' is all of it.
        joined = {name: (pre, size) for name, pre, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", found[4])}
        shape, inner = [], []
        for name, size in re.findall(r"'(\w+)'=(\d+)", found[1]):
            pre, own = (int(n or 0) for n in joined.get(name, ("", "")))
            factors = [pre, own, int(size) // (pre * own)] if pre else [int(size)]
            inner += [len(shape) + bool(pre)] * (name in joined)
            shape += factors
        devices = _range(found[2] or str(math.prod(shape)), found[3]).reshape(shape)
        order = [i for i in range(len(shape)) if i not in inner] + inner
        return devices.transpose(order).reshape(-1, math.prod(shape[i] for i in inner)).tolist()
    return []


def _range(sizes: str, order: str) -> np.ndarray:
    devices = np.arange(math.prod(_ints(sizes))).reshape(_ints(sizes))
    return devices.transpose(_ints(order)) if order else devices
