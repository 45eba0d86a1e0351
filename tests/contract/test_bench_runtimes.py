"""Every runtime measures files that a user brings: load time, kinds of operators, and several streams."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from modelfiles import write_ncnn, write_onnx, write_tflite
from torch import nn

from edgeprune.devices.patience import Patience
from edgeprune.frontends.feeds import Given
from edgeprune.pipeline.request import Quiet
from edgeprune.records import Benchmark
from edgeprune.runtimes.formats import FORMATS
from edgeprune.stages import bench

KINDS = {
    "onnxruntime": "FusedConv Conv",
    "openvino": "Convolution",
    "tflite": "TANH",
    "ncnn": "Convolution",
    "executorch": "Fully Connected (NC, F32) GEMM",
    "tensorrt": "Convolution Conv",
}
TARGET = '[connect]\ntransport = "local"\n[runtime]\nname = "{}"\n[expect]\nsimulated = {}\n'
Bench = Callable[..., Benchmark]


@pytest.fixture(
    params=[
        "onnxruntime",
        *(
            pytest.param(one, marks=pytest.mark.slow)
            for one in ("openvino", "tflite", "ncnn", "executorch", "tensorrt")
        ),
    ]
)
def runtime(request: pytest.FixtureRequest, stand_in: Callable[[str], None]) -> str:
    """The real runtimes. TensorRT is a stand-in, since only NVIDIA's devices have it."""
    pytest.importorskip({"tflite": "ai_edge_litert", "tensorrt": "onnx"}.get(request.param, request.param))
    if request.param == "tensorrt":
        stand_in("10.3.0")
    return str(request.param)


@pytest.fixture
def measured(runtime: str, tmp_path: Path) -> Bench:
    """Measures a small file with an open batch once, briefly. ncnn takes one sample a call."""
    target = tmp_path / "t.toml"
    target.write_text(TARGET.format(runtime, str(runtime == "tensorrt").lower()))
    if runtime == "executorch":
        path = tmp_path / "m.pte"
        path.write_bytes(FORMATS["pte"].written(nn.Linear(3, 4), (torch.zeros(2, 3),)))
    elif runtime == "ncnn":
        path = write_ncnn(tmp_path / "m.param")
    elif runtime == "tflite":
        path = write_tflite(tmp_path / "m.tflite", (1, 16), (-1, 16))
    else:
        path = write_onnx(tmp_path / "m.onnx", ("n", 3, 64, 64), width=32)

    def measure(**options: object) -> Benchmark:
        given = Given({}, {}, 1 if runtime == "ncnn" else 2)
        asked = bench.Asked((path,), (str(target),), given, seconds=1e-9, **options)  # type: ignore[arg-type]
        found, _ = bench.measure(asked, bench.subjects(asked), Patience(accepting=True), Quiet())
        return found

    return measure


def test_figures_of_a_users_file(measured: Bench, runtime: str) -> None:
    (row,) = measured().files
    assert row.runtime == runtime and row.latency_ms["p50"].mid > 0 and row.peak_memory_bytes > 1 << 20
    assert row.throughput_per_s.mid > 0 and row.size_bytes > 100 and row.simulated == (runtime == "tensorrt")
    # trtexec loads the engine in its own process, and does not report how long that takes.
    assert (row.load_ms is None) == (runtime == "tensorrt")
    assert all(("1x" if runtime == "ncnn" else "2x") in shape for shape in row.inputs.values())


def test_several_streams_run_at_the_same_time(measured: Bench) -> None:
    (row,) = measured(streams=3).files
    assert row.streams == 3 and row.throughput_per_s.mid > 0


def test_operators_have_kinds(measured: Bench, runtime: str) -> None:
    if runtime == "tflite":
        pytest.skip("a file of TFLite with open dimensions cannot be taken apart")
    (row,) = measured(layers=True).files
    assert {one.kind for one in row.operators} & {KINDS[runtime], *KINDS[runtime].split()}, row.operators
    assert row.simulated or sum(one.share for one in row.operators) == pytest.approx(1)
