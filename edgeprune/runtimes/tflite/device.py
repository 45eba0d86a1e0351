"""TFLite on a device: LiteRT or its older package, on the CPU with XNNPACK."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..device import Array, Failed, Model, Options, Runtime
from ..timing import NodeTime, Timing, median, repeat, undisturbed

OPERATOR_RUNS = 50  # of one operator, at most


def module() -> Any:
    """The Python module `interpreter`, by its new name or its old one."""
    try:
        from ai_edge_litert import interpreter
    except ImportError as error:
        try:
            from tflite_runtime import interpreter
        except ImportError:
            raise Failed("runtime-missing", f"ai_edge_litert cannot be imported: {error}") from error
    return interpreter


class TfLiteModel(Model):
    """An interpreter; `source` is `model_path` or `model_content`."""

    def __init__(self, options: Options, **source: Any) -> None:
        try:
            self._interpreter = module().Interpreter(num_threads=options.threads, **source)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise Failed("load", f"tflite cannot load the model: {error}") from error
        self._options, self._source = options, source
        inputs = self._interpreter.get_input_details()
        self._slots = [(detail["index"], detail["dtype"]) for detail in inputs]
        self._shapes = [tuple(detail["shape"]) for detail in inputs]
        self._results = [detail["index"] for detail in self._interpreter.get_output_details()]

    def feed(self, inputs: Sequence[Array]) -> None:
        """Copy the arrays in. The converter makes 32-bit integers of the 64-bit ones that torch counts tokens in.

        An input that the file leaves open gets the shape of its array.
        """
        self._resize(inputs)
        for (slot, dtype), array in zip(self._slots, inputs):
            self._interpreter.set_tensor(slot, array.astype(dtype) if array.dtype.kind == "i" else array)

    def run(self) -> None:
        """One run of the interpreter."""
        self._interpreter.invoke()

    def call(self, inputs: Sequence[Array]) -> list[Array]:
        """One run of the interpreter."""
        self.feed(inputs)
        self.run()
        return [self._interpreter.get_tensor(index) for index in self._results]

    def _resize(self, inputs: Sequence[Array]) -> None:
        if all(array.shape == shape for array, shape in zip(inputs, self._shapes)):
            return
        try:
            for (slot, _), array in zip(self._slots, inputs):
                self._interpreter.resize_tensor_input(slot, array.shape, strict=True)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise Failed("load", f"tflite cannot give the inputs these shapes: {error}") from error
        self._shapes = [array.shape for array in inputs]

    def twin(self) -> TfLiteModel:
        """Another interpreter: one of them runs one inference at a time."""
        return TfLiteModel(self._options, **self._source)

    def fill(self) -> None:
        """Set every input to a constant: its values do not change the time of one operator."""
        for slot, dtype in self._slots:
            self._interpreter.tensor(slot)()[...] = 0.5 if dtype().dtype.kind == "f" else 0


class TfLite(Runtime):
    """The package ai-edge-litert, or tflite-runtime."""

    def version(self) -> str:
        """The package's version, after the package's name where it is the older one."""
        from importlib.metadata import version

        name = str(module().__name__).partition(".")[0].replace("_", "-")
        return version(name) if name == "ai-edge-litert" else f"{name} {version(name)}"

    def load(self, path: str, options: Options) -> TfLiteModel:
        """Open an interpreter."""
        return TfLiteModel(options, model_path=path)

    def profile(self, path: str, options: Options, inputs: Sequence[Array], timing: Timing) -> list[NodeTime]:
        """Time every operator. Python has no profiler here, so the host made a file for each operator."""
        with open(path, "rb") as file, undisturbed():  # to collect garbage takes longer than to time an operator
            operators = json.loads(file.readline())
            share = timing.timed_s / len(operators)
            alone = replace(timing, warmup_s=share, timed_s=share, runs_max=OPERATOR_RUNS)
            found, known = [], {}
            for operator in operators:
                content = file.read(operator["bytes"])
                if content not in known:  # the same operator at the same shapes takes the same time
                    model = TfLiteModel(options, model_content=content)
                    model.fill()
                    known[content] = median(repeat(model.run, alone))
                kind = operator["name"].rpartition(":")[2]
                found.append(NodeTime(operator["name"], known[content], kind=kind))
        return found


RUNTIME = TfLite()
