"""TensorRT's Python module without trtexec, on a fake of its interface (8.5 to 11) and of CUDA's memory.

Nothing here has seen a GPU: it shows that what is asked is asked in order, and that what is fed comes out, through addresses.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from test_engines import compiled

from edgeprune.runtimes.device import Failed, Options
from edgeprune.runtimes.tensorrt import build, tool
from edgeprune.runtimes.tensorrt import engine as engines
from edgeprune.runtimes.tensorrt.device import RUNTIME
from edgeprune.runtimes.tensorrt.trtexec import build_argv
from edgeprune.runtimes.timing import NodeTime, Timing

NPTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


class Memory:
    """CUDA's runtime in this process's own memory: addresses are real ones."""

    def __init__(self) -> None:
        self.stream = ctypes.c_void_p(7)
        self.kept: list[Any] = []
        self.clock = 0.0

    def allocate(self, size: int) -> int:
        self.kept.append(ctypes.create_string_buffer(size))
        return ctypes.addressof(self.kept[-1])

    def to_gpu(self, place: int, array: np.ndarray) -> None:
        ctypes.memmove(place, array.ctypes.data, array.nbytes)

    def from_gpu(self, array: np.ndarray, place: int) -> None:
        ctypes.memmove(array.ctypes.data, place, array.nbytes)

    def event(self) -> list[float]:
        return [0.0]

    def record(self, event: list[float]) -> None:
        self.clock += 1.5
        event[0] = self.clock

    def ms_between(self, first: list[float], second: list[float]) -> float:
        return second[0] - first[0]

    def wait(self) -> None: ...


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.places, self.profiler = engine, {}, None  # type: ignore[var-annotated]

    def set_tensor_address(self, name: str, place: int) -> None:
        self.places[name] = place

    def execute_async_v3(self, stream: int) -> bool:
        session = self.engine.session
        feed = {v.name: self.seen(v) for v in session.get_inputs()}
        for value, result in zip(session.get_outputs(), session.run(None, feed), strict=True):
            ctypes.memmove(self.places[value.name], result.ctypes.data, result.nbytes)
        if self.profiler is not None:
            self.profiler.report_layer_time("/0/Conv + /1/Relu", 0.5)
        return stream == 7

    def seen(self, value: Any) -> np.ndarray:
        array = np.zeros(value.shape, NPTYPES[value.type])
        ctypes.memmove(array.ctypes.data, self.places[value.name], array.nbytes)
        return array


class Engine:
    def __init__(self, plan: bytes) -> None:
        self.session = onnxruntime.InferenceSession(plan.removeprefix(b"plan"), providers=["CPUExecutionProvider"])
        self.known = {v.name: v for v in (*self.session.get_inputs(), *self.session.get_outputs())}

    def get_tensor_shape(self, name: str) -> list[int]:
        return list(self.known[name].shape)

    def get_tensor_dtype(self, name: str) -> str:
        return str(self.known[name].type)

    def create_execution_context(self) -> Context:
        return Context(self)

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda form: json.dumps({"Layers": ["/0/Conv + /1/Relu"]}))


class Module:
    """The part that the agent uses. `flags` are the flags that were set, in order."""

    def __init__(self, version: str) -> None:
        self.__version__, self.flags, self.content = version, [], b""  # type: ignore[var-annotated]
        self.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})
        self.NetworkDefinitionCreationFlag = SimpleNamespace(EXPLICIT_BATCH=0, STRONGLY_TYPED=1)
        self.BuilderFlag = SimpleNamespace(FP16="FP16", INT8="INT8", TF32="TF32", GPU_FALLBACK="GPU_FALLBACK")
        self.DeviceType = SimpleNamespace(DLA="DLA")
        self.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
        self.LayerInformationFormat = SimpleNamespace(JSON="json")
        self.IProfiler = object
        self.layers = [SimpleNamespace(name="conv"), SimpleNamespace(name="pool")]

    def init_libnvinfer_plugins(self, logger: Any, namespace: str) -> None: ...

    def nptype(self, dtype: str) -> type:
        return NPTYPES[dtype]

    def Builder(self, logger: Any) -> Any:
        return SimpleNamespace(
            create_network=self.network, create_builder_config=lambda: self.config, build_serialized_network=self.build
        )

    def network(self, flags: int) -> Any:
        self.flags.append(flags)
        return SimpleNamespace(num_layers=2, get_layer=self.layers.__getitem__)

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        def parse(content: bytes) -> bool:
            self.content = content
            return content != b"none"

        return SimpleNamespace(parse=parse, num_errors=1, get_error=lambda i: "node 3 is none")

    @property
    def config(self) -> Any:
        return SimpleNamespace(
            set_flag=self.flags.append,
            clear_flag=lambda flag: self.flags.append(f"no {flag}"),
            can_run_on_DLA=lambda layer: layer.name == "conv",
            create_timing_cache=lambda known: self.flags.append(("cache", known)),
            set_timing_cache=lambda cache, other: True,
            get_timing_cache=lambda: SimpleNamespace(serialize=lambda: b"timed"),
        )

    def build(self, network: Any, config: Any) -> bytes:
        return b"plan" + self.content

    def Runtime(self, logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: Engine(plan) if plan.startswith(b"plan") else None)


@pytest.fixture(
    params=[pytest.param("8.5.2", marks=pytest.mark.slow), "10.3.0", pytest.param("11.1.0", marks=pytest.mark.slow)]
)
def fake(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    found = Module(request.param)
    monkeypatch.setattr(tool, "trtexec", lambda: None)
    monkeypatch.setattr(tool, "module", lambda version=None: found)
    monkeypatch.setattr(engines, "cuda", Memory)
    monkeypatch.setattr(tool, "KNOWN", {})
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return found


def test_inputs_are_fed_and_runs_are_timed_and_profiled(fake: Module, tmp_path: Path) -> None:
    artifact = compiled(tmp_path / "model", "fp32")
    inputs = [np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype("float32")]
    path, timing = str(artifact.files[0]), Timing(warmup_s=0.01, timed_s=0.01, runs_min=5, runs_max=5)
    model = RUNTIME.load(path, Options(threads=1))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {session.get_inputs()[0].name: inputs[0]})
    np.testing.assert_allclose(model.call(inputs)[0], wanted, rtol=1e-6)
    (timed,), peak = RUNTIME.measure([path], Options(threads=1), inputs, timing)
    assert timed.times_ns == (1500000,) * 5 and timed.copies_ns > 0 and peak > 0
    nodes = RUNTIME.profile(path, Options(threads=1), inputs, timing)
    assert nodes == [NodeTime("/0/Conv + /1/Relu", 500000)]


@pytest.mark.parametrize(("precision", "dla"), [("fp32", None), ("fp16", None), ("int8", None), ("int8", 0)])
def test_precision_is_set_as_for_trtexec(precision: str, dla: int | None, fake: Module, tmp_path: Path) -> None:
    model = compiled(tmp_path / "model", precision).files[0]
    plan = build.engine_of(str(model), Options(1, dla))
    argv = build_argv(tool.known_version()[0], "m", "p", "c", precision, dla)
    asked = {f"--{str(flag).lower()}" for flag in fake.flags if flag in ("FP16", "INT8")}
    assert asked == {flag for flag in argv if flag in ("--fp16", "--int8")}
    strong = tool.known_version()[0] >= (11, 0) or "--stronglyTyped" in argv
    assert (fake.flags[0] == 2) == strong
    assert json.loads(Path(plan[: -len("plan")] + "json").read_text())["fallbacks"] == ([] if dla is None else ["pool"])
    other = "fp16" if precision == "fp32" else "fp32"
    build.engine_of(str(compiled(tmp_path / "other", other).files[0]), Options(1, dla))
    caches = [flag[1] for flag in fake.flags if isinstance(flag, tuple)]
    assert caches == [b"", b"", b"timed", b""]  # one build takes up what is known, the other times all anew


def test_a_model_that_cannot_be_parsed_is_an_error(fake: Module, tmp_path: Path) -> None:
    model = compiled(tmp_path / "model", "fp32").files[0]
    model.write_bytes(b"none")
    with pytest.raises(Failed, match="cannot parse the model: node 3 is none"):
        build.engine_of(str(model), Options(1))
