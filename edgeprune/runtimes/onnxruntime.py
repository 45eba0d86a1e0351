"""ONNX Runtime: the artifact is the ONNX file itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeprune.runtimes.base import NodeTimes, Runtime

# The layout optimiser names a node after its output tensor and the blocked layout; fusions append a token or their name.
SUFFIX = re.compile(r"(_nchwc|_token_\d+|/\w*Fusion/?)+$")


class OnnxRuntime(Runtime):
    """CPU execution provider."""

    name = "onnxruntime"
    packages = ("onnxruntime", "numpy")
    converter = "onnxruntime"
    install = "pip install onnxruntime"

    def convert(self, exported: Path, folder: Path) -> tuple[Path, ...]:
        """Give the file its name."""
        return (exported.rename(folder / "model.onnx"),)

    def node_times(self, nodes: list[Mapping[str, Any]]) -> NodeTimes:
        """Undo the optimiser's renaming."""
        return tuple((SUFFIX.sub("", node["name"]), int(node["ns"])) for node in nodes)
