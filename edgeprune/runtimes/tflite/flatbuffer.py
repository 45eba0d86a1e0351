"""Read a .tflite file as objects and write it. Only this module knows the schema."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np


def read(content: bytes) -> Any:
    """The file as objects (`ModelT` of the schema)."""
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromPackedBuf(content, 0)


def pack(model: Any) -> bytes:
    """Objects as the file."""
    import flatbuffers

    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def operators(model: Any) -> Iterator[tuple[str, Any]]:
    """Pairs of name and operator, in order. A name is number and kind: "3:CONV_2D".

    Operators that only change the precision have no number, so that names are the same at any precision.
    """
    from ai_edge_litert import schema_py_generated as schema

    kinds = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    number = 0
    for operator in model.subgraphs[0].operators:
        code = model.operatorCodes[operator.opcodeIndex]
        kind = kinds[max(code.builtinCode, code.deprecatedBuiltinCode)]
        if kind in ("QUANTIZE", "DEQUANTIZE"):
            yield kind, operator
        else:
            yield f"{number}:{kind}", operator
            number += 1


def constants(model: Any) -> dict[int, np.ndarray]:
    """The values of the constants that are plain arrays, by tensor."""
    from ai_edge_litert import schema_py_generated as schema

    kinds = {
        schema.TensorType.FLOAT32: np.float32,
        schema.TensorType.INT32: np.int32,
        schema.TensorType.INT64: np.int64,
    }
    found = {}
    for i, tensor in enumerate(model.subgraphs[0].tensors):
        data = model.buffers[tensor.buffer].data
        if data is not None and tensor.type in kinds:
            value = np.frombuffer(np.asarray(data, np.uint8).tobytes(), kinds[tensor.type])
            found[i] = value.reshape(shape(tensor))
    return found


def store(model: Any, index: int, value: np.ndarray) -> None:
    tensor = model.subgraphs[0].tensors[index]
    model.buffers[tensor.buffer].data = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
    tensor.shape = np.array(value.shape, np.int32)


def own(model: Any, operator: Any, position: int) -> int:
    """Copy a constant input of an operator, which other operators may share. Returns the copy's tensor."""
    tensors = model.subgraphs[0].tensors
    tensor = copy.copy(tensors[operator.inputs[position]])
    buffer = copy.copy(model.buffers[tensor.buffer])
    tensor.buffer = len(model.buffers)
    model.buffers.append(buffer)
    tensors.append(tensor)
    operator.inputs = np.array(operator.inputs, np.int32)
    operator.inputs[position] = len(tensors) - 1
    return len(tensors) - 1


def shape(tensor: Any) -> list[int]:
    return [int(size) for size in tensor.shape] if tensor.shape is not None else []
