"""Read an ONNX file: caps, external data inside its folder, and a graph in an order that can be executed."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.defs
import onnx.helper
import onnx.inliner
import onnx.numpy_helper
import torch
from torch import Tensor

from edgeprune.errors import UsageError, first_line, quoted, usage_error
from edgeprune.frontends.onnx.names import scope_of
from edgeprune.limits import LIMITS
from edgeprune.runtimes.files import onnx as files
from edgeprune.runtimes.files.onnx import text_of

OPSETS = range(7, onnx.defs.onnx_opset_version() + 1)
ML = "ai.onnx.ml"  # of scikit-learn's trees, scalers and labels
CUT_OFF = ", or cut it off: onnx.utils.extract_model keeps the inputs and outputs that you name"
DOMAINS = ("", "ai.onnx")  # the standard operators; others are custom
QUANTISED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul",
             "ConvInteger", "MatMulInteger"}  # fmt: skip
HALF = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
Dim = int | str | None  # of an input's shape: a size, a name, or not known


@dataclass(frozen=True)
class Node:
    """An operator of the file.

    Attributes:
        op: such as "Conv".
        name: as messages show it.
        inputs: names of values; empty for an optional input that is left out.
        outputs: names of values.
        attributes: numbers, bytes, tensors and graphs by name.
        scope: the modules that it belongs to, as far as its name says.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    scope: tuple[str, ...]

    def __str__(self) -> str:
        return f"node {quoted(self.name)} ({quoted(self.op)[1:-1]})"


@dataclass(frozen=True)
class Input:
    """An input of the network: its name, its type, and its shape."""

    name: str
    dtype: torch.dtype
    dims: tuple[Dim, ...]


@dataclass(frozen=True)
class Graph:
    """A network as its file describes it.

    Attributes:
        path: the file.
        opset: the version of the operators.
        inputs: without those that have a weight as their value.
        outputs: names of values.
        nodes: each after the nodes whose results it reads.
        weights: the initialisers by name.
        notes: what differs from the file, a line for each.
    """

    path: Path
    opset: int
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    weights: dict[str, Tensor]
    notes: tuple[str, ...] = field(default=())

    def refused(self, text: str) -> UsageError:
        """The error for something in this file."""
        return usage_error(f"{self.path}: {text}")


def parsed(path: Path) -> onnx.ModelProto:
    """The message in a file, with external data, and with its functions written out.

    Raises:
        UsageError: it is no ONNX file, it is truncated, or larger than a cap.
        SecurityError: external data lies outside the file's folder.
    """
    if path.is_dir():
        raise usage_error(f"{path}: is a folder; name the .onnx file in it")
    proto = files.parsed(path)
    if not proto.graph.node or not proto.graph.output:
        raise usage_error(f"{path}: holds no network; export it again")
    if proto.functions:
        _require_finite(path, proto)
        try:
            proto = onnx.inliner.inline_local_functions(proto)
        except (RuntimeError, ValueError) as error:  # the inliner is not Python; it has no error of its own
            raise usage_error(f"{path}: its functions cannot be read ({first_line(error)}); export it again") from error
    _load_external(path, proto)
    return proto


def read(path: Path) -> Graph:
    """The graph of a file. See `parsed` for errors.

    Raises:
        UsageError: the file has custom or quantised operators, or its graph is not valid.
    """
    proto = parsed(path)
    opset = _opset(path, proto)
    if len(proto.graph.node) > LIMITS.onnx_nodes:
        raise usage_error(f"{path}: {len(proto.graph.node)} nodes are more than {LIMITS.onnx_nodes}")
    weights = _weights(path, proto.graph)
    nodes = _ordered(
        path,
        tuple(nodes_of(path, proto.graph)),
        {*weights, *(text_of(value.name) for value in proto.graph.input)},
    )
    inputs = tuple(_input(path, value) for value in proto.graph.input if text_of(value.name) not in weights)
    outputs = tuple(text_of(value.name) for value in proto.graph.output)
    made = {name for node in nodes for name in node.outputs} | {i.name for i in inputs} | weights.keys()
    for name in outputs:
        if name not in made:
            raise usage_error(f"{path}: no node makes the output {quoted(name)}; export the file again")
    if not inputs:
        raise usage_error(f"{path}: the network has no inputs; export it with its inputs")
    return Graph(path, opset, inputs, outputs, nodes, weights, _notes(path, proto, nodes))


def _notes(path: Path, proto: onnx.ModelProto, nodes: tuple[Node, ...]) -> tuple[str, ...]:
    """What the network computes in another precision than the file."""
    halves = sum(tensor.data_type in HALF for tensor in files.tensors(proto))
    halves += sum(value.type.tensor_type.elem_type in HALF for value in proto.graph.input)
    if halves:
        return (f"{path.name}: {halves} tensors in half precision were converted to float32",)
    casts = sum(node.op == "Cast" and node.attributes.get("to") in HALF for node in nodes)
    return (f"{path.name}: {casts} casts to half precision were left out",) if casts else ()


