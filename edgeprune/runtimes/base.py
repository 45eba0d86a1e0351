"""The port of runtimes, as the host sees them: make the artifact, understand the profiler."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Runtime(ABC):
    """One runtime. What runs on the device is the agent's; nothing here measures."""

    name: str
    install: str  # the command that brings it to the host, or to a local device

    @abstractmethod
    def require(self) -> str:
        """The version of what the host needs to compile. Raises `RuntimeMissing` naming the extra that brings it."""

    @abstractmethod
    def convert(self, exported: Path, folder: Path) -> tuple[Path, ...]:
        """Turn an ONNX file into the runtime's own, in `folder`: the file to load first, then what belongs to it.

        The ONNX file is used up.
        """

    @abstractmethod
    def node_times(self, nodes: list[Mapping[str, Any]]) -> dict[str, int]:
        """The agent's report of its profiler -> {name of an ONNX node or of its output: nanoseconds}; pure.

        A node that stands for several is named after the one that did the most work; what has no counterpart keeps its name.
        """
