"""OpenVINO: the artifact is its intermediate representation, model.xml and model.bin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeprune.errors import UsageError
from edgeprune.runtimes.base import NodeTimes, Runtime


class OpenVino(Runtime):
    """CPU plug-in; weights stay fp32 on disk."""

    name = "openvino"
    packages = ("openvino", "numpy")
    converter = "openvino"
    install = "pip install 'edgeprune[openvino]'"

    def convert(self, exported: Path, folder: Path) -> tuple[Path, ...]:
        """Convert, and keep fp32: by default saving would round the weights to fp16."""
        self.require()
        import openvino

        try:
            # Not `convert_model`: it calls home (openvino-telemetry) and adds nothing for ONNX.
            model = openvino.Core().read_model(exported)
        except RuntimeError as error:
            raise UsageError(f"openvino cannot convert the model: {str(error).strip().splitlines()[0]}") from error
        openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
        exported.unlink()
        return folder / "model.xml", folder / "model.bin"

    def node_times(self, nodes: list[Mapping[str, Any]]) -> NodeTimes:
        """The first of the fused names is the layer's; a node without any keeps its own name."""
        return tuple(
            (next(iter(node["fused"]), node["name"]).removesuffix("/WithoutBiases"), int(node["ns"])) for node in nodes
        )
