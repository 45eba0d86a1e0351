"""OpenVINO on a device: the CPU, one stream."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from ..device import Array, Failed, Model, Options, Runtime
from ..timing import NodeTime, Timing, repeat

PRECISION = ["runtime_options", "INFERENCE_PRECISION_HINT"]


def module() -> Any:
    """The Python module."""
    try:
        import openvino
    except ImportError as error:
        raise Failed("runtime-missing", f"openvino cannot be imported: {error}") from error
    return openvino


class OpenVinoModel(Model):
    """A compiled model with one request.

    It runs in the precision that the file asks for: a processor with bf16 would otherwise use bf16.
    """

    def __init__(self, path: str, options: Options, profiling: bool = False) -> None:
        self._openvino = module()
        settings = {
            "INFERENCE_NUM_THREADS": options.threads * options.streams,
            "NUM_STREAMS": options.streams,
            "PERFORMANCE_HINT": "LATENCY" if options.streams == 1 else "THROUGHPUT",
            "PERF_COUNT": profiling,
        }
        try:
            core = self._openvino.Core()
            network = core.read_model(path)
            precision = str(network.get_rt_info(PRECISION).astype(str)) if network.has_rt_info(PRECISION) else "f32"
            self.compiled = core.compile_model(network, "CPU", dict(settings, INFERENCE_PRECISION_HINT=precision))
        except RuntimeError as error:
            raise Failed("load", f"openvino cannot load the model: {error}") from error
        self._request = self.compiled.create_infer_request()
        self._inputs: list[Array] = []

    def feed(self, inputs: Sequence[Array]) -> None:
        """Share the arrays with the request: a run reads them in place."""
        self._inputs = list(inputs)
        for i, array in enumerate(self._inputs):
            self._request.set_input_tensor(i, self._openvino.Tensor(array, shared_memory=True))

    def run(self) -> object:
        """One inference of the request."""
        return self._request.infer()

    def call(self, inputs: Sequence[Array]) -> list[Array]:
        """One inference; the outputs are copies."""
        results = self._request.infer(list(inputs))
        return [results[i].copy() for i in range(len(self.compiled.outputs))]

    def twin(self) -> OpenVinoModel:
        """Another request of the compiled model."""
        twin = copy.copy(self)
        twin._request = self.compiled.create_infer_request()
        return twin

    def mean_ns(self) -> dict[tuple[str, str], float]:
        """Nanoseconds of every executed node, by name and kind: the mean over all runs since the model was compiled."""
        return {
            (node.node_name, node.node_type): node.real_time.total_seconds() * 1e9
            for node in self._request.profiling_info
            if node.status == node.EXECUTED
        }

    def fused(self) -> dict[str, tuple[str, ...]]:
        """The names of the nodes that each executed node stands for."""
        found = {}
        for op in self.compiled.get_runtime_model().get_ordered_ops():
            info = op.get_rt_info()
            names = str(info["originalLayersNames"].astype(str)) if "originalLayersNames" in info else ""
            found[str(op.get_friendly_name())] = tuple(name for name in names.split(",") if name)
        return found


class OpenVino(Runtime):
    """The package openvino."""

    optional = ("openvino.tools.ovc",)  # its converter of models takes two thirds of the import

    def version(self) -> str:
        """The package's version without its build."""
        return str(module().__version__).split("-")[0]

    def load(self, path: str, options: Options) -> OpenVinoModel:
        """Compile the model for the CPU."""
        return OpenVinoModel(path, options)

    def profile(self, path: str, options: Options, inputs: Sequence[Array], timing: Timing) -> list[NodeTime]:
        """Time every executed node: the mean of its runs."""
        model = OpenVinoModel(path, options, profiling=True)
        model.feed(inputs)
        model.run()
        first = model.mean_ns()
        runs = 1

        def counted() -> None:
            nonlocal runs
            model.run()
            runs += 1

        repeat(counted, timing)
        fused = model.fused()
        return [
            NodeTime(node[0], without_first(mean, runs, first.get(node, 0)), fused.get(node[0], ()), node[1])
            for node, mean in model.mean_ns().items()
        ]


def without_first(mean: float, runs: int, first: float) -> int:
    """The mean of all runs but the first. The first run allocates memory and may take ten times as long."""
    return max(0, round((runs * mean - first) / (runs - 1)))


RUNTIME = OpenVino()
