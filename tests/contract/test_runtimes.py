"""Every runtime keeps the same promises, on its real software."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune import runtimes
from edgeprune.agent import agent
from edgeprune.bench import Bench, interleaved, open_bench
from edgeprune.errors import DeviceError, UsageError
from edgeprune.types import Target

RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.standard_normal((16, 3, 1, 1)).astype("float32")


def pointwise(path: Path) -> Path:
    """y = relu(w·x): one 1×1 convolution, so that numpy knows the answer."""
    value = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 3, 8, 8]), ("y", [1, 16, 8, 8]))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv_out"], name="/layer/Conv"),
        helper.make_node("Relu", ["conv_out"], ["y"], name="/layer/Relu"),
    ]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], [numpy_helper.from_array(WEIGHT, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(params=["onnxruntime", "openvino"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    pytest.importorskip(request.param)
    target = Target(tmp_path / "t.toml", "t", "local", request.param)
    with open_bench(target, tmp_path) as opened:
        return opened


def built(bench: Bench, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    files = runtimes.RUNTIMES[bench.device.runtime].convert(pointwise(tmp_path / "exported.onnx"), folder)
    assert all(file.parent == folder and file.stat().st_size for file in files)
    return files[0]


def test_outputs_agree_with_numpy_in_full_precision(bench: Bench, tmp_path: Path) -> None:
    """1e-5 is far below what bf16 or tf32 would leave."""
    inputs = RANDOM.standard_normal((5, 1, 3, 8, 8)).astype("float32")
    (got,) = bench.outputs(built(bench, tmp_path), [inputs])
    expected = np.maximum(np.einsum("oi,nbihw->nbohw", WEIGHT[:, :, 0, 0], inputs), 0)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_times_and_nodes(bench: Bench, tmp_path: Path) -> None:
    model = built(bench, tmp_path)
    inputs = bench.save_inputs([np.zeros((1, 3, 8, 8), "float32")], tmp_path)
    first, second = bench.time([model, model], inputs, 2)
    assert len(first.runs) == len(second.runs) == 2
    assert all(len(run.times_ns) >= 20 for run in first.runs)
    (nodes,) = bench.nodes([model], inputs)
    assert all(ns >= 0 for ns in nodes.values())
    assert {"/layer/Conv", "/layer/Relu", "y", "conv_out"} & set(nodes), nodes


def test_a_model_that_cannot_be_loaded_is_named(bench: Bench, tmp_path: Path) -> None:
    bad = tmp_path / ("bad" + built(bench, tmp_path).suffix)
    bad.write_bytes(b"not a model")
    with pytest.raises(DeviceError, match="load"):
        bench.time([bad], bench.save_inputs([np.zeros((1, 3, 8, 8), "float32")], tmp_path), 1)


def test_the_device_says_what_it_is(bench: Bench) -> None:
    device = bench.device
    assert device.cores >= 1 and device.cpu and device.runtime_version
    assert runtimes.RUNTIMES[device.runtime].require() == device.runtime_version


def test_openvino_s_first_run_is_no_part_of_a_node_s_time() -> None:
    """Its counters are means over all runs so far, and a first run allocates: 100 µs, then three of 4 µs, read 28 µs."""

    class Counted(agent.OpenVino):
        def __init__(self) -> None:
            self.runs, self.first_us, self.compiled = (
                4,
                {"conv": 100.0},
                SimpleNamespace(get_runtime_model=lambda: SimpleNamespace(get_ordered_ops=list)),
            )

        def mean_us(self) -> dict[str, float]:
            return {"conv": (100 + 3 * 4) / 4}

    assert Counted().nodes() == [{"name": "conv", "ns": 4000, "fused": []}]


def test_what_openvino_cannot_convert_is_our_error(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"not a model")
    with pytest.raises(UsageError, match="openvino cannot convert"):
        runtimes.RUNTIMES["openvino"].convert(bad, tmp_path)


def test_models_are_interleaved_so_that_drift_cancels() -> None:
    assert interleaved(2, 4) == [0, 1, 1, 0, 0, 1, 1, 0]
    assert interleaved(3, 2) == [0, 1, 2, 2, 1, 0]
