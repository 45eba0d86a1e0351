"""The port of runtimes on a device: load a model, run it, and time it.

`runtimes/NAME/device.py` holds `RUNTIME`, its implementation. The agent measures with it, and a release serves with it:
one piece of code loads a model. It travels to devices: standard library only, Python 3.8 and up. Modules that travel import
each other relatively: a release mounts them as a separate package.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, Literal, Sequence, Union

from . import machine
from .timing import NodeTime, Timed, Timing, concurrent, interleaved

Array = Any  # a numpy array; numpy is imported where it is used, since a device may lack it
Fact = Union[int, float, str]
Conditions = Dict[str, Fact]  # the state of a device; a fact that the device does not report is left out
Undo = Callable[[Sequence[Sequence[str]]], None]  # records commands that restore the device

ErrorKind = Literal[
    "busy",
    "damaged",
    "deadline",
    "disk-full",
    "killed",
    "load",
    "malformed",
    "memory",
    "no-ssh-keygen",
    "pip",
    "prepare",
    "refused",
    "run",
    "runtime-missing",
    "system",
    "unhealthy",
    "wheel",
]


class Failed(Exception):
    """A job that the device cannot do; the host acts on `kind`."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind: ErrorKind = kind


@dataclass(frozen=True)
class Options:
    """How a model is loaded.

    Attributes:
        threads: of one inference.
        dla: the core of the deep-learning accelerator, if any.
        streams: how many inferences run at the same time.
    """

    threads: int
    dla: int | None = None
    streams: int = 1


class Model(ABC):
    """A loaded model. Inputs and outputs are numpy arrays, in the order of the model file."""

    @abstractmethod
    def feed(self, inputs: Sequence[Array]) -> None:
        """Set the inputs that `run` reads."""

    @abstractmethod
    def run(self) -> object:
        """Do one inference on the inputs that `feed` set."""

    @abstractmethod
    def call(self, inputs: Sequence[Array]) -> list[Array]:
        """Do one inference on these inputs and return the outputs."""

    @abstractmethod
    def twin(self) -> Model:
        """The same model once more, for an inference at the same time. It shares the weights where the runtime allows it."""


class Runtime(ABC):
    """One runtime on a device."""

    made: tuple[str, ...] = ()  # files of a release that only the device can make, beside the signed ones
    optional: tuple[str, ...] = ()  # modules that the runtime imports if they are there, and that no inference needs

    @abstractmethod
    def version(self) -> str:
        """The installed version. Raises `Failed` of the kind "runtime-missing"."""

    @abstractmethod
    def load(self, path: str, options: Options) -> Model:
        """Load a model file. Raises `Failed` of the kind "load"."""

    @abstractmethod
    def profile(self, path: str, options: Options, inputs: Sequence[Array], timing: Timing) -> list[NodeTime]:
        """Time every node of the file that the host's `instrument` gave."""

    def simulated(self) -> bool:
        """Whether the runtime is a stand-in, so that its times say nothing about the real one."""
        return False

    def conditions(self) -> Conditions:
        """The state of the hardware that this runtime uses, beside what the agent reports of every device."""
        return {}

    def prepare(self, power_mode: str | None, jetson_clocks: bool, undo: Undo) -> None:
        """Bring the device into the state that the target asks for. `undo` is called before every change."""
        raise Failed("prepare", "this runtime cannot set a power mode or clocks; remove [prepare] from the target")

    def measure(
        self, paths: Sequence[str], options: Options, inputs: Sequence[Array], timing: Timing
    ) -> tuple[list[Timed], int]:
        """Time models without a profiler: the runs of each, and the peak memory in bytes."""
        self.version()  # imports the runtime, which is no part of loading a model
        models, spent = [], []
        for path in paths:
            start = time.perf_counter_ns()
            models.append(self.load(path, options))
            spent.append(time.perf_counter_ns() - start)
        for model in models:
            model.feed(inputs)
        found = interleaved([model.run for model in models], timing)
        return [replace(timed, load_ns=ns) for timed, ns in zip(found, spent)], machine.peak_memory()

    def throughput(self, path: str, options: Options, inputs: Sequence[Array], timing: Timing) -> tuple[int, int]:
        """Keep `options.streams` inferences running: how many were completed, and in how many nanoseconds."""
        first = self.load(path, options)
        models = [first, *(first.twin() for _ in range(options.streams - 1))]
        for model in models:
            model.feed(inputs)
        return concurrent([model.run for model in models], timing)

    def repeated(self, path: str, options: Options, inputs: Sequence[Array]) -> Callable[[], object] | None:
        """A function that runs the model once, to its end; None where a run starts a process."""
        model = self.load(path, options)
        model.feed(inputs)
        return model.run

    def make(self, path: str, options: Options) -> dict[str, str]:
        """Make the files of `made` for a model: the place of each."""
        return {}

    def load_release(self, folder: str, model: str, options: Options, version: str) -> Model:
        """Load the model of a release, whose files lie in `folder`; `version` is the runtime's when it was verified."""
        return self.load(os.path.join(folder, model), options)


def find(name: str) -> Runtime:
    """The runtime of this name. Raises `Failed` where there is none."""
    package = __name__.rpartition(".")[0]
    missing = Failed("runtime-missing", f"edgeprune has no runtime {name!r}")
    if not re.fullmatch("[a-z0-9_]+", name):
        raise missing
    try:
        runtime: Runtime = importlib.import_module(f"{package}.{name}.device").RUNTIME
    except ModuleNotFoundError as error:
        raise missing from error
    return runtime


def find_alone(name: str) -> Runtime:
    """`find` in a process that does nothing else: the runtime then does not find its `optional` modules."""
    runtime = find(name)
    for module in runtime.optional:
        sys.modules.setdefault(module, None)  # type: ignore[arg-type] # Python's way to say that a module is missing
    return runtime
