"""TensorRT: the artifact is an ONNX file that says its precision; the device builds its engine, and keeps it to itself."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from edgeprune.errors import UsageError
from edgeprune.limits import LIMITS
from edgeprune.runtimes.base import Calls, NodeTimes, Runtime, reason, silenced
from edgeprune.runtimes.onnxruntime.host import halved, quantized, quiet
from edgeprune.runtimes.timing import NodeTime

BUILDS = 2  # of an engine that is to be used: kernels are chosen by measuring them, which is never the same twice
WORKERS = re.compile(
    r"(^|/)(Conv|ConvTranspose|Gemm|MatMul)(_\d+)?$"
)  # of nodes fused into one, those that do the work
WRAPPED = re.compile(r"^(PWN\(|Reformatting CopyNode for (Input|Output) Tensor \d+ to )")


class TensorRt(Runtime):
    """NVIDIA GPUs and, where the target asks, their deep-learning accelerator."""

    name = "tensorrt"
    packages = ()  # it comes with JetPack, not from pip
    converter = quantizer = "onnxruntime"
    deadline_s = LIMITS.engine_s
    slow_calls = True  # by trtexec
    install = "on a Jetson: sudo apt install tensorrt"

    def convert(
        self, exported: Path, folder: Path, precision: str = "fp32", samples: Calls = (), exact: bool = True
    ) -> tuple[Path, ...]:
        """See `Runtime.convert`: fp16 tensors, or symmetric pairs of quantise and dequantise. build.json says how to build it.

        TensorRT takes no zero points and no quantised biases, and weights in fp32 before a pair of their own.
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
        except Exception as error:  # the tools' own have no base
            raise UsageError(f"onnxruntime cannot make the model {precision}: {reason(error)}") from error
        exported.unlink(missing_ok=True)
        (folder / "build.json").write_text(json.dumps(build))
        return path, folder / "build.json"

    def node_times(self, nodes: Sequence[NodeTime]) -> NodeTimes:
        """A layer of the engine goes by the ONNX node that does the most work in it; where none is told, it keeps its name.

        Since 8.6 the engine tells them; before, they are in its layers' names: "a + b", "PWN(a, b)", "Reformatting CopyNode
        for Input Tensor 0 to a".
        """
        return tuple((_worker(node.fused or _members(node.name)), node.ns) for node in nodes)


def _members(name: str) -> list[str]:
    """The nodes that a layer of this name was made of."""
    if name.startswith("{"):  # {ForeignNode[first...last]}: a region of which the name tells two
        return [name]
    while WRAPPED.match(name):
        name = WRAPPED.sub("", name)
    return [part.strip(" ()") for part in re.split(r" \+ | \|\| |, |PWN\(", name) if part.strip(" ()")] or [name]


def _worker(names: Sequence[str]) -> str:
    return next((name for name in names if WORKERS.search(name)), names[0])


RUNTIME = TensorRt()
