"""Small model files, written without torch: ONNX, OpenVINO's format, TFLite and ncnn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Dims = Sequence[int | str]
LAYER = '<layer id="{0}" name="{1}" type="{2}" version="opset1">{3}</layer>'


def write_onnx(path: Path, shape: Dims = (1, 3, 8, 8), width: int = 4, element: int = TensorProto.FLOAT) -> Path:
    """y = relu(w·x), with one 1×1 convolution; other element types pass through an Identity first."""
    x = helper.make_tensor_value_info("x", element, list(shape))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape[0], width, *shape[2:]])
    weight = numpy_helper.from_array(np.ones((width, 3, 1, 1), "float32"), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["y"], name="relu"),
    ]
    return save(path, helper.make_graph(nodes, "g", [x], [y], [weight]))


def write_ncnn(path: Path, width: int = 32) -> Path:
    """The same as a .param and its .bin."""
    lines = [
        "7767517\n3 3",
        "Input x 0 1 x 0=64 1=64 2=3",
        f"Convolution conv 1 1 x c 0={width} 1=1 6={3 * width}",
        "ReLU relu 1 1 c y",
    ]
    path.write_text("\n".join(lines) + "\n")
    path.with_suffix(".bin").write_bytes(bytes(4) + np.ones(3 * width, "float32").tobytes())
    return path


def save(path: Path, graph: onnx.GraphProto) -> Path:
    """A graph as a file of an opset that every runtime reads."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def with_external(path: Path, location: str, offset: str = "0", length: str = "192") -> Path:
    """An ONNX file whose weight lies in the file `location`, 4·3·4·4 bytes of it."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 3, 2, 2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        weight.external_data.add(key=key, value=value)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 7, 7])
    return save(path, helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "g", [x], [y], [weight]))


def write_ir(path: Path, shape: str = "1,3,8,8", element: str = "f32", head: str = "") -> Path:
    """A network of OpenVINO that no OpenVINO wrote: enough to read what it says about itself."""
    layers = [
        LAYER.format(0, "x", "Parameter", f'<data shape="{shape}" element_type="{element}"/>'),
        LAYER.format(1, "relu", "ReLU", ""),
        LAYER.format(2, "y", "Result", ""),
    ]
    path.write_text(f'<?xml version="1.0"?>{head}<net name="n" version="11"><layers>{"".join(layers)}</layers></net>')
    path.with_suffix(".bin").write_bytes(b"")
    return path


def write_tflite(path: Path, shape: Sequence[int] = (1, 16), signature: Sequence[int] = ()) -> Path:
    """y = tanh(x), with one operator of TFLite."""
    from ai_edge_litert import schema_py_generated as schema

    from edgeprune.runtimes.tflite import flatbuffer

    tensors = []
    for name in ("x", "y"):
        tensor = schema.TensorT()
        tensor.name, tensor.type, tensor.buffer = name.encode(), schema.TensorType.FLOAT32, 0
        tensor.shape = np.array(shape, np.int32)
        if signature:
            tensor.shapeSignature = np.array(signature, np.int32)
        tensors.append(tensor)
    operator, code, graph, model = schema.OperatorT(), schema.OperatorCodeT(), schema.SubGraphT(), schema.ModelT()
    operator.inputs, operator.outputs, operator.opcodeIndex = np.array([0], np.int32), np.array([1], np.int32), 0
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.TANH
    code.version = 1
    graph.tensors, graph.operators = tensors, [operator]
    graph.inputs, graph.outputs = np.array([0], np.int32), np.array([1], np.int32)
    model.version, model.subgraphs, model.operatorCodes, model.buffers = 3, [graph], [code], [schema.BufferT()]
    path.write_bytes(flatbuffer.pack(model))
    return path
