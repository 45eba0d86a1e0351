"""OpenVINO on the host: the artifact is its intermediate representation, model.xml and model.bin."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeprune.errors import UsageError
from edgeprune.records import ModelFile
from edgeprune.runtimes.base import Calls, NodeTimes, Runtime, reason, silenced
from edgeprune.runtimes.timing import NodeTime

# What NNCF and the CPU plug-in append to the names of nodes that they split or add.
SUFFIX = re.compile(r"(/WithoutBiases|/DequantizationMultiply|/fq_(output|weights|input)_\d+)+$")


class OpenVino(Runtime):
    """CPU plug-in."""

    name = "openvino"
    own = ".xml"
    loads = (".onnx", ".xml")
    packages = ("openvino", "numpy")
    converter = "openvino"
    quantizer = "nncf"
    install = "pip install 'edgeprune[openvino]'"

    def convert(
        self, exported: Path, folder: Path, precision: str = "fp32", samples: Calls = (), exact: bool = True
    ) -> tuple[Path, ...]:
        """See `Runtime.convert`. The option INFERENCE_PRECISION_HINT in the file sets the precision for the device.

        fp32 stays fp32: by default OpenVINO would save the weights rounded to fp16.
        """
        self.require(precision)
        import openvino

        try:
            # Not `convert_model`: it sends telemetry (openvino-telemetry) and adds nothing for ONNX.
            model = openvino.Core().read_model(exported)
        except RuntimeError as error:
            raise UsageError(f"openvino cannot convert the model: {_telling(error)}") from error
        if precision == "int8":
            model = _quantized(model, samples, exact)
        model.set_rt_info("f16" if precision == "fp16" else "f32", ["runtime_options", "INFERENCE_PRECISION_HINT"])
        openvino.save_model(model, folder / "model.xml", compress_to_fp16=precision == "fp16")
        exported.unlink()
        return folder / "model.xml", folder / "model.bin"

    def model_file(self, path: Path) -> ModelFile:
        """See `Runtime.model_file`."""
        from edgeprune.runtimes.openvino import ir

        return ir.read(path)

    def files(self, model: Path) -> tuple[Path, ...]:
        """The network, and its weights beside it."""
        return model, model.with_suffix(".bin")

    def node_times(self, nodes: Sequence[NodeTime]) -> NodeTimes:
        """The first fused name is that of the layer. A node without fused names keeps its name."""
        return tuple((SUFFIX.sub("", next(iter(node.fused), node.name)), node.ns) for node in nodes)


def _telling(error: RuntimeError) -> str:
    """The lines of an error of OpenVINO that say what is wrong. The lines before them name its own files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    at = next((i for i, line in enumerate(lines) if line.startswith("-- ")), len(lines) - 1)
    operator, named, _ = lines[at].removeprefix("-- ").partition(" with a message:")
    reasons = list(itertools.takewhile(lambda line: not line.startswith(("-- ", "Summary")), lines[at + 1 :]))
    return (f"{operator}: {reasons[-1]}" if named and reasons else operator)[:200]


def _quantized(model: Any, samples: Calls, exact: bool) -> Any:
    os.environ["NNCF_CI"] = "1"  # or it sends telemetry
    with silenced():
        import nncf

        names = [port.get_any_name() for port in model.inputs]
        calls = [dict(zip(names, call, strict=True)) for call in samples]
        try:
            return nncf.quantize(
                model,
                nncf.Dataset(calls),
                subset_size=len(calls),
                advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=not exact),
            )
        except Exception as error:
            raise UsageError(f"nncf cannot quantise the model: {reason(error)}") from error


RUNTIME = OpenVino()
