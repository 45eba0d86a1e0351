"""Read .pte files, and write one with other numbers and constants. Only this module knows the schemas.

A program lists the segments that follow it. A segment is the graph of a delegate, which is XNNPACK, or a constant of it. A
number is replaced in place: a flatbuffer refers to places, which stay.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from edgeprune.errors import UsageError, usage_error
from edgeprune.limits import LIMITS
from edgeprune.records import ModelFile, Precision, TensorSpec
from edgeprune.runtimes.executorch.bindings import DTYPES
from edgeprune.runtimes.executorch.table import Table, number, root
from edgeprune.storage.store import read_capped

IDENTIFIER = b"ET12"
MOST_DELEGATES = 1000
EXTENDED = b"eh00"  # of a file with segments
DELEGATE = "XnnpackBackend"
KERNEL = 1  # the type of an instruction that calls no delegate
IN_SEGMENT = 1  # the place of a delegate's graph
ALIGNED = 128  # bytes, of segments
MISSING = 0xFFFFFFFF  # the id of an input that a node does not have
TENSOR = 5  # the type of a value of the program
NUMBERS = {2: "q", 3: "B", 4: "d"}  # types of values that are numbers, with their formats
LISTS = {6: "B", 7: "q", 8: "d", 9: "B", 10: "i", 11: "i"}  # types of values that are texts or lists
FLOAT, HALF, INT8, CHANNELS_INT8 = 1, 2, 3, 6  # types of values in XNNPACK's schema
# Kinds of nodes, in the order of XNNPACK's schema. Each has the fields of its table: a number (n), a vector (v), a value that
# it reads (r), or a value that it writes (w).
TWO, ONE, CAT, POOL, CONV = "rrw", "rw", "nrrrrwnr", "n" * 10 + "rw", "n" * 15 + "rrrw"
KINDS = tuple(
    pair.split(":")
    for pair in (
        f" Add:{TWO} FullyConnected:rrrw Softmax:{ONE} Sigmoid:{ONE} Transpose:nvrw Clamp:{ONE} Conv2d:{CONV} Div:{TWO}"
        f" ResizeBilinear2D:nnrw ConstantPad:vvnrw AvgPooling2d:{POOL} Minimum:{TWO} DepthwiseConv2d:{CONV}"
        f" MaxPooling2d:{POOL} Multiply:{TWO} Subtract:{TWO} Floor:{ONE} Convert:{ONE} GlobalAvgPooling2d:{ONE} Reshape:nvrw"
        f" ArgMaxPooling2d:nnnnnnrww SquareRoot:{ONE} Ceiling:{ONE} Hardswish:{ONE} LeakyReLU:nrw Maximum:{TWO} Negate:{ONE}"
        f" Square:{ONE} ELU:nrw Abs:{ONE} PReLU:{TWO} Concatenate2:{CAT} Concatenate3:{CAT} Concatenate4:{CAT} Slice:nvvrw"
        f" ScaledDotProductAttention:rrrrrw BatchMatrixMultiply:{TWO} Concatenate5:{CAT} ConvTranspose2d:{CONV}"
        f" ReciprocalSquareRoot:{ONE} Log:{ONE} Gelu:{ONE} Tanh:{ONE} Exp:{ONE} Sin:{ONE} Copy:{ONE} Cos:{ONE}"
    ).split()
)


@dataclass(frozen=True)
class Value:
    """A tensor of XNNPACK's graph: the places of its sizes, the number of the segment if it is a constant, and its type."""

    dims: tuple[int, ...]
    constant: int | None
    type: int


@dataclass(frozen=True)
class Node:
    """A node of XNNPACK's graph: ids of the values that it reads and writes, and the places of its other numbers."""

    kind: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """A delegate's graph. Places count from the start of the segment."""

    segment: int
    values: dict[int, Value]
    nodes: tuple[Node, ...]
    keys: tuple[range, ...]  # where the names of constants stand


