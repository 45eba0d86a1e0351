"""TensorRT on the host: the artifact is an ONNX file in its precision. Each device builds an engine from it.

Beside model.onnx lies build.json, which says how to build the engine:

    {"precision": "fp32" | "fp16" | "int8", "inputs": [name, ...], "outputs": [name, ...], "builds": number of engines}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeprune.errors import UsageError
from edgeprune.limits import LIMITS
from edgeprune.records import ModelFile
from edgeprune.runtimes.base import Calls, NodeTimes, Runtime, reason, silenced
from edgeprune.runtimes.onnxruntime.device import quiet
from edgeprune.runtimes.onnxruntime.host import halved, quantized
from edgeprune.runtimes.timing import NodeTime

BUILDS = 2  # of an artifact's engine, to use the faster: TensorRT times its kernels, and no two builds are equal
WORKERS = re.compile(r"(^|/)(Conv|ConvTranspose|Gemm|MatMul)(_\d+)?$")  # nodes that do most of a fused layer's work
WRAPPED = re.compile(r"^(PWN\(|Reformatting CopyNode for (Input|Output) Tensor \d+ to )")


class TensorRt(Runtime):
    """NVIDIA GPUs and, with [runtime] dla, their deep-learning accelerator."""

    name = "tensorrt"
    loads = (".onnx",)
    packages = ()  # JetPack installs it, not pip
    converter = quantizer = "onnxruntime"
    deadline_s = LIMITS.engine_s
    engines = BUILDS
    slow_calls = True  # trtexec starts a process for each
    install = "on a Jetson: sudo apt install tensorrt"

    def convert(
        self, exported: Path, folder: Path, precision: str = "fp32", samples: Calls = (), exact: bool = True
    ) -> tuple[Path, ...]:
        """See `Runtime.convert`.

        fp16 means tensors of 16 bits. int8 means symmetric pairs of quantise and dequantise. TensorRT accepts no zero points
        and no quantised biases. It wants weights in fp32 before a pair of quantise and dequantise.
        """
        import onnx

        path = folder / "model.onnx"
        graph = onnx.load(exported, load_external_data=False).graph
        constant = {tensor.name for tensor in graph.initializer}
        build = {
            "precision": precision,
            "inputs": [value.name for value in graph.input if value.name not in constant],
            "outputs": [value.name for value in graph.output],
            "builds": BUILDS if exact else 1,
        }
        try:
            quiet()
            with silenced():
                if precision == "fp32":
                    exported.rename(path)
                elif precision == "fp16":
                    halved(exported, path)
                else:
                    symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True}
                    pairs = {"AddQDQPairToWeight": True, "QuantizeBias": False, "DedicatedQDQPair": True}
                    quantized(exported, path, samples, "QInt8", **symmetric, **pairs)
        except Exception as error:  # the tools' exceptions have no base class of their own
            raise UsageError(f"onnxruntime cannot make the model {precision}: {reason(error)}") from error
        exported.unlink(missing_ok=True)
        (folder / "build.json").write_text(json.dumps(build))
        return path, folder / "build.json"

    def complete(self, model: Path, known: ModelFile, shapes: Sequence[tuple[int, ...]]) -> Path:
        """Write how to build the engine. It is built for these shapes."""
        if any(one.shape != shape for one, shape in zip(known.inputs, shapes, strict=True)):
            _fix_shapes(model, {one.name: shape for one, shape in zip(known.inputs, shapes, strict=True)})
        names = [one.name for one in known.inputs]
        build = {"precision": known.precision, "inputs": names, "outputs": list(known.outputs), "builds": BUILDS}
        (model.parent / "build.json").write_text(json.dumps(build))
        return model

    def files(self, model: Path) -> tuple[Path, ...]:
        """The network, and beside it how to build its engine."""
        return model, model.with_name("build.json")

    def node_times(self, nodes: Sequence[NodeTime]) -> NodeTimes:
        """Name a layer after the ONNX node that does the most work in it.

        Since 8.6 the engine reports the nodes of a layer. Before, the layer's name holds them, as in "a + b" or "PWN(a, b)". A
        layer without known nodes keeps its name.
        """
        return tuple((_worker(node.fused or _members(node.name)), node.ns) for node in nodes)


def _fix_shapes(model: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give the inputs of an ONNX file these shapes. The shapes of other values follow from them."""
    import onnx

    proto = onnx.load(model, load_external_data=False)
    del proto.graph.value_info[:]
    for value in proto.graph.input:
        if value.name in shapes:
            tensor = value.type.tensor_type
            del tensor.shape.dim[:]
            for size in shapes[value.name]:
                tensor.shape.dim.add().dim_value = size
    for value in proto.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.Clear()  # its name would bind it to an input's old dimension
    model.unlink()  # it may be a link to the user's file
    onnx.save(proto, model)


def _members(name: str) -> list[str]:
    """The nodes in a layer's name."""
    if name.startswith("{"):  # {ForeignNode[first...last]}: a region, named after two of its nodes
        return [name]
    while WRAPPED.match(name):
        name = WRAPPED.sub("", name)
    return [part.strip(" ()") for part in re.split(r" \+ | \|\| |, |PWN\(", name) if part.strip(" ()")] or [name]


def _worker(names: Sequence[str]) -> str:
    return next((name for name in names if WORKERS.search(name)), names[0])


RUNTIME = TensorRt()
