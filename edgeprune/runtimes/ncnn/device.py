"""ncnn on a device: the CPU.

The precision is in the files: weights in fp16, and in each layer what it must not use (`31=`). So the options stay ncnn's own.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

from ..device import Array, Failed, Model, Options, Runtime
from ..timing import NodeTime, Timing, median, middle_mean, repeat

KEPT = 1  # the type of an extraction that leaves a blob in the layout of its layer


def module() -> Any:
    """The Python module."""
    try:
        import ncnn
    except ImportError as error:
        raise Failed("runtime-missing", f"ncnn cannot be imported: {error}") from error
    return ncnn


class NcnnModel(Model):
    """A network. The samples are in the first dimension of every input and output."""

    def __init__(self, path: str, options: Options) -> None:
        self._ncnn = module()
        self.net = self._ncnn.Net()
        self.net.opt.num_threads = options.threads
        self.net.opt.use_vulkan_compute = False
        weights = path[: -len(".param")] + ".bin"
        for load, file in ((self.net.load_param, path), (self.net.load_model, weights)):
            if load(file) != 0:
                raise Failed("load", f"ncnn cannot load the model: {file} is damaged, or has layers that ncnn lacks")
        self._names, self._results = list(self.net.input_names()), list(self.net.output_names())
        self._whole = [self._is_whole(index) for index in self.net.input_indexes()]
        self._fed: list[Any] = []

    def _is_whole(self, blob: int) -> bool:
        """Whether the layer that reads a blob takes whole numbers, such as the numbers of words."""
        layer = self.net.layers()[self.net.blobs()[blob].consumer]
        return bool(layer.type == "Embed" or (layer.type == "Split" and any(map(self._is_whole, layer.tops))))

    def feed(self, inputs: Sequence[Array]) -> None:
        """Copy the arrays in. ncnn knows whole numbers of 32 bits, in few layers; all other inputs are fp32."""
        arrays = [array.astype("int32" if whole else "float32") for array, whole in zip(inputs, self._whole)]
        self._fed = [self._ncnn.Mat(array, batch_index=0).clone() for array in arrays]

    def begin(self) -> Any:
        """An extractor with the inputs. It runs a layer when a blob of it is extracted."""
        extractor = self.net.create_extractor()
        for name, mat in zip(self._names, self._fed):
            if extractor.input(name, mat) != 0:
                raise Failed("run", f"ncnn refuses the input {name}")
        return extractor

    def run(self) -> list[Any]:
        """Extract all outputs."""
        extractor, found = self.begin(), []
        for name in self._results:
            mat = self._ncnn.Mat()
            if extractor.extract(name, mat) != 0:
                raise Failed("run", f"ncnn cannot compute the output {name}; do the inputs have the right shapes?")
            found.append(mat)
        return found

    def call(self, inputs: Sequence[Array]) -> list[Array]:
        """Extract all outputs."""
        self.feed(inputs)
        return [mat.numpy(batch_index=0).copy() for mat in self.run()]

    def twin(self) -> NcnnModel:
        """The network has no state of a run."""
        return copy.copy(self)

    def extracted(self, blob: str | int, extractor: Any) -> int:
        """The nanoseconds that the extraction of a blob takes."""
        mat = self._ncnn.Mat()
        start = time.perf_counter_ns()
        code = extractor.extract(blob, mat, KEPT)
        spent = time.perf_counter_ns() - start
        if code != 0:
            raise Failed("run", "ncnn cannot compute a layer; do the inputs have the right shapes?")
        mat.release()  # a layer that works in place would otherwise copy it
        return spent


class Ncnn(Runtime):
    """The package ncnn."""

    def version(self) -> str:
        """The package's version."""
        return str(module().__version__)

    def load(self, path: str, options: Options) -> NcnnModel:
        """Load the .param, and the .bin beside it."""
        return NcnnModel(path, options)

    def profile(self, path: str, options: Options, inputs: Sequence[Array], timing: Timing) -> list[NodeTime]:
        """Time every layer: blobs are extracted in order, so each extraction runs one layer.

        An empty call takes about a microsecond. The time of calls that find their blob computed is subtracted.
        """
        model = NcnnModel(path, options)
        model.feed(inputs)
        layers = [layer for layer in model.net.layers() if layer.type != "Input" and layer.tops]
        logs: list[list[int]] = [[] for _ in layers]
        idle: list[int] = []

        def run() -> None:
            extractor = model.begin()
            for layer, log in zip(layers, logs):
                log.append(model.extracted(layer.tops[0], extractor))
            idle.append(model.extracted(layers[-1].tops[0], extractor))

        repeat(run, timing)
        call = median(idle)
        return [
            NodeTime(layer.name, max(0, middle_mean(log) - call), kind=layer.type) for layer, log in zip(layers, logs)
        ]


RUNTIME = Ncnn()