class Program:
    """A .pte file.

    Raises:
        ValueError, struct.error or IndexError: it is damaged, or made in another way than `lowered` makes it.
    """

    def __init__(self, content: bytes) -> None:
        if content[4:8] != IDENTIFIER:
            raise ValueError("no .pte file")
        base = number(content, 24, "Q") if content[8:12] == EXTENDED else len(content)
        self.content = content[:base]
        self.table = root(self.content)
        self.plan = self.table.tables(1)[0]
        self._places = [(one.place(0), one.place(1)) for one in self.table.tables(4)]
        bounds = [(one.number(0, "Q"), one.number(1, "Q")) for one in self.table.tables(4)]
        self.segments = [content[base + start : base + start + size] for start, size in bounds]

    @cached_property
    def graphs(self) -> tuple[Graph, ...]:
        """The graphs of all delegates, in the order of the file."""
        named = {one.text(0): one.number(1) for one in self.table.tables(7)}
        places = [one.table(1) for one in self.plan.tables(7) if one.text(0) == DELEGATE]
        stored = [place.number(1) for place in places if place is not None and place.number(0, "b") == IN_SEGMENT]
        if len(stored) > MOST_DELEGATES or len(set(stored)) < len(stored):
            raise ValueError("too many delegates, or one twice")
        return tuple(_graph(self.segments, segment, named) for segment in stored)

    @cached_property
    def tensors(self) -> tuple[tuple[int, ...], ...]:
        """The places of the sizes of every tensor between delegates and other operators."""
        values = [one.table(1) for one in self.plan.tables(2) if one.number(0, "B") == TENSOR]
        return tuple(tuple(value.vector(2)) for value in values if value is not None)

    @property
    def operators(self) -> list[str]:
        """The operators, in no order: XNNPACK's nodes, other delegates, and calls of kernels."""
        kernels = [one.text(0) for one in self.plan.tables(6)]
        calls = [one for chain in self.plan.tables(5) for one in chain.tables(2) if one.number(0, "B") == KERNEL]
        called = [kernels[call.number(0)] for call in (one.table(1) for one in calls) if call is not None]
        delegates = [one.text(0) for one in self.plan.tables(7)]
        others = delegates if not self.graphs else [name for name in delegates if name != DELEGATE]
        return [node.kind for graph in self.graphs for node in graph.nodes] + others + called

    def written(self, segments: list[bytes], program: bytes) -> bytes:
        """The file with other segments and another program of the same layout."""
        content, body = bytearray(program), bytearray()
        for places, segment in zip(self._places, segments, strict=True):
            body += bytes(-len(body) % ALIGNED)
            for place, value in zip(places, (len(body), len(segment)), strict=True):
                if place is not None:
                    struct.pack_into("<Q", content, place, value)
                elif value:
                    raise ValueError("a segment has no place for its size")
            body += segment
        struct.pack_into("<Q", content, 32, len(body))
        return bytes(content + body)

    def skeleton(self) -> list[object]:
        """All that is the same in two files with the same operators and sizes, beside the constants of graphs.

        Where tensors lie in memory does not count: the places of larger tensors suit smaller ones.
        """
        calls = [
            (one.number(0, "B"), call.number(0), call.numbers(1))
            for chain in self.plan.tables(5)
            for one in chain.tables(2)
            if (call := one.table(1)) is not None
        ]
        used = {value.constant for graph in self.graphs for value in graph.values.values()}
        used |= {graph.segment for graph in self.graphs}
        others = [segment for place, segment in enumerate(self.segments) if place not in used]
        graphs = [_blanked(self.segments[graph.segment], graph.keys) for graph in self.graphs]
        values = [_outline(one) for one in self.plan.tables(2)]
        return [self.operators, calls, values, self.plan.numbers(3), self.plan.numbers(4), others, graphs]


def _outline(value: Table) -> object:
    """A value of the program, without its place in memory."""
    kind, table = value.number(0, "B"), value.table(1)
    if table is None:
        return kind
    if kind == TENSOR:
        return table.number(0, "b"), table.numbers(2), table.number(5)
    if kind in LISTS:
        return table.numbers(0, LISTS[kind])
    return kind, table.number(0, NUMBERS.get(kind, "B"))