def tensor_of(path: Path, proto: onnx.TensorProto, what: str) -> Tensor:
    """A tensor of the file. All real numbers are float32. Raises `UsageError` for strings and for wrong sizes."""
    if proto.data_type == onnx.TensorProto.STRING:
        raise usage_error(f"{path}: {what} holds strings; edgeprune takes networks of numbers")
    elements = 1
    for size in proto.dims:
        elements *= size
    if any(size < 0 for size in proto.dims) or elements > LIMITS.onnx_elements:
        raise usage_error(f"{path}: {what} has the shape {quoted(list(proto.dims))}, which is too large")
    try:
        array = onnx.numpy_helper.to_array(proto)
    except (ValueError, TypeError, OverflowError) as error:
        raise usage_error(f"{path}: {what} cannot be read ({first_line(error)}); export the file again") from error
    if array.dtype.name in ("float16", "bfloat16", "float64"):
        array = array.astype(np.float32)
    try:
        return torch.from_numpy(np.array(array, order="C"))  # a copy: the message's own memory is read-only
    except TypeError as error:
        raise usage_error(f"{path}: {what} is {array.dtype}; export the network in float32") from error


def dtype_of(path: Path, element: int, what: str) -> torch.dtype:
    """torch's type for a type of ONNX. All real numbers are float32."""
    if element in (*HALF, onnx.TensorProto.DOUBLE):
        return torch.float32
    try:
        dtype = torch.from_numpy(np.zeros(1, onnx.helper.tensor_dtype_to_np_dtype(element))).dtype
        if dtype.is_complex:
            raise TypeError("torch's layers take no complex numbers")
        return dtype
    except (TypeError, KeyError, ValueError) as error:
        name = onnx.TensorProto.DataType.Name(element) if element in onnx.TensorProto.DataType.values() else element
        raise usage_error(f"{path}: {what} is {name}; edgeprune takes real numbers, integers and booleans") from error


# ------------------------------------------------------------------------------------------------------- the file


def _load_external(path: Path, proto: onnx.ModelProto) -> None:
    """Read the weights that lie in other files of the same folder."""
    total = 0
    for tensor in files.tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        given = {text_of(entry.key): text_of(entry.value) for entry in tensor.external_data}
        try:
            offset, length = int(given.get("offset") or 0), int(given.get("length") or 0)
        except ValueError:
            raise usage_error(f"{path}: the external data of {_shown(tensor.name)} has no valid offset") from None
        file = files.beside(path, given.get("location", ""), offset + length)
        length = length or file.stat().st_size - offset
        total += length
        if offset < 0 or length < 0:
            raise usage_error(f"{path}: the external data of {_shown(tensor.name)} has no valid offset")
        if total > LIMITS.weights_bytes:
            raise usage_error(f"{path}: its external data is more than {LIMITS.weights_bytes} bytes")
        with file.open("rb") as stream:
            stream.seek(offset)
            tensor.raw_data = stream.read(length)
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _shown(name: str | bytes) -> str:
    return quoted(text_of(name))


def _opset(path: Path, proto: onnx.ModelProto) -> int:
    versions = [known.version for known in proto.opset_import if known.domain in DOMAINS]
    if not versions:
        raise usage_error(f"{path}: the file names no version of ONNX's operators; export it again")
    if versions[0] not in OPSETS:
        older = "; or convert it: onnx.version_converter.convert_version" if 0 < versions[0] < OPSETS[0] else ""
        raise usage_error(
            f"{path}: opset {versions[0]} is not known; export the network with opset {OPSETS[0]} to {OPSETS[-1]}{older}"
        )
    return int(versions[0])


def _require_finite(path: Path, proto: onnx.ModelProto) -> None:
    """Raises `UsageError` if functions call themselves, or make too many nodes when they are written out."""
    waiting = {(text_of(one.domain), text_of(one.name)): _called(one.node) for one in proto.functions}
    sizes: dict[tuple[str, str], int] = {}
    while waiting:
        ready = [name for name, calls in waiting.items() if waiting.keys().isdisjoint(calls)]
        if not ready:
            raise usage_error(
                f"{path}: the function {quoted(next(iter(waiting))[1])} calls itself; export the file again"
            )
        sizes |= {name: sum(sizes.get(call, 1) for call in waiting.pop(name)) for name in ready}
    if sum(sizes.get(call, 1) for call in _called(proto.graph.node)) > LIMITS.onnx_nodes:
        raise usage_error(f"{path}: its functions make more than {LIMITS.onnx_nodes} nodes; export it again")


def _called(nodes: Any) -> list[tuple[str, str]]:
    """Domain and name of each operator, also inside branches."""
    found = [(text_of(node.domain), text_of(node.op_type)) for node in nodes]
    inner = [attribute.g.node for node in nodes for attribute in node.attribute if attribute.HasField("g")]
    return found + [call for graph in inner for call in _called(graph)]


