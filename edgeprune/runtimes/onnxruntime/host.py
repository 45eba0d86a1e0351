"""ONNX Runtime on the host: the artifact is the ONNX file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from edgeprune.errors import UsageError
from edgeprune.records import ModelFile
from edgeprune.runtimes.base import Calls, NodeTimes, Runtime, reason, silenced
from edgeprune.runtimes.onnxruntime.device import quiet
from edgeprune.runtimes.timing import NodeTime

# What ONNX Runtime adds to the names of nodes. Its layout optimiser names a node after its output tensor and the blocked
# layout. Fusions add a word in front, a token or their name. Casts and quantisers are named after their tensor.
ADDED = re.compile(
    r"^(fused |InsertedPrecisionFreeCast_)+|(_nchwc|_token_\d+|/\w*Fusion/?|_(Dequantize|Quantize)Linear(_\d+)?)+$"
)


class OnnxRuntime(Runtime):
    """CPU execution provider."""

    name = "onnxruntime"
    own = ".onnx"
    loads = (".onnx",)
    packages = ("onnxruntime", "numpy")
    converter = quantizer = "onnxruntime"
    install = "pip install onnxruntime"

    def convert(
        self, exported: Path, folder: Path, precision: str = "fp32", samples: Calls = (), exact: bool = True
    ) -> tuple[Path, ...]:
        """See `Runtime.convert`.

        fp16 means tensors of 16 bits. int8 means pairs of quantise and dequantise (QDQ) around every operator.
        """
        path = folder / "model.onnx"
        if precision == "fp32":
            exported.rename(path)
            if exact:
                _require_kernels(path)
            return (path,)
        try:
            quiet()
            with silenced():
                if precision == "fp16":
                    halved(exported, path)
                else:
                    # The kernels of x86 and ARM multiply unsigned bytes by signed ones.
                    quantized(exported, path, samples, "QUInt8")
        except Exception as error:  # the tools' exceptions have no base class of their own
            raise UsageError(f"onnxruntime cannot make the model {precision}: {reason(error)}") from error
        exported.unlink()
        return (path,)

    def model_file(self, path: Path) -> ModelFile:
        """See `Runtime.model_file`."""
        from edgeprune.runtimes.files import onnx

        return onnx.read(path)

    def node_times(self, nodes: Sequence[NodeTime]) -> NodeTimes:
        """Remove what ONNX Runtime added to the names."""
        return tuple((ADDED.sub("", node.name), node.ns) for node in nodes)


def _require_kernels(path: Path) -> None:
    """Raises `UsageError` if this machine's ONNX Runtime has no kernel for one of the model's operators."""
    onnxruntime = quiet()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the binding's exceptions have no base class of their own
        raise UsageError(f"onnxruntime cannot run the model: {reason(error)}") from error


def halved(exported: Path, path: Path) -> None:
    """Write the model with tensors of 16 bits inside. Inputs and outputs keep their types."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = convert_float_to_float16(onnx.load(exported), keep_io_types=True)
    OnnxModel(model).topological_sort()  # the converter appends casts, and the ONNX standard wants a sorted graph
    onnx.save(model, path)


def quantized(exported: Path, path: Path, samples: Calls, activations: str, **extra: bool) -> None:
    """Write the model with pairs of quantise and dequantise around its operators. Weights are signed bytes, by channel."""
    from onnxruntime import quantization

    quantization.quantize_static(
        exported,
        path,
        _Reader(exported, samples),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType[activations],
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        extra_options=extra,
    )


class _Reader:
    """Gives the calibrator one call after the other."""

    def __init__(self, exported: Path, samples: Calls) -> None:
        import onnx

        names = [value.name for value in onnx.load(exported, load_external_data=False).graph.input]
        self._calls: Iterator[dict[str, np.ndarray]] = (dict(zip(names, call, strict=True)) for call in samples)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._calls, None)


RUNTIME = OnnxRuntime()
