"""TensorRT on a device, by its trtexec, its Python module, or both.

Engines are built on the device, from ONNX, and stay there. trtexec builds and measures where it is installed. The Python
module does inferences, since trtexec starts a process for each. It travels to devices: standard library, Python 3.8 and up.
"""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .. import machine
from ..device import Array, Conditions, Failed, Model, Options, Runtime, Undo
from ..timing import NodeTime, Timed, Timing, concurrent
from . import jetson, tool
from .build import BUILT_S, TIMED_RUNS, engine_of, fallbacks, how_to_build
from .engine import Engine
from .trtexec import (
    Version,
    completed,
    layers_of,
    output_argv,
    outputs_of,
    profile_argv,
    run_argv,
    streams_argv,
    time_argv,
    times_of,
)

PLAN = "engine.plan"  # in a release
CALL_S = 120.0  # of one inference by trtexec


class TrtexecModel(Model):
    """An engine that trtexec runs in a separate process for every call."""

    def __init__(self, plan: str, build: Mapping[str, Any], options: Options, version: Version, folder: str) -> None:
        self._plan, self._build, self._options, self._version = plan, build, options, version
        self._folder = folder
        self._fed: list[tuple[str, str]] = []

    def feed(self, inputs: Sequence[Array]) -> None:
        """Write the inputs as raw bytes. Up to 9, TensorRT makes 32-bit integers of 64-bit ones."""
        self._fed = []
        for name, array in zip(self._build["inputs"], inputs):
            place = os.path.join(self._folder, f"trtexec-input-{len(self._fed)}")
            narrow = array.dtype.name == "int64" and self._version < (10, 0)
            (array.astype("int32") if narrow else array).tofile(place)
            self._fed.append((name, place))

    def run(self) -> None:
        """One inference in a process."""
        self.ask(output_argv("outputs.json"), "run", CALL_S)

    def call(self, inputs: Sequence[Array]) -> list[Array]:
        """One inference in a process; outputs have six digits."""
        self.feed(inputs)
        self.run()
        with tool.understood("trtexec's outputs"):
            return outputs_of(self.read("outputs.json"), self._build["outputs"])

    def twin(self) -> TrtexecModel:
        """Every inference has a process of its own anyway."""
        return copy.copy(self)

    def ask(self, arguments: Sequence[str], doing: str, deadline_s: float = tool.RUN_S) -> int:
        """Run trtexec on the engine: the most memory that it held, in bytes."""
        common = run_argv(self._version, self._plan, self._fed, self._options.dla)
        return tool.run([*common, *arguments], doing, self._folder, deadline_s)[1]

    def read(self, name: str) -> str:
        """A file that trtexec wrote."""
        return tool.read(os.path.join(self._folder, name))


class ModuleModel(Model):
    """An engine in this process; what TensorRT raises becomes `Failed`."""

    def __init__(self, trt: Any, plan: str, build: Mapping[str, Any], options: Options) -> None:
        self._made_of = trt, plan, build, options
        with tool.understood("TensorRT"):
            self.engine = Engine(trt, plan, build, options)

    def feed(self, inputs: Sequence[Array]) -> None:
        """Copy the inputs to the GPU."""
        with tool.understood("TensorRT"):
            self.engine.feed(inputs)

    def run(self) -> None:
        """Start one inference."""
        with tool.understood("TensorRT"):
            self.engine.run()

    def call(self, inputs: Sequence[Array]) -> list[Array]:
        """One inference."""
        with tool.understood("TensorRT"):
            return self.engine.call(inputs)

    def twin(self) -> ModuleModel:
        """Another context, with memory and a stream of its own."""
        return ModuleModel(*self._made_of)

    def complete(self) -> None:
        """One inference, until the GPU has finished it."""
        with tool.understood("TensorRT"):
            self.engine.complete()