def _weights(path: Path, graph: onnx.GraphProto) -> dict[str, Tensor]:
    if graph.sparse_initializer:
        raise usage_error(f"{path}: the file has sparse weights; export it with dense ones")
    found: dict[str, Tensor] = {}
    for tensor in graph.initializer:
        name = text_of(tensor.name)
        if name in found:
            raise usage_error(f"{path}: two weights are called {quoted(name)}; export the file again")
        found[name] = tensor_of(path, tensor, f"the weight {quoted(name)}")
    return found


def _input(path: Path, value: onnx.ValueInfoProto) -> Input:
    name = text_of(value.name)
    what = f"the input {quoted(name)}"
    if not value.type.HasField("tensor_type"):
        raise usage_error(f"{path}: {what} is no tensor; edgeprune takes networks of tensors")
    tensor = value.type.tensor_type
    if tensor.elem_type == onnx.TensorProto.STRING:
        raise usage_error(f"{path}: {what} holds strings; edgeprune takes networks of numbers")
    if not tensor.HasField("shape"):
        raise usage_error(f"{path}: {what} has no shape; export the network with the shapes of its inputs")
    dims: list[Dim] = []
    for dim in tensor.shape.dim:
        size: Dim = dim.dim_value if dim.HasField("dim_value") else text_of(dim.dim_param) or None
        size = None if size == -1 else size  # as some exporters write a dynamic one
        if isinstance(size, int) and size <= 0:
            raise usage_error(f"{path}: {what} has a dimension of {size}; export the network for inputs that hold data")
        dims.append(size)
    return Input(name, dtype_of(path, tensor.elem_type, what), tuple(dims))


# ------------------------------------------------------------------------------------------------------- the nodes


def nodes_of(path: Path, graph: onnx.GraphProto) -> Iterator[Node]:
    """The nodes of a graph. Raises `UsageError` for custom and quantised operators."""
    for number, proto in enumerate(graph.node):
        given, outputs = tuple(map(text_of, proto.input)), tuple(map(text_of, proto.output))
        name = text_of(proto.name) or next(filter(None, outputs), "") or f"number {number}"
        attributes = {text_of(each.name): onnx.helper.get_attribute_value(each) for each in proto.attribute}
        metadata = {text_of(entry.key): text_of(entry.value) for entry in proto.metadata_props}
        scope = scope_of(text_of(proto.name), metadata.get("pkg.torch.onnx.name_scopes"))
        node = Node(text_of(proto.op_type), name, given, outputs, attributes, scope)
        if node.op in QUANTISED:
            raise usage_error(
                f"{path}: {node} is int8 arithmetic; give the float file:"
                " [runtime] precision of the target sets the precision of the artifact"
            )
        domain = text_of(proto.domain)
        if domain not in DOMAINS:
            raise usage_error(
                f"{path}: {node} is of the domain {quoted(domain)}, which is not ONNX's;"
                f" export the network with standard operators{CUT_OFF if domain == ML else ''}"
            )
        yield node


def _ordered(path: Path, nodes: tuple[Node, ...], known: set[str]) -> tuple[Node, ...]:
    """The nodes, each after those whose results it reads. The file may have another order."""
    maker: dict[str, int] = {}
    for number, node in enumerate(nodes):
        for name in filter(None, node.outputs):
            if name in maker or name in known:
                raise usage_error(f"{path}: {node} makes {quoted(name)}, which exists already; export the file again")
            maker[name] = number
    waits = [{maker[name] for name in _read(node) if name in maker} for node in nodes]
    for node in nodes:
        for name in node.inputs:
            if name and name not in maker and name not in known:
                raise usage_error(f"{path}: {node} reads {quoted(name)}, which nothing makes; export the file again")
    readers: dict[int, list[int]] = {}
    for number, before in enumerate(waits):
        for one in before:
            readers.setdefault(one, []).append(number)
    ready = [number for number, before in enumerate(waits) if not before]  # a heap: the file's order where it is valid
    order: list[Node] = []
    while ready:
        number = heapq.heappop(ready)
        order.append(nodes[number])
        for reader in readers.get(number, ()):
            waits[reader].discard(number)
            if not waits[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(nodes):
        stuck = next(node for node, before in zip(nodes, waits, strict=True) if before)
        raise usage_error(f"{path}: {stuck} reads its own result; export the file again")
    return tuple(order)


def _read(node: Node) -> Iterator[str]:
    """The names that a node reads, also inside its branches."""
    yield from node.inputs
    for value in node.attributes.values():
        if isinstance(value, onnx.GraphProto):
            yield from _read_inside(value)


def _read_inside(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (text_of(output.name) for output in graph.output)
    for node in graph.node:
        yield from map(text_of, node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _read_inside(attribute.g)
