"""ExecuTorch on a device: its C++ libraries, on the CPU with XNNPACK."""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Iterator, Sequence
from ctypes import addressof, byref, pointer, string_at
from dataclasses import replace

from ..device import Array, ErrorKind, Failed, Model, Options, Runtime
from ..timing import NodeTime, Timing, middle_mean, repeat
from . import bindings
from .table import Table, root

PROFILED_RUNS = 400  # at most: the profiler keeps every event of every run
HALF = 500  # ns: the profiler cuts times off to whole microseconds
KERNEL = "native_call_"  # before the name of an operator that no delegate executes


class ExecuTorchModel(Model):
    """The first method of a program. All programs of a process share one pool of threads."""

    def __init__(self, path: str, options: Options, profiling: bool = False) -> None:
        self._functions = cpp = bindings.functions()
        self._path, self._options = path, options
        self._module, self._tracer = bindings.Object(), bindings.Object() if profiling else None
        if cpp.threads(cpp.threadpool()) != options.threads:
            cpp.set_threads(cpp.threadpool(), options.threads)  # it replaces the pool, which loaded models still use
        nothing = [bindings.Object() for _ in range(3)]  # a tracer and allocators that it would own
        cpp.open(self._module, byref(bindings.text(path)), bindings.MMAP, *nothing, False)
        weakref.finalize(self, cpp.close, self._module)
        if self._tracer is not None:
            cpp.open_trace(self._tracer, bindings.Span())
        _require("load", "executorch cannot load the model", cpp.load(self._module, bindings.CONSISTENT))
        name = byref(bindings.text(_first_method(path)))
        code = cpp.load_method(self._module, name, None, self._tracer, None, bindings.Object())
        _require("load", "executorch cannot load the model", code)
        self._method = cpp.method(self._module, name).method
        self.feed(())

    def feed(self, inputs: Sequence[Array]) -> None:
        """Keep copies of the arrays."""
        import numpy

        self._arrays = [numpy.array(array, order="C") for array in inputs]
        self._tensors = [bindings.tensor(array) for array in self._arrays]
        self._values = (bindings.Value * len(inputs))(
            *[bindings.Value(pointer(one), bindings.TENSOR) for one in self._tensors]
        )
        self._inputs = bindings.Span(addressof(self._values), len(inputs))

    def run(self) -> None:
        """Copy the inputs in and execute the method: the memory of an input may be used again within a run."""
        code = self._functions.set_inputs(self._method, byref(self._inputs))
        _require("run", "executorch refuses the inputs; do they have the right shapes and types?", code)
        _require("run", "executorch cannot execute the model", self._functions.execute(self._method))

    def call(self, inputs: Sequence[Array]) -> list[Array]:
        """One execution of the method; the outputs are copies."""
        self.feed(inputs)
        self.run()
        count = self._functions.outputs_size(self._method)
        return [bindings.copied(self._functions.get_output(self._method, i).contents) for i in range(count)]

    def twin(self) -> ExecuTorchModel:
        """Another program: methods of one program share their memory."""
        return ExecuTorchModel(self._path, self._options)

    def trace(self) -> bytes:
        """What the runtime's own profiler (ETDump) recorded."""
        found = self._functions.trace(self._tracer)
        return string_at(found.data, found.size)


def _first_method(path: str) -> str:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return next((plan.text(0) for plan in root(content).tables(1)), "")


def _require(kind: ErrorKind, problem: str, code: int) -> None:
    if code:
        raise Failed(kind, f"{problem} ({bindings.ERRORS.get(code, f'error {code:#x}')})")


class ExecuTorch(Runtime):
    """The package executorch."""

    def version(self) -> str:
        """The package's version."""
        return str(bindings.functions().version)

    def load(self, path: str, options: Options) -> ExecuTorchModel:
        """Load the program."""
        return ExecuTorchModel(path, options)

    def profile(self, path: str, options: Options, inputs: Sequence[Array], timing: Timing) -> list[NodeTime]:
        """Time every operator by the runtime's own profiler (ETDump). Operators come in the order of execution."""
        model = ExecuTorchModel(path, options, profiling=True)
        model.feed(inputs)
        repeat(model.run, replace(timing, runs_max=min(timing.runs_max, PROFILED_RUNS)))
        runs = operators(model.trace())
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
