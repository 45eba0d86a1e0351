"""The port of runtimes, as the host sees them: make the artifact, understand the profiler."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.errors import RuntimeMissing, UsageError
from edgeprune.limits import LIMITS

NodeTimes = tuple[tuple[str, int], ...]  # (node, nanoseconds), in the order of execution; names may repeat
Calls = Sequence[Sequence[np.ndarray]]  # calls: the inputs of each, in order


class Runtime(ABC):
    """One runtime. What runs on the device is the agent's; nothing here measures."""

    name: str
    format: str = "onnx"  # of what it is made from: a key of `formats.FORMATS`
    packages: tuple[str, ...]  # what a device needs of it, as pip knows them
    part: tuple[Path, ...] = ()  # its half on the device, where that is files of its own: the one to load first
    beside: tuple[Path, ...] = ()  # what its runner needs in a release
    converter: str  # the package that makes the artifact on the host
    deadline_s: float = LIMITS.job_s  # of one job with one model on a device
    slow_calls: bool = False  # a call may take far longer than the network, as where each starts a process
    quantizer: str  # the package that lowers the precision on the host
    install: str  # the command that brings it to the host, or to a local device
    # What a target's `precision` may stand for: artifacts of which the fastest that is accurate enough is taken.
    precisions: Mapping[str, tuple[str, ...]] = {"fp32": ("fp32",), "fp16": ("fp16",), "int8": ("int8",)}

    def candidates(self, precision: str) -> tuple[str, ...]:
        """The precisions that a target's `precision` stands for; all of them for "auto", fp32 first."""
        if precision == "auto":
            return tuple(name for names in self.precisions.values() for name in names)
        if precision not in self.precisions:
            raise UsageError(f"{self.name} has no {precision}; known: {', '.join(self.precisions)}")
        return self.precisions[precision]

    def require(self, precision: str = "fp32") -> str:
        """The packages that the host needs to compile, with their versions.

        Raises `RuntimeMissing` naming the extra that brings them.
        """
        packages = dict.fromkeys([self.converter] if precision == "fp32" else [self.converter, self.quantizer])
        return ", ".join(f"{package} {self._version(package)}" for package in packages)

    def _version(self, package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError as error:
            raise RuntimeMissing(f"{package} is not installed; {self.install}") from error

    @abstractmethod
    def convert(
        self, exported: Path, folder: Path, precision: str = "fp32", samples: Calls = (), exact: bool = True
    ) -> tuple[Path, ...]:
        """Turn a file of the runtime's `format` into its own, in `folder`: the file to load first, then what belongs to it.

        `precision` is one of `candidates`; ranges for "int8" are those seen on `samples`, at least one call. Inputs and
        outputs keep their types. Not `exact`: as fast, but its numbers need not be right. The exported file is used up.

        Raises `UsageError` where the model cannot be converted and `RuntimeMissing` where a package is not installed.
        """

    def instrument(self, model: Path) -> Path:
        """The file whose profile gives the node times: the model itself where the runtime has a profiler."""
        return model

    @abstractmethod
    def node_times(self, nodes: list[Mapping[str, Any]]) -> NodeTimes:
        """The agent's report of its profiler -> (name of a node of the exported file or of its output, nanoseconds); pure.

        A node that stands for several is named after the one that did the most work; what has no counterpart keeps its name.
        """


def told(error: Exception) -> str:
    """What a converter or quantiser raised, in one line of bounded length."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'no reason given'}"


@contextmanager
def silenced() -> Iterator[None]:
    """Converters and quantisers tell their steps on stdout, on the root logger and, in C++, on the descriptors."""
    sys.stdout.flush()
    sys.stderr.flush()
    handlers, level = logging.root.handlers[:], logging.root.level
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for descriptor in (1, 2):
            os.dup2(nowhere, descriptor)
        with warnings.catch_warnings(), open(os.devnull, "w") as null, redirect_stdout(null), redirect_stderr(null):
            warnings.simplefilter("ignore")
            logging.root.setLevel(logging.CRITICAL)
            yield
    finally:
        logging.root.setLevel(level)
        logging.root.handlers[:] = handlers  # one that was made here would write to the silence that is over
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)
        os.close(nowhere)
