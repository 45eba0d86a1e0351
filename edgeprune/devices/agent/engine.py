"""An engine of TensorRT's in this process, by its Python module and CUDA's runtime library. Stands alone: the agent measures
with it, and a release runs with it. Standard library, numpy, TensorRT 8.5 to 11; Python 3.8 and up. Raises `RuntimeError`.
"""

import contextlib
import ctypes
import glob
import json
import re
import time

WARM_UP_S = 0.2
PROFILED_RUNS = 100


def cuda():
    """CUDA's runtime library, on a stream of its own."""
    places = ["libcudart.so", *sorted(glob.glob("/usr/local/cuda/lib64/libcudart.so*"))]
    for place in [*places, *sorted(glob.glob("/usr/lib/aarch64-linux-gnu/libcudart.so*"))]:
        with contextlib.suppress(OSError):
            return Cuda(ctypes.CDLL(place))
    raise RuntimeError("TensorRT's Python module is here, but libcudart is not")


class Cuda:
    """What it takes of CUDA's runtime to feed an engine, and to time it by events on its stream."""

    def __init__(self, cudart):
        self.cudart, self.stream = cudart, ctypes.c_void_p()
        self.ask("cudaStreamCreate", ctypes.byref(self.stream))

    def ask(self, function, *arguments):
        status = getattr(self.cudart, function)(*arguments)
        if status:
            raise RuntimeError("%s: CUDA's error %d" % (function, status))

    def room(self, size):
        """The address of so many bytes on the GPU."""
        place = ctypes.c_void_p()
        self.ask("cudaMalloc", ctypes.byref(place), ctypes.c_size_t(size))
        return place.value

    def to_gpu(self, place, array):
        self.copy(place, array.ctypes.data, array.nbytes, 1)

    def from_gpu(self, array, place):
        self.copy(array.ctypes.data, place, array.nbytes, 2)

    def copy(self, target, source, size, kind):
        pointers = ctypes.c_void_p(target), ctypes.c_void_p(source)
        self.ask("cudaMemcpy", *pointers, ctypes.c_size_t(size), ctypes.c_int(kind))

    def event(self):
        found = ctypes.c_void_p()
        self.ask("cudaEventCreate", ctypes.byref(found))
        return found

    def record(self, event):
        self.ask("cudaEventRecord", event, self.stream)

    def ms_between(self, first, second):
        self.ask("cudaEventSynchronize", second)
        found = ctypes.c_float()
        self.ask("cudaEventElapsedTime", ctypes.byref(found), first, second)
        return found.value

    def wait(self):
        self.ask("cudaStreamSynchronize", self.stream)


class Engine:
    """A plan that was built on this device; `build` names its inputs and outputs in order."""

    def __init__(self, trt, gpu, plan, build, dla=None):
        import numpy

        self.trt, self.gpu, self.build, self.numpy = trt, gpu, build, numpy
        self.runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        if dla is not None:
            self.runtime.DLA_core = dla
        with open(plan, "rb") as file:
            self.engine = self.runtime.deserialize_cuda_engine(file.read())
        if self.engine is None:
            raise RuntimeError("TensorRT cannot load the engine that it built")
        self.context = self.engine.create_execution_context()
        self.places, self.arrays = {}, {}
        for name in [*build["inputs"], *build["outputs"]]:
            dtype = trt.nptype(self.engine.get_tensor_dtype(name))
            self.arrays[name] = numpy.zeros(tuple(self.engine.get_tensor_shape(name)), dtype)
            self.places[name] = gpu.room(max(1, self.arrays[name].nbytes))
            self.context.set_tensor_address(name, self.places[name])

    def feed(self, arrays):
        """Inputs go in as the engine has them: TensorRT 8 makes 32-bit integers of 64-bit ones."""
        for name, array in zip(self.build["inputs"], arrays):
            self.arrays[name][...] = array
            self.gpu.to_gpu(self.places[name], self.arrays[name])

    def run(self):
        if not self.context.execute_async_v3(self.gpu.stream.value):
            raise RuntimeError("TensorRT cannot run the engine")

    def fetch(self):
        for name in self.build["outputs"]:
            self.gpu.from_gpu(self.arrays[name], self.places[name])

    def call(self, arrays):
        self.feed(arrays)
        self.run()
        self.gpu.wait()
        self.fetch()
        return [self.arrays[name].copy() for name in self.build["outputs"]]

    def timed(self, arrays, iterations):
        """Nanoseconds on the GPU by run, between two events on its stream, and the median of the copies."""
        clock = time.perf_counter
        before, after = self.gpu.event(), self.gpu.event()
        until, times, copies = clock() + WARM_UP_S, [], []
        while clock() < until:
            self.call(arrays)
        for _ in range(iterations):
            start = clock()
            self.feed(arrays)
            copied = clock() - start
            self.gpu.record(before)
            self.run()
            self.gpu.record(after)
            times.append(max(1, round(1e6 * self.gpu.ms_between(before, after))))
            start = clock()
            self.fetch()
            copies.append(copied + clock() - start)
        return times, round(1e9 * sorted(copies)[len(copies) // 2])

    def profiled(self, arrays):
        """What trtexec's --exportProfile and --exportLayerInfo would say."""
        spent = {}

        class Profiler(self.trt.IProfiler):
            def __init__(self):
                super().__init__()

            def report_layer_time(self, name, ms):
                spent.setdefault(name, []).append(ms)

        self.feed(arrays)
        self.context.profiler = Profiler()
        for _ in range(PROFILED_RUNS):
            self.run()
            self.gpu.wait()
        rows = [
            {"name": name, "averageMs": sum(ms) / len(ms), "medianMs": sorted(ms)[len(ms) // 2]}
            for name, ms in spent.items()
        ]
        inspector = self.engine.create_engine_inspector()
        return json.dumps(rows), inspector.get_engine_information(self.trt.LayerInformationFormat.JSON)


def outputs_of(text, names):
    """The outputs of trtexec's last run, in this order, from its --exportOutput: fp32 arrays, six digits."""
    import numpy

    found = {}
    for output in json.loads(re.sub(r"(?<=[\[,\s])-?nan(?=[\],\s])", "NaN", text)):
        shape = [int(size) for size in output["dimensions"].split("x")]
        found[output["name"]] = numpy.array(output["values"], "float32").reshape(shape)
    return [found[name] for name in names]
