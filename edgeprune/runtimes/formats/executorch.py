"""ExecuTorch: .pte files in fp32 are sliced. An int8 file is lowered from a program of torch (.pt2)."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.graph.trace import exported
from edgeprune.records import Widths
from edgeprune.runtimes.executorch.host import lowered
from edgeprune.runtimes.executorch.program import FLOAT, Graph, Node, Program, Value
from edgeprune.runtimes.executorch.table import number
from edgeprune.runtimes.formats.base import Dims, Origin, Origins, Template, pattern
from edgeprune.runtimes.formats.base import Node as Operator
from edgeprune.runtimes.formats.sizes import Constants

LAYERS = "Conv2d", "DepthwiseConv2d", "ConvTranspose2d", "FullyConnected"  # nodes with weights
NUMBERS = 100  # the position of a node's own numbers among its constants, after those of its values


class PteTemplate(Template):
    """A .pte file. Its delegate states every shape, and its constants are channels-last."""

    @staticmethod
    def written(model: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
        """See `Template.written`."""
        return lowered(exported(model, inputs))

    @staticmethod
    def operators(file: bytes) -> int:
        """See `Template.operators`."""
        return len(Program(file).operators)

    @cached_property
    def _program(self) -> Program:
        return Program(self.exported)

    @cached_property
    def _origins(self) -> dict[int, Origin]:
        """The origin of each constant, by segment."""
        origins = Origins(self._folded, self._computed)
        found = {value.constant: origins.find(array) for value, array in _arrays(self._program)}
        return {segment: origin for segment, origin in found.items() if segment is not None and origin is not None}

    def nodes(self) -> Iterator[Operator]:
        """Operators with weights by their number, as in `runtimes.executorch`. The profile names no others."""
        numbers = count()
        for graph, node in _nodes(self._program):
            names = (f"layer:{next(numbers)}",) if node.kind in LAYERS else ()
            constants = [graph.values[index].constant for index in node.reads]
            parameters = tuple(self._origins[one].parameter for one in constants if one in self._origins)
            inputs, outputs = (tuple((graph.segment, i) for i in ids) for ids in (node.reads, node.writes))
            yield Operator(names, inputs, outputs, parameters)

    @staticmethod
    def constants(file: bytes) -> Constants:
        """See `Template.constants`. Sizes of values, and the numbers of a node, count. Node -1 is outside the delegates."""
        program, found = Program(file), {}
        arrays = {value: array for value, array in _arrays(program)}
        for place, (graph, node) in enumerate(_nodes(program)):
            content = program.segments[graph.segment]
            for position, index in enumerate((*node.reads, *node.writes)):
                value = graph.values[index]
                found[place, position] = arrays[value] if value in arrays else _read(content, value.dims)
            found[place, NUMBERS] = _read(content, node.numbers)
        return found | {(-1, i): _read(program.content, dims) for i, dims in enumerate(program.tensors)}

    def sliced(self, kept: Mapping[str, Dims], widths: Widths, filled: bool = False) -> bytes:
        """See `Template.sliced`."""
        segments = [bytearray(segment) for segment in self._program.segments]
        shapes: dict[Value, tuple[int, ...]] = {}
        for value, array in _arrays(self._program):
            origin = self._origins.get(value.constant or 0)
            if origin is not None and (filled or origin.parameter in kept):
                array = origin.patterned(array, kept) if filled else origin.take(array, kept)
            segments[value.constant or 0][:] = np.ascontiguousarray(array).tobytes()
            shapes[value] = array.shape
        for place, (graph, node) in enumerate(_nodes(self._program)):
            content = segments[graph.segment]
            for position, index in enumerate((*node.reads, *node.writes)):
                value = graph.values[index]
                if value in shapes:
                    _write(content, value.dims, shapes[value])
                else:
                    self._resize((place, position), content, value.dims, widths)
            self._resize((place, NUMBERS), content, node.numbers, widths)
        outside = bytearray(self._program.content)
        for position, dims in enumerate(self._program.tensors):
            self._resize((-1, position), outside, dims, widths)
        return self._program.written([bytes(segment) for segment in segments], bytes(outside))

    def _resize(self, place: tuple[int, int], content: bytearray, places: tuple[int, ...], widths: Widths) -> None:
        if place in self._sizes:
            _write(content, places, self._sizes[place].at(_read(content, places), widths))

    def agrees(self, kept: Mapping[str, Dims], widths: Widths, exported: bytes) -> bool:
        """See `Template.agrees`."""
        fresh = Program(exported)
        try:
            ours = Program(self.sliced(kept, widths))
        except (struct.error, ValueError, IndexError):  # a size is not known
            return False
        pairs = zip(_arrays(ours), _arrays(fresh), strict=False)
        return ours.skeleton() == fresh.skeleton() and all(
            a.shape == b.shape and np.allclose(a, b, rtol=1e-5, atol=1e-7) for (_, a), (_, b) in pairs
        )

    @staticmethod
    def filled(file: bytes) -> bytes:
        """See `Template.filled`."""
        program = Program(file)
        segments = list(program.segments)
        for value, array in _arrays(program):
            segments[value.constant or 0] = pattern(array).tobytes()
        return program.written(segments, program.content)


class ProgramTemplate(PteTemplate):
    """A program of torch. The quantiser needs it, and it is not sliced: every variant is exported."""

    @staticmethod
    def written(model: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
        """See `Template.written`."""
        content = io.BytesIO()
        torch.export.save(exported(model, inputs), content)
        return content.getvalue()

    @staticmethod
    def operators(file: bytes) -> int:
        """See `Template.operators`."""
        return sum(node.op == "call_function" for node in torch.export.load(io.BytesIO(file)).graph.nodes)

    @cached_property
    def _program(self) -> Program:
        return Program(lowered(torch.export.load(io.BytesIO(self.exported))))

    def _can_slice(self) -> bool:
        return False

    @staticmethod
    def filled(file: bytes) -> bytes:
        """The file itself: ranges that are computed from its weights must stay plausible."""
        return file


def _nodes(program: Program) -> Iterator[tuple[Graph, Node]]:
    return ((graph, node) for graph in program.graphs for node in graph.nodes)


def _arrays(program: Program) -> Iterator[tuple[Value, np.ndarray]]:
    """The constants of 32-bit floats."""
    for graph in program.graphs:
        for value in graph.values.values():
            if value.constant is not None and value.type == FLOAT:
                content = program.segments[value.constant]
                shape = _read(program.segments[graph.segment], value.dims)
                yield value, np.frombuffer(content, np.float32).reshape(shape)


def _read(content: bytes | bytearray, places: tuple[int, ...]) -> np.ndarray:
    return np.array([number(content, place, "I") for place in places], np.int64)


def _write(content: bytearray, places: tuple[int, ...], values: Any) -> None:
    for place, value in zip(places, values, strict=True):
        struct.pack_into("<I", content, place, int(value))
