"""ONNX files, without their external data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from edgeprune.errors import SecurityError, quoted, usage_error
from edgeprune.limits import LIMITS
from edgeprune.records import ModelFile, Precision, Shape, TensorSpec
from edgeprune.storage.store import read_capped

# Only types that numpy has. The others keep ONNX's name, and are refused.
DTYPES = {"float": "float32", "double": "float64"}

OTHERS = {  # what files of a wrong name begin with, in small letters
    b"version https://git-lfs": "is a pointer of Git LFS instead of the file; run git lfs pull",
    b"<!doctype html": "is a web page; download the file itself",
    b"<html": "is a web page; download the file itself",
    b"pk\x03\x04": "is a zip archive, such as a .pt of PyTorch or a .keras; export the model as .onnx, or unpack it",
}


def parsed(path: Path) -> onnx.ModelProto:
    """The message in a file, without its external data. Raises `UsageError` if it is too large or damaged."""
    proto = onnx.ModelProto()
    if path.is_file() and path.stat().st_size > LIMITS.model_bytes:
        text = f"{path}: is over {LIMITS.model_bytes} bytes, which ONNX cannot hold; save its weights as external data"
        raise usage_error(text)
    try:
        proto.ParseFromString(read_capped(path, LIMITS.model_bytes))
    except (DecodeError, RecursionError) as error:
        raise usage_error(f"{path}: {_instead(path)}") from error
    if not proto.graph.node and not proto.graph.output:
        raise usage_error(f"{path}: holds no network; give an ONNX file that has one")
    return proto


def _instead(path: Path) -> str:
    """What a file is that cannot be read, and what to do."""
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    for mark, text in OTHERS.items():
        if start.startswith(mark):
            return text
    return "is not ONNX, or is truncated; get the file again"


def read(path: Path) -> ModelFile:
    """See `Runtime.model_file`."""
    proto = parsed(path)
    graph = proto.graph
    weights = {text_of(tensor.name) for tensor in graph.initializer} | {
        text_of(tensor.values.name) for tensor in graph.sparse_initializer
    }
    kinds = Counter(text_of(node.op_type) for node in graph.node if node.op_type != "Constant")
    return ModelFile(
        path=path,
        files=(path, *_external(path, proto)),
        inputs=tuple(_spec(path, value) for value in graph.input if text_of(value.name) not in weights),
        outputs=tuple(text_of(value.name) for value in graph.output),
        operators=dict(kinds),
        precision=_precision(proto, kinds),
    )


def text_of(value: str | bytes) -> str:
    """A text of the file. Protobuf gives bytes where it is not UTF-8."""
    return value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")


def _spec(path: Path, value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        what = (kind or "no type").removesuffix("_type")
        raise usage_error(
            f"{path}: the input {quoted(text_of(value.name))} is {what}, not a tensor; edgeprune cannot feed it"
        )
    tensor = value.type.tensor_type
    name = onnx.TensorProto.DataType.Name(tensor.elem_type).lower() if tensor.elem_type in _known() else "unknown"
    shape = _shape(tensor.shape) if tensor.HasField("shape") else None
    return TensorSpec(text_of(value.name), DTYPES.get(name, name), shape)


def _known() -> list[int]:
    return list(onnx.TensorProto.DataType.values())


def _shape(shape: onnx.TensorShapeProto) -> Shape:
    """A dimension without a value or a name is unknown; so is -1, which some exporters write."""
    return tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value != -1 else text_of(dim.dim_param) or "?"
        for dim in shape.dim
    )


def _precision(proto: onnx.ModelProto, kinds: Counter[str]) -> Precision:
    if kinds["QuantizeLinear"] or kinds["DequantizeLinear"]:
        return "int8"
    half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in proto.graph.initializer)
    return "fp16" if half else "fp32"


def _external(path: Path, proto: onnx.ModelProto) -> list[Path]:
    """The files of external data, which must lie beside the model.

    Raises:
        SecurityError: one lies elsewhere.
        UsageError: one is missing or too short.
    """
    needed: dict[str, int] = {}
    for tensor in tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            given = {text_of(entry.key): text_of(entry.value) for entry in tensor.external_data}
            location = given.get("location", "")
            try:
                end = int(given.get("offset") or 0) + int(given.get("length") or 0)
            except ValueError:
                text = (
                    f"{path}: the external data of {quoted(text_of(tensor.name))} has no valid offset; export it again"
                )
                raise usage_error(text) from None
            needed[location] = max(needed.get(location, 0), end)
    return [beside(path, location, size) for location, size in sorted(needed.items())]


def beside(path: Path, location: str, size: int) -> Path:
    """A file of external data, which holds at least `size` bytes; see `_external`."""
    folder = path.resolve().parent
    found = path.parent / location
    try:
        inside = bool(location) and found.resolve().is_relative_to(folder) and ".." not in Path(location).parts
    except (OSError, ValueError):  # a zero byte in it, or a loop of links
        inside = False
    if not inside:
        text = f"{path}: refused: its external data is {quoted(location)}, outside the file's folder"
        raise SecurityError("".join(c if c.isprintable() else " " for c in text))
    if found.resolve().parent != folder or found.name != location:
        raise usage_error(f"{path}: its external data is {quoted(location)}; export it to a file beside the model")
    if not found.is_file():
        raise usage_error(f"{path}: its external data {quoted(location)} is missing; put it beside the model")
    if found.stat().st_size < size:
        raise usage_error(f"{path}: its external data {quoted(location)} is truncated; get the file again")
    return found


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor, in subgraphs and functions, too. Protobuf limits how deep they are nested."""
    yield from _of_graph(proto.graph)
    for function in proto.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: object) -> Iterator[onnx.TensorProto]:
    for node in nodes:  # type: ignore[attr-defined] # a container of protobuf
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _of_graph(attribute.g)
            for graph in attribute.graphs:
                yield from _of_graph(graph)
