"""ExecuTorch on a device: its Python bindings, on the CPU with XNNPACK."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ..device import Array, Failed, Model, Options, Runtime
from ..timing import NodeTime, Timing, middle_mean, repeat
from .table import Table, root

PROFILED_RUNS = 400  # at most: the profiler keeps every event of every run
HALF = 500  # ns: the profiler cuts times off to whole microseconds
KERNEL = "native_call_"  # before the name of an operator that no delegate executes


def module() -> Any:
    """The bindings. The public module `executorch.runtime` also imports the exporter, which takes seconds."""
    try:
        import torch  # noqa: F401 - the bindings need its libraries
        from executorch.extension.pybindings import _C
    except ImportError as error:
        raise Failed("runtime-missing", f"executorch cannot be imported: {error}") from error
    return _C


class ExecuTorchModel(Model):
    """A method of a program. All programs of a process share one pool of threads."""

    def __init__(self, path: str, options: Options, profiling: bool = False) -> None:
        bindings = module()
        self._path, self._options = path, options
        try:
            bindings._unsafe_reset_threadpool(options.threads)
            self.program = bindings._load_program(
                path, enable_etdump=profiling, program_verification=bindings.Verification.InternalConsistency
            )
            self._method = self.program.load_method(self.program.get_method_name(0))
        except (RuntimeError, ValueError) as error:
            raise Failed("load", f"executorch cannot load the model: {error}") from error
        self._inputs: list[Any] = []

    def feed(self, inputs: Sequence[Array]) -> None:
        """Keep the arrays as tensors."""
        import torch

        self._inputs = [torch.tensor(array) for array in inputs]

    def run(self) -> None:
        """Copy the inputs in and execute the method: the memory of an input may be used again within a run."""
        self._method.set_inputs(self._inputs)
        self._method.execute()

    def call(self, inputs: Sequence[Array]) -> list[Array]:
        """One execution of the method; the outputs are copies."""
        self.feed(inputs)
        self.run()
        return [output.numpy() for output in self._method.get_outputs()]

    def twin(self) -> ExecuTorchModel:
        """Another program: methods of one program share their memory."""
        return ExecuTorchModel(self._path, self._options)


class ExecuTorch(Runtime):
    """The package executorch."""

    def version(self) -> str:
        """The package's version."""
        from importlib.metadata import version

        module()
        return version("executorch")

    def load(self, path: str, options: Options) -> ExecuTorchModel:
        """Load the program."""
        return ExecuTorchModel(path, options)

    def profile(self, path: str, options: Options, inputs: Sequence[Array], timing: Timing) -> list[NodeTime]:
        """Time every operator by the runtime's own profiler (ETDump). Operators come in the order of execution."""
        model = ExecuTorchModel(path, options, profiling=True)
        model.feed(inputs)
        repeat(model.run, replace(timing, runs_max=min(timing.runs_max, PROFILED_RUNS)))
        with tempfile.TemporaryDirectory() as folder:
            report = os.path.join(folder, "model.etdp")
            model.program.write_etdump_result_to_file(report, os.path.join(folder, "debug"))
            with open(report, "rb") as file:
                runs = operators(file.read())
        return [
            NodeTime(name, middle_mean([run[i][1] + HALF for run in runs]), kind=name.partition(" #")[0])
            for i, (name, _) in enumerate(runs[-1])
        ]


def operators(report: bytes) -> list[list[tuple[str, int]]]:
    """The operators of every run in an ETDump, as pairs of name and nanoseconds."""
    return [list(_executed(run)) for run in root(report, 4).tables(1) if run.text(0) == "Execute"]


def _executed(run: Table) -> Iterator[tuple[str, int]]:
    for event in run.tables(3):
        profiled = event.table(0)
        if profiled is not None:
            name = profiled.text(4) or profiled.text(0)
            if profiled.text(4) or name.startswith(KERNEL):
                yield name, profiled.number(7, "Q") - profiled.number(6, "Q")


RUNTIME = ExecuTorch()
