"""The port of runtimes, as the host sees them: make the artifact, understand the profiler."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgeprune.errors import RuntimeMissing

NodeTimes = tuple[tuple[str, int], ...]  # (node, nanoseconds), in the order of execution; names may repeat


class Runtime(ABC):
    """One runtime. What runs on the device is the agent's; nothing here measures."""

    name: str
    format: str = "onnx"  # of what it is made from: a key of `formats.FORMATS`
    packages: tuple[str, ...]  # what a device needs of it, as pip knows them
    converter: str  # the package that makes the artifact on the host
    install: str  # the command that brings it to the host, or to a local device

    def require(self) -> str:
        """The version of what the host needs to compile. Raises `RuntimeMissing` naming the extra that brings it."""
        try:
            return version(self.converter)
        except PackageNotFoundError as error:
            raise RuntimeMissing(f"{self.converter} is not installed; {self.install}") from error

    @abstractmethod
    def convert(self, exported: Path, folder: Path) -> tuple[Path, ...]:
        """Turn a file of the runtime's `format` into its own, in `folder`: the file to load first, then what belongs to it.

        The exported file is used up.
        """

    def instrument(self, model: Path) -> Path:
        """The file whose profile gives the node times: the model itself where the runtime has a profiler."""
        return model

    @abstractmethod
    def node_times(self, nodes: list[Mapping[str, Any]]) -> NodeTimes:
        """The agent's report of its profiler -> (name of a node of the exported file or of its output, nanoseconds); pure.

        A node that stands for several is named after the one that did the most work; what has no counterpart keeps its name.
        """
