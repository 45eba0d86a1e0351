"""An engine of TensorRT in this process, by its Python module and CUDA's runtime library. Raises `RuntimeError`.

It travels to devices: standard library, numpy and TensorRT 8.5 to 11, Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..device import Array, Model, Options
from .trtexec import PROFILED_RUNS, WARM_UP_S


def cuda() -> Cuda:
    """CUDA's runtime library with a stream."""
    places = ["libcudart.so", *sorted(glob.glob("/usr/local/cuda/lib64/libcudart.so*"))]
    for place in [*places, *sorted(glob.glob("/usr/lib/aarch64-linux-gnu/libcudart.so*"))]:
        with contextlib.suppress(OSError):
            return Cuda(ctypes.CDLL(place))
    raise RuntimeError("TensorRT's Python module is here, but libcudart is not")


class Cuda:
    """The functions of CUDA's runtime that feed an engine and time it by events on a stream."""

    def __init__(self, cudart: Any) -> None:
        self._cudart, self.stream = cudart, ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(self.stream))

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._cudart, function)(*arguments)
        if status:
            raise RuntimeError(f"{function}: CUDA's error {status}")

    def allocate(self, size: int) -> int:
        """The address of so many bytes on the GPU."""
        place = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(place), ctypes.c_size_t(size))
        assert place.value is not None
        return place.value

    def to_gpu(self, place: int, array: Array) -> None:
        """Copy an array to the GPU."""
        self._copy(place, array.ctypes.data, array.nbytes, 1)

    def from_gpu(self, array: Array, place: int) -> None:
        """Copy an array back."""
        self._copy(array.ctypes.data, place, array.nbytes, 2)

    def _copy(self, target: int, source: int, size: int, kind: int) -> None:
        pointers = ctypes.c_void_p(target), ctypes.c_void_p(source)
        self._call("cudaMemcpy", *pointers, ctypes.c_size_t(size), ctypes.c_int(kind))

    def event(self) -> Any:
        """A new event."""
        found = ctypes.c_void_p()
        self._call("cudaEventCreate", ctypes.byref(found))
        return found

    def record(self, event: Any) -> None:
        """Put an event on the stream."""
        self._call("cudaEventRecord", event, self.stream)

    def ms_between(self, first: Any, second: Any) -> float:
        """Milliseconds between two events."""
        self._call("cudaEventSynchronize", second)
        found = ctypes.c_float()
        self._call("cudaEventElapsedTime", ctypes.byref(found), first, second)
        return found.value

    def wait(self) -> None:
        """Wait for the stream."""
        self._call("cudaStreamSynchronize", self.stream)


class Engine(Model):
    """An engine that this device built. `build` is its build.json, which orders inputs and outputs."""

    def __init__(self, trt: Any, plan: str, build: Mapping[str, Any], options: Options) -> None:
        import numpy

        self._made_of = trt, plan, build, options
        self._trt, self._gpu, self._build = trt, cuda(), build
        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        if options.dla is not None:
            runtime.DLA_core = options.dla
        with open(plan, "rb") as file:
            self._engine = runtime.deserialize_cuda_engine(file.read())
        if self._engine is None:
            raise RuntimeError("TensorRT cannot load the engine that it built")
        self._runtime = runtime  # it must outlive the engine
        self._context = self._engine.create_execution_context()
        self._places: dict[str, int] = {}
        self._arrays: dict[str, Array] = {}
        for name in [*build["inputs"], *build["outputs"]]:
            dtype = trt.nptype(self._engine.get_tensor_dtype(name))
            self._arrays[name] = numpy.zeros(tuple(self._engine.get_tensor_shape(name)), dtype)
            self._places[name] = self._gpu.allocate(max(1, self._arrays[name].nbytes))
            self._context.set_tensor_address(name, self._places[name])

    def feed(self, inputs: Sequence[Array]) -> None:
        """Copy the inputs to the GPU in the engine's types: TensorRT 8 makes 32-bit integers of 64-bit ones."""
        for name, array in zip(self._build["inputs"], inputs):
            self._arrays[name][...] = array
            self._gpu.to_gpu(self._places[name], self._arrays[name])

    def run(self) -> None:
        """Start one inference on the stream."""
        if not self._context.execute_async_v3(self._gpu.stream.value):
            raise RuntimeError("TensorRT cannot run the engine")

    def call(self, inputs: Sequence[Array]) -> list[Array]:
        """One inference, with the copies there and back."""
        self.feed(inputs)
        self.run()
        self._gpu.wait()
        self._fetch()
        return [self._arrays[name].copy() for name in self._build["outputs"]]

    def twin(self) -> Engine:
        """Another engine of the same plan."""
        return Engine(*self._made_of)

    def complete(self) -> None:
        """One inference, until the GPU has finished it."""
        self.run()
        self._gpu.wait()

    def _fetch(self) -> None:
        for name in self._build["outputs"]:
            self._gpu.from_gpu(self._arrays[name], self._places[name])

    def timed(self, inputs: Sequence[Array], iterations: int) -> tuple[list[int], int]:
        """Nanoseconds on the GPU by run, between two events on its stream; and the median nanoseconds of the copies."""
        clock = time.perf_counter
        before, after = self._gpu.event(), self._gpu.event()
        until = clock() + WARM_UP_S
        times, copies = [], []
        while clock() < until:
            self.call(inputs)
        for _ in range(iterations):
            start = clock()
            self.feed(inputs)
            copied = clock() - start
            self._gpu.record(before)
            self.run()
            self._gpu.record(after)
            times.append(max(1, round(1e6 * self._gpu.ms_between(before, after))))
            start = clock()
            self._fetch()
            copies.append(copied + clock() - start)
        return times, round(1e9 * sorted(copies)[len(copies) // 2])

    def profiled(self, inputs: Sequence[Array]) -> tuple[str, str]:
        """What trtexec's --exportProfile and --exportLayerInfo would write."""
        spent: dict[str, list[float]] = {}

        class Profiler(self._trt.IProfiler):  # type: ignore[name-defined,misc]
            def __init__(self) -> None:
                super().__init__()

            def report_layer_time(self, name: str, ms: float) -> None:
                spent.setdefault(name, []).append(ms)

        self.feed(inputs)
        self._context.profiler = Profiler()
        for _ in range(PROFILED_RUNS):
            self.run()
            self._gpu.wait()
        rows = [
            {"name": name, "averageMs": sum(ms) / len(ms), "medianMs": sorted(ms)[len(ms) // 2]}
            for name, ms in spent.items()
        ]
        inspector = self._engine.create_engine_inspector()
        return json.dumps(rows), inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
