"""TFLite files. Only what is needed is read from the flatbuffer, which points into itself."""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path
from typing import Any

from edgeprune.errors import RuntimeMissing, UsageError, usage_error
from edgeprune.limits import LIMITS
from edgeprune.records import ModelFile, Shape, TensorSpec
from edgeprune.storage.store import read_capped

IDENTIFIER = b"TFL3"
MOST_OPERATORS = 100_000


def read(path: Path) -> ModelFile:
    """See `Runtime.model_file`."""
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        text = f"{path}: ai-edge-litert, which reads it, is not installed; pip install 'edgeprune[tflite]'"
        raise RuntimeMissing(text) from error
    content = read_capped(path, LIMITS.model_bytes)
    if content[4:8] != IDENTIFIER:
        raise usage_error(f"{path}: is not a TFLite file; give the .tflite that a converter wrote")
    try:
        return _read(path, content, schema)
    except UsageError:
        raise
    except (struct.error, LookupError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise usage_error(f"{path}: is damaged or truncated; get the file again") from error


def _read(path: Path, content: bytes, schema: Any) -> ModelFile:
    model = schema.Model.GetRootAs(content, 0)
    graph = model.Subgraphs(0)
    inputs = [graph.Tensors(graph.Inputs(i)) for i in range(_few(path, graph.InputsLength(), LIMITS.model_tensors))]
    outputs = [graph.Tensors(graph.Outputs(i)) for i in range(_few(path, graph.OutputsLength(), LIMITS.model_tensors))]
    types = {code: name.lower() for name, code in vars(schema.TensorType).items() if not name.startswith("_")}
    kinds = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    used: Counter[str] = Counter()
    for i in range(_few(path, graph.OperatorsLength(), MOST_OPERATORS)):
        code = model.OperatorCodes(graph.Operators(i).OpcodeIndex())
        used[kinds[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]] += 1
    return ModelFile(
        path=path,
        files=(path,),
        inputs=tuple(TensorSpec(_name(tensor), types[tensor.Type()], _shape(path, tensor)) for tensor in inputs),
        outputs=tuple(map(_name, outputs)),
        operators=dict(used),
        precision="int8" if used["QUANTIZE"] else "fp32",
    )


def _few(path: Path, count: int, most: int) -> int:
    if count > most:
        raise usage_error(f"{path}: holds {count} operators, inputs or outputs, over {most}; is it damaged?")
    return count


def _name(tensor: Any) -> str:
    return bytes(tensor.Name() or b"").decode("utf-8", "backslashreplace")


def _shape(path: Path, tensor: Any) -> Shape:
    """The signature has -1 for a dimension that is open; the shape then has 1."""
    length = _few(path, tensor.ShapeSignatureLength() or tensor.ShapeLength(), LIMITS.model_tensors)
    sizes = tensor.ShapeSignature if tensor.ShapeSignatureLength() else tensor.Shape
    return tuple("?" if sizes(i) == -1 else int(sizes(i)) for i in range(length))
