"""Small ONNX files for tests, written as exporters write them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper
import torch
from torch import Tensor, nn

from edgeprune.graph.trace import exporting
from edgeprune.runtimes.onnxruntime.device import quiet

Shape = Sequence[int | str]


def node(op: str, inputs: str, outputs: str, name: str = "", **attributes: Any) -> onnx.NodeProto:
    """A node; names of values are separated by spaces, and "-" is an input that is left out."""
    given = ["" if one == "-" else one for one in inputs.split()]
    return oh.make_node(op, given, outputs.split(), name or outputs.split()[0], **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Shape],
    outputs: Sequence[str],
    weights: Mapping[str, np.ndarray] | None = None,
    opset: int = 17,
    kind: int = onnx.TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A file's message. Shapes of results are left out, as they may be."""
    graph = oh.make_graph(
        list(nodes),
        "network",
        [oh.make_tensor_value_info(name, kind, list(shape)) for name, shape in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()],
    )
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset)], ir_version=8 if opset < 21 else 10)


def saved(path: Path, proto: onnx.ModelProto) -> Path:
    """The file of a message."""
    path.write_bytes(proto.SerializeToString())
    return path


def exported(path: Path, network: nn.Module, inputs: tuple[Tensor, ...], dynamo: bool = False, **options: Any) -> Path:
    """A network as one of PyTorch's two exporters writes it."""
    buffer = io.BytesIO()
    with exporting(), torch.enable_grad():  # without gradients torch's transformer calls a kernel that no file can hold
        if dynamo:
            program = torch.onnx.export(network.eval(), inputs, dynamo=True, verbose=False, **options)
            assert program is not None
            program.save(str(path))
            return path
        torch.onnx.export(network.eval(), inputs, buffer, dynamo=False, **{"opset_version": 17, **options})
    path.write_bytes(buffer.getvalue())
    return path


def computed(path: Path, inputs: Sequence[Tensor]) -> list[np.ndarray]:
    """What ONNX Runtime computes."""
    session = quiet().InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {value.name: tensor.numpy() for value, tensor in zip(session.get_inputs(), inputs, strict=True)}
    return list(session.run(None, feed))


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    """Random weights, near 1 in size after a layer."""
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    return (np.random.default_rng(seed).standard_normal(shape) / fan_in**0.5).astype(np.float32)