def _blanked(content: bytes | bytearray, ranges: Sequence[range]) -> bytes:
    blank = bytearray(content)
    for one in ranges:
        blank[one.start : one.stop] = bytes(len(one))
    return bytes(blank)


def _graph(segments: list[bytes], segment: int, named: dict[str, int]) -> Graph:
    content = segments[segment]
    if content[4:8] != b"XH00":
        raise ValueError("a delegate without the header of XNNPACK")
    table = root(content, number(content, 10, "I"))
    data = table.tables(8)
    constants = [named.get(one.text(2)) for one in data]
    values = dict(_value(one, constants) for one in table.tables(2))
    names = [one.vector(2, 1) for one in data]
    sizes = [place for one in data if (place := one.place(1)) is not None]
    keys = [range(places[0], places[-1] + 1) for places in names if places]
    keys += [range(place, place + 8) for place in sizes]  # the runtime takes the size of the segment
    return Graph(segment, values, tuple(map(_node, table.tables(1))), tuple(keys))


def _value(entry: Table, constants: list[int | None]) -> tuple[int, Value]:
    quantized, tensor = entry.number(0, "B") == 2, entry.table(1)
    tensor = tensor.table(0) if quantized and tensor is not None else tensor
    if tensor is None:
        raise ValueError("a value without a tensor")
    dims, index = tuple(tensor.vector(2)), tensor.number(3)
    return tensor.number(6), Value(dims, constants[index] if index else None, tensor.number(0, "H"))


def _node(entry: Table) -> Node:
    kind, fields = KINDS[entry.number(0, "B") - 1]
    table = entry.table(1)
    if table is None:
        raise ValueError("a node without fields")

    def of(letter: str, read: Callable[[int], list[int]]) -> tuple[int, ...]:
        return tuple(found for field, one in enumerate(fields) if one == letter for found in read(field))

    def single(field: int) -> list[int]:
        place = table.place(field)
        return [] if place is None else [place]

    def value(field: int) -> list[int]:
        found = table.number(field)
        return [] if found == MISSING else [found]

    return Node(kind, of("r", value), of("w", value), of("n", single) + of("v", table.vector))


def model_file(path: Path) -> ModelFile:
    """See `Runtime.model_file`. Inputs and outputs have no names, and the first method is the one that runs."""
    content = read_capped(path, LIMITS.model_bytes)
    if content[4:8] != IDENTIFIER:
        raise usage_error(f"{path}: is not an ExecuTorch file of version 12; give the .pte that ExecuTorch wrote")
    try:
        program = Program(content)
        values, taken, made = program.plan.tables(2), program.plan.numbers(3), program.plan.vector(4)
        if max(len(taken), len(made)) > LIMITS.model_tensors:
            raise usage_error(f"{path}: has over {LIMITS.model_tensors} inputs or outputs")
        inputs = tuple(_spec(f"input_{number}", values[index]) for number, index in enumerate(taken))
        outputs = tuple(f"output_{number}" for number in range(len(made)))
        return ModelFile(path, (path,), inputs, outputs, dict(Counter(program.operators)), _precision(program))
    except UsageError:
        raise
    except (struct.error, ValueError, LookupError, OverflowError) as error:
        raise usage_error(f"{path}: is damaged or truncated; get the file again") from error


def _spec(name: str, value: Table) -> TensorSpec:
    tensor = value.table(1)
    if value.number(0, "B") != TENSOR or tensor is None:
        return TensorSpec(name, "number", ())
    dtype = tensor.number(0, "b")
    return TensorSpec(name, DTYPES.get(dtype, f"type {dtype}"), tuple(tensor.numbers(2, "i")))


def _precision(program: Program) -> Precision:
    types = {value.type for graph in program.graphs for value in graph.values.values()}
    return "int8" if types & {INT8, CHANNELS_INT8} else "fp16" if HALF in types else "fp32"
