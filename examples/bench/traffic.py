"""How often a compiled program goes through memory: the large arrays that each of its kernels reads and writes.

It is read from the text of the program, so it is exact and reproducible, and needs no device. It is what a program
requests, not what caches make of that.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4,
    "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16,
}  # fmt: skip
_ARRAY = re.compile(rf"\b({'|'.join(BYTES)})\[([\d,]*)\](\{{[^{{}}]*\}})?")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
_SLICES = {"slice", "dynamic-slice", "gather"}
_VIEWS = {"bitcast", "reshape", "convert", "copy", "transpose"}
_PRODUCTS = {"dot", "convolution"}
_COLLECTIVE = re.compile(
    r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast)(-start)?"
)


class Kernel(NamedTuple):
    """One kernel, with the sizes in bytes of the large arrays that it goes through."""

    name: str
    reads: list[int]
    writes: list[int]
    is_product: bool
    """whether it multiplies matrices or convolves"""


class Traffic(NamedTuple):
    """What a program does, all kernels together."""

    kernels: int
    reads: int
    """large arrays read"""
    writes: int
    bytes: int
    """of large arrays, read and written"""
    bytes_outside_products: int


class _Instruction(NamedTuple):
    name: str
    type: str
    operation: str
    operands: list[str]
    attributes: str


def traffic(hlo: str, elements: int) -> Traffic:
    """The traffic of a program (`compiled.as_text()`); an array of at least half of `elements` counts as large."""
    rows = kernels(hlo, elements)
    moved = [sum(k.reads) + sum(k.writes) for k in rows]
    outside = sum(b for b, k in zip(moved, rows, strict=True) if not k.is_product)
    return Traffic(len(rows), sum(len(k.reads) for k in rows), sum(len(k.writes) for k in rows), sum(moved), outside)


def cycles(hlo: str) -> int:
    """The cycles that the TPU's compiler expects and writes beside each kernel; 0 for other devices.

    Branches and asynchronous copies are not included. It is the compiler's estimate, not a time.
    """
    entry = hlo[hlo.find("\nENTRY ") :]
    return sum(int(n) for n in re.findall(r'"estimated_cycles":"?(\d+)', entry[: entry.find("\n}")]))


def collectives(hlo: str) -> list[int]:
    """How many numbers a device gives to each collective of the program, those in branches included."""
    found = []
    for body in _parse(hlo)[0].values():
        types = {i.name: i.type for i in body}
        found += [
            sum(size for o in i.operands for _, size, _ in _arrays(types[o]))
            for i in body
            if _COLLECTIVE.fullmatch(i.operation)
        ]
    return found


def kernels(hlo: str, elements: int) -> list[Kernel]:
    """Each kernel of the program; for a conditional, those of the branch that moves least, the usual one."""
    computations, entry = _parse(hlo)

    def walk(computation: str) -> Iterator[Kernel]:
        types = {}
        for i in computations[computation]:
            types[i.name] = i.type
            called = re.findall(
                r"(?:to_apply|body|calls|branch_computations|(?:true|false)_computation)=([^ ]+)", i.attributes
            )
            inner = [name for text in called for name in re.findall(r"[\w.\-]+", text) if name in computations]
            if i.operation in _FREE or i.operation.endswith("-done"):
                continue
            if i.operation in ("call", "while"):
                yield from walk(inner[-1])
            elif i.operation == "conditional":
                yield from min((list(walk(name)) for name in inner), key=_moved)
            else:
                body = computations[inner[0]] if i.operation == "fusion" else []
                read = [o for n, o in enumerate(i.operands) if i.operation not in _SLICES and not _is_sliced(body, n)]
                yield Kernel(
                    i.name,
                    [b for o in dict.fromkeys(read) for b in _large(types.get(o, ""), elements)],
                    _large(i.type, elements),
                    any(b.operation in _PRODUCTS for b in [i, *body]) or _is_library_product(i.attributes),
                )

    return list(walk(entry))


def _moved(rows: list[Kernel]) -> int:
    return sum(sum(k.reads) + sum(k.writes) for k in rows)


def _is_library_product(attributes: str) -> bool:
    return bool(re.search(r'custom_call_target="[^"]*(cublas|cudnn|gemm|conv|dot)|__triton.*gemm|_gemm', attributes))


def _parse(hlo: str) -> tuple[dict[str, list[_Instruction]], str]:
    """The instructions of each computation, and the name of the one where the program starts."""
    computations, current, entry = {}, None, ""
    for line in hlo.splitlines():
        line = re.sub(r"/\*.*?\*/", "", line).strip()
        if head := _COMPUTATION.match(line):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line == "}":
            current = None
        elif current is not None and (found := _split(line)):
            name, type_, operation, rest = found
            end = _closing(rest)
            operands = re.findall(r"%([\w.\-]+)", rest[:end]) or [rest[:end]]  # parameter(0): its number
            current.append(_Instruction(name, type_, operation, operands, rest[end:]))
    return computations, entry


def _split(line: str) -> tuple[str, str, str, str] | None:
    """Name, type, operation and what follows its opening parenthesis; a type may be a tuple of types."""
    head = re.match(r"(?:ROOT )?%?([\w.\-]+) = ", line)
    if not head:
        return None
    rest = line[head.end() :]
    cut = _closing(rest[1:]) + 2 if rest.startswith("(") else rest.find(" ")
    call = re.match(r" *([\w\-]+)\(", rest[cut:])
    return (head[1], rest[:cut], call[1], rest[cut + call.end() :]) if call else None


def _closing(text: str) -> int:
    """Where the parenthesis that was opened before `text` ends."""
    depth = 1
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0:
            return i
    return len(text)


def _arrays(types: str) -> list[tuple[str, int, str]]:
    """Dtype, size and layout of each array of a type, which may be a tuple."""
    found = _ARRAY.findall(types)
    return [(dtype, math.prod(int(d) for d in sizes.split(",") if d), layout) for dtype, sizes, layout in found]


def _large(types: str, elements: int) -> list[int]:
    return [
        size * BYTES[dtype]
        for dtype, size, layout in _arrays(types)
        if 2 * size >= elements and "S(1)" not in layout  # S(1): it is in memory on the chip (TPU)
    ]


def _is_sliced(body: list[_Instruction], number: int) -> bool:
    """Whether a fusion reads no more than slices of its operand with this number."""
    users: dict[str, list[_Instruction]] = {}
    for instruction in body:
        for operand in instruction.operands:
            users.setdefault(operand, []).append(instruction)

    def sliced(name: str) -> bool:
        return bool(users.get(name)) and all(
            u.operation in _SLICES or (u.operation in _VIEWS and sliced(u.name)) for u in users[name]
        )

    return any(i.operation == "parameter" and i.operands == [str(number)] and sliced(i.name) for i in body)
