"""ONNX Runtime: the artifact is the ONNX file itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeprune.runtimes.base import Runtime

# The layout optimiser names a node after its output tensor and the blocked layout; fusions append a token.
SUFFIX = re.compile(r"(_nchwc|_token_\d+)+$")


class OnnxRuntime(Runtime):
    """CPU execution provider."""

    name = "onnxruntime"
    packages = ("onnxruntime", "numpy")
    converter = "onnxruntime"
    install = "pip install onnxruntime"

    def convert(self, exported: Path, folder: Path) -> tuple[Path, ...]:
        """Give the file its name."""
        return (exported.rename(folder / "model.onnx"),)

    def node_times(self, nodes: list[Mapping[str, Any]]) -> dict[str, int]:
        """Undo the optimiser's renaming."""
        times: dict[str, int] = {}
        for node in nodes:
            name = SUFFIX.sub("", node["name"])
            times[name] = times.get(name, 0) + int(node["ns"])
        return times
