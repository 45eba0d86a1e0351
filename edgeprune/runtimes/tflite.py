"""TFLite: the artifact is the .tflite file. Its Python shows no profiler, so times by operator come from operators alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune import flatbuffer
from edgeprune.runtimes.base import NodeTimes, Runtime


class TfLite(Runtime):
    """LiteRT on the CPU, with XNNPACK."""

    name = "tflite"
    format = "tflite"
    packages = ("ai-edge-litert", "numpy")
    converter = "litert-torch"
    install = "pip install 'edgeprune[tflite]'"

    def convert(self, exported: Path, folder: Path) -> tuple[Path, ...]:
        """Give the file its name."""
        return (exported.rename(folder / "model.tflite"),)

    def instrument(self, model: Path) -> Path:
        """One file that holds the model cut into its operators: a line of JSON, then a .tflite file an operator.

        The sum of their times is within 3 % of the whole network's (measured on ResNet-18, MobileNetV2 and a transformer).
        """
        path = model.parent / "operators" / "operators.bin"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            parts = _cut(model.read_bytes())
            index = [{"name": name, "bytes": len(content)} for name, content in parts]
            path.write_bytes(b"".join([json.dumps(index).encode(), b"\n", *(content for _, content in parts)]))
        return path

    def node_times(self, nodes: list[Mapping[str, Any]]) -> NodeTimes:
        """As reported: operators by number and kind."""
        return tuple((node["name"], int(node["ns"])) for node in nodes)


def _cut(content: bytes) -> list[tuple[str, bytes]]:
    """(name, file with this operator alone), in order; its inputs that are not constants become the file's."""
    from ai_edge_litert import schema_py_generated as schema

    model = flatbuffer.read(content)
    whole = model.subgraphs[0]
    parts = []
    for name, operator in flatbuffer.operators(model):
        used = list(dict.fromkeys(int(i) for i in [*operator.inputs, *operator.outputs] if i >= 0))
        place = {old: new for new, old in enumerate(used)}
        buffers, tensors = [schema.BufferT()], []
        for old in used:
            tensor = whole.tensors[old]
            data = model.buffers[tensor.buffer].data
            known = schema.TensorT()
            known.__dict__.update(vars(tensor))
            known.buffer = 0
            if data is not None:
                known.buffer = len(buffers)
                buffers.append(model.buffers[tensor.buffer])
            tensors.append(known)
        alone = schema.OperatorT()
        alone.__dict__.update(vars(operator))
        alone.opcodeIndex = 0
        alone.inputs = np.array([place.get(int(i), -1) for i in operator.inputs], np.int32)
        alone.outputs = np.array([place[int(i)] for i in operator.outputs], np.int32)
        subgraph = schema.SubGraphT()
        subgraph.tensors, subgraph.operators = tensors, [alone]
        free = [place[int(i)] for i in operator.inputs if i >= 0 and tensors[place[int(i)]].buffer == 0]
        subgraph.inputs = np.array(list(dict.fromkeys(free)), np.int32)
        subgraph.outputs = alone.outputs
        cut = schema.ModelT()
        cut.version, cut.subgraphs, cut.buffers = model.version, [subgraph], buffers
        cut.operatorCodes = [model.operatorCodes[operator.opcodeIndex]]
        parts.append((name, flatbuffer.pack(cut)))
    return parts