class TensorRt(Runtime):
    """TensorRT 8.5 to 11 (trtexec: 8.4 to 11.1)."""

    made = (PLAN,)

    def version(self) -> str:
        """trtexec's version, or the module's where there is no trtexec."""
        return ".".join(map(str, tool.known_version()[0]))

    def simulated(self) -> bool:
        """Whether trtexec is a stand-in."""
        return tool.known_version()[1]

    def conditions(self) -> Conditions:
        """The state of a Jetson, and how long this process takes to build an engine."""
        builds = {"engine_s": round(sum(BUILT_S) / len(BUILT_S), 1)} if BUILT_S else {}
        return {**jetson.conditions(), **builds}

    def prepare(self, power_mode: str | None, jetson_clocks: bool, undo: Undo) -> None:
        """Set a Jetson's power mode and pin its clocks."""
        jetson.prepare(power_mode, jetson_clocks, undo)

    def load(self, path: str, options: Options) -> Model:
        """The model's engine: in this process where TensorRT's module fits, else by trtexec."""
        return _loaded(engine_of(path, options), how_to_build(path), options, tool.known_version()[0], os.getcwd())

    def load_release(self, folder: str, model: str, options: Options, version: str) -> Model:
        """The engine that was built for this release. No other version of TensorRT can load it."""
        work = tempfile.mkdtemp(prefix="edgeprune-")  # the working folder of a server belongs to the server
        build = how_to_build(os.path.join(folder, model))
        loaded = _loaded(os.path.join(folder, PLAN), build, options, tool.parsed(version), work)
        weakref.finalize(loaded, shutil.rmtree, work, True)
        return loaded

    def make(self, path: str, options: Options) -> dict[str, str]:
        """Build the engine."""
        return {PLAN: engine_of(path, options)}

    def measure(
        self, paths: Sequence[str], options: Options, inputs: Sequence[Array], timing: Timing
    ) -> tuple[list[Timed], int]:
        """Time each model in separate processes, one after the other: trtexec takes one engine."""
        found, peak = [], 0
        for path in paths:
            times, copies, most, refused = self._measured(path, options, inputs, min(TIMED_RUNS, timing.runs_max))
            found.append(Timed(tuple(times), copies_ns=copies, fallbacks=refused))
            peak = max(peak, most)
        return found, peak

    def _measured(
        self, path: str, options: Options, inputs: Sequence[Array], iterations: int
    ) -> tuple[list[int], int, int, int]:
        """Nanoseconds by run and of the copies, the peak memory in bytes, and the layers that the DLA could not run."""
        plan = engine_of(path, options)
        model = _measurable(plan, how_to_build(path), options)
        if isinstance(model, ModuleModel):
            with tool.understood("TensorRT"):
                times, copies = model.engine.timed(inputs, iterations)
            return times, copies, machine.peak_memory(), fallbacks(plan)
        model.feed(inputs)
        peak = model.ask(time_argv("times.json", iterations), "time")
        with tool.understood("trtexec's times"):
            times, copies = times_of(model.read("times.json"))
        return times, copies, peak, fallbacks(plan)

    def throughput(self, path: str, options: Options, inputs: Sequence[Array], timing: Timing) -> tuple[int, int]:
        """See `Runtime.throughput`. trtexec keeps the streams running by itself."""
        model = _measurable(engine_of(path, options), how_to_build(path), options)
        if isinstance(model, ModuleModel):
            models = [model, *(model.twin() for _ in range(options.streams - 1))]
            for one in models:
                one.feed(inputs)
            return concurrent([one.complete for one in models], timing)
        model.feed(inputs)
        model.ask(streams_argv(tool.known_version()[0], "streams.json", options.streams, timing.timed_s), "time")
        with tool.understood("trtexec's times"):
            return completed(model.read("streams.json"))

    def repeated(self, path: str, options: Options, inputs: Sequence[Array]) -> Callable[[], object] | None:
        """See `Runtime.repeated`: by the Python module. Without it there is only trtexec."""
        if tool.module() is None:
            return None
        model = ModuleModel(tool.module(), engine_of(path, options), how_to_build(path), options)
        model.feed(inputs)
        return model.complete

    def profile(self, path: str, options: Options, inputs: Sequence[Array], timing: Timing) -> list[NodeTime]:
        """Time every layer of the engine."""
        model = _measurable(engine_of(path, options), how_to_build(path), options)
        if isinstance(model, ModuleModel):
            with tool.understood("TensorRT's profile"):
                return layers_of(*model.engine.profiled(inputs))
        model.feed(inputs)
        model.ask(profile_argv(tool.known_version()[0], "profile.json", "layers.json"), "profile")
        with tool.understood("TensorRT's profile"):
            return layers_of(model.read("profile.json"), model.read("layers.json"))


def _loaded(plan: str, build: Mapping[str, Any], options: Options, version: Version, folder: str) -> Model:
    """An engine of this version of TensorRT, for inferences."""
    trt = tool.module(version)
    if trt is not None:
        return ModuleModel(trt, plan, build, options)
    if tool.trtexec() is None:
        text = ".".join(map(str, version))
        raise Failed("runtime-missing", f"the engine needs TensorRT {text}, which is not installed any more")
    return TrtexecModel(plan, build, options, version, folder)


def _measurable(plan: str, build: Mapping[str, Any], options: Options) -> ModuleModel | TrtexecModel:
    """An engine for measuring: by trtexec where it is installed."""
    if tool.trtexec() is None:
        return ModuleModel(tool.module(), plan, build, options)
    return TrtexecModel(plan, build, options, tool.known_version()[0], os.getcwd())


RUNTIME = TensorRt()
