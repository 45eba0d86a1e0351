"""ONNX Runtime on a device: the CPU, one inference at a time."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from typing import Any

from ..device import Array, Failed, Model, Options, Runtime
from ..timing import NodeTime, Timing, middle_mean, repeat

KERNEL = "_kernel_time"


def quiet() -> Any:
    """The Python module. From 1.32 on it sends telemetry unless the environment forbids it before the import."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def module() -> Any:
    """The Python module, or `Failed`."""
    try:
        found = quiet()
    except ImportError as error:
        raise Failed("runtime-missing", f"onnxruntime cannot be imported: {error}") from error
    found.set_default_logger_severity(3)
    return found


class OnnxModel(Model):
    """A session of the CPU execution provider."""

    def __init__(self, path: str, options: Options, profiling: bool = False) -> None:
        ort = module()
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
        settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        settings.log_severity_level = 3
        settings.enable_profiling = profiling
        settings.profile_file_prefix = os.path.abspath("profile")
        try:
            self.session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # the binding's exceptions have no base class of their own
            raise Failed("load", f"onnxruntime cannot load the model: {error}") from error
        self._names = [value.name for value in self.session.get_inputs()]
        self._fed: dict[str, Array] = {}

    def feed(self, inputs: Sequence[Array]) -> None:
        """Keep the arrays: a run reads them in place."""
        self._fed = dict(zip(self._names, inputs))

    def run(self) -> object:
        """One run of the session."""
        return self.session.run(None, self._fed)

    def call(self, inputs: Sequence[Array]) -> list[Array]:
        """One run of the session."""
        return list(self.session.run(None, dict(zip(self._names, inputs))))

    def twin(self) -> OnnxModel:
        """The session may run in several threads."""
        return copy.copy(self)


class OnnxRuntime(Runtime):
    """The package onnxruntime."""

    def version(self) -> str:
        """The package's version."""
        return str(module().__version__)

    def load(self, path: str, options: Options) -> OnnxModel:
        """Open a session."""
        return OnnxModel(path, options)

    def profile(self, path: str, options: Options, inputs: Sequence[Array], timing: Timing) -> list[NodeTime]:
        """Time every node by the runtime's own profiler.

        The profiler cuts times off to whole microseconds, so half a microsecond is added back.
        """
        model = OnnxModel(path, options, profiling=True)
        model.feed(inputs)
        repeat(model.run, timing)
        report = model.session.end_profiling()
        with open(report) as file:
            events = json.load(file)
        os.unlink(report)
        runs = sum(event.get("name") == "model_run" for event in events)
        nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith(KERNEL)]
        # Every run executes the same nodes in the same order. Nodes that the optimiser added may share a name.
        count = len(nodes) // runs
        return [
            NodeTime(
                node["name"][: -len(KERNEL)],
                middle_mean([1000 * event["dur"] + 500 for event in nodes[i::count]]),
                kind=node["args"]["op_name"],
            )
            for i, node in enumerate(nodes[:count])
        ]


RUNTIME = OnnxRuntime()
