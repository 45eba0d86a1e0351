"""The port of runtimes on the host: make the artifact, and understand the profiler's report."""

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

import numpy as np

from edgeprune.errors import RuntimeMissing, UsageError
from edgeprune.limits import LIMITS
from edgeprune.records import ModelFile, Precision, TargetPrecision
from edgeprune.runtimes.timing import NodeTime

NodeTimes = tuple[
    tuple[str, int], ...
]  # (node of the exported file, nanoseconds) in the order of execution; names may repeat
Calls = Sequence[Sequence[np.ndarray]]  # calls: the inputs of each, in order


class Runtime(ABC):
    """One runtime. Its `device` module runs and measures; the host never measures."""

    name: str
    format: str = "onnx"  # of the file that the artifact is made from: a key of `formats.FORMATS`
    own: str = ""  # the suffix of model files that `model_file` reads, and that this runtime measures by default
    loads: tuple[str, ...]  # suffixes of the model files that the runtime loads as they are
    packages: tuple[str, ...]  # that a device needs, by their names in pip
    complete_packages: bool = False  # `packages` are all that it needs, so pip leaves out what they name themselves
    converter: str  # the package that makes the artifact on the host
    quantizer: str  # the package that lowers the precision on the host
    install: str  # the command that installs it on the host, or on a local device
    deadline_s: float = LIMITS.job_s  # of one job with one model on a device
    separate_profile: bool = False  # `instrument` makes another file, about as large as the model
    engines: int = 0  # that a device builds of one artifact; 0 where the runtime loads the artifact itself
    slow_calls: bool = False  # a call may take far longer than an inference, for instance where it starts a process
    # A target's `precision` and the artifacts that it stands for. The fastest one that is accurate enough is used.
    precisions: Mapping[str, tuple[Precision, ...]] = {"fp32": ("fp32",), "fp16": ("fp16",), "int8": ("int8",)}

    def candidates(self, precision: TargetPrecision) -> tuple[Precision, ...]:
        """The precisions that a target's `precision` stands for; "auto" stands for all, fp32 first.

        Raises:
            UsageError: the runtime does not have this precision.
        """
        if precision == "auto":
            return tuple(name for names in self.precisions.values() for name in names)
        if precision not in self.precisions:
            raise UsageError(f"{self.name} has no {precision}; known: {', '.join(self.precisions)}")
        return self.precisions[precision]

    def exported_as(self, precision: Precision) -> str:
        """The format that an artifact in this precision is made from: a key of `formats.FORMATS`."""
        return self.format

    def require(self, precision: str = "fp32") -> str:
        """The packages that the host needs to compile, with their versions.

        Raises:
            RuntimeMissing: one is not installed; the message names the command that installs it.
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
        """Turn an exported file into the runtime's own. The exported file is used up.

        Args:
            exported: a file of the runtime's `format`.
            folder: gets the artifact.
            precision: one of `candidates`. Inputs and outputs keep their types at any precision.
            samples: at least one call, for "int8": the ranges of its tensors are those of these calls.
            exact: False where only the speed matters, and the outputs may be wrong.

        Returns:
            The file to load first, then the files that belong to it.

        Raises:
            UsageError: the model cannot be converted.
            RuntimeMissing: a package is not installed.
        """

    def model_file(self, path: Path) -> ModelFile:
        """What a file with the suffix `own` says about itself. Files are hostile: they are capped, and not run.

        Raises:
            UsageError: it is damaged or too large, or a file that belongs to it is missing.
            SecurityError: it names a file outside its folder.
            RuntimeMissing: the package that reads this format is not installed.
        """
        raise NotImplementedError

    def files(self, model: Path) -> tuple[Path, ...]:
        """All files of the artifact that is loaded from the file `model`, this file first."""
        return (model,)

    def complete(self, model: Path, known: ModelFile, shapes: Sequence[tuple[int, ...]]) -> Path:
        """Add what a device needs to the user's own model file.

        Args:
            model: a link to the file, alone in a folder. It may be replaced, but not changed.
            known: what the file says about itself.
            shapes: of its inputs.

        Returns:
            The file to load.
        """
        return model

    def instrument(self, model: Path) -> Path:
        """The file to profile for node times. It is the model itself where the runtime has a profiler."""
        return model

    @abstractmethod
    def node_times(self, nodes: Sequence[NodeTime]) -> NodeTimes:
        """Translate the device's profile to the nodes of the exported file; pure.

        A node that stands for several gets the name of the one that does the most work. A node without a counterpart keeps its
        name. A name may also be that of a node's output.
        """


def reason(error: Exception) -> str:
    """What a converter or quantiser raised, in one line of bounded length."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'no reason given'}"


@contextmanager
def silenced() -> Iterator[None]:
    """Silence converters and quantisers: they log to stdout, to the root logger and, in C++, to the descriptors."""
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
        logging.root.handlers[:] = handlers  # a handler that was added meanwhile would write to a closed stream
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)
        os.close(nowhere)
