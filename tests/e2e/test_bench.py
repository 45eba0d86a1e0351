"""`edgeprune bench` on real runtimes, as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from modelfiles import save, with_external, write_onnx, write_tflite
from onnx import TensorProto, helper
from small import InProcess

import edgeprune
from edgeprune.errors import InconclusiveError

DONE = 0, InconclusiveError.exit_code  # the second one where other programs disturbed the figures
BRIEF = "--time", "0.1s", "--patience", "0s"

# The command line in a Python that has no torch.
WITHOUT_TORCH = """
import sys

class Blocked:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "litert_torch"):
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, Blocked)
from edgeprune.cli import main
main()
"""


def test_it_needs_no_torch_and_prints_a_figure_within_five_seconds(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx")
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-c", WITHOUT_TORCH, "bench", str(path), "--layers", *BRIEF], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        spent_s = time.monotonic() - began
        rest = process.stdout.read()
    assert process.returncode in DONE and "m.onnx: first estimate " in first
    crowd = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # programs that share a processor with this one
    assert spent_s < 5 * crowd, spent_s
    assert "peak memory, MB" in rest and "Conv" in rest


def test_json_holds_the_figures_and_nothing_else(edgeprune: InProcess, tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", ("n", 3, 8, 8))
    code, out, err = edgeprune("bench", str(path), "--json", "--quiet", "--batch", "2", "--streams", "2", *BRIEF)
    assert code in DONE and err == ""
    found = json.loads(out)
    (row,) = found["files"]
    assert (found["schema"], row["label"], row["batch"], row["streams"]) == (1, "m.onnx", 2, 2)
    assert found["status"] == ("inconclusive" if code else "pass")
    assert row["latency_ms"]["p50"]["mid"] > 0 and row["load_ms"]["mid"] > 0 and row["throughput_per_s"]["mid"] > 0
    assert row["size_bytes"] == path.stat().st_size and row["peak_memory_bytes"] > 1 << 20
    assert row["inputs"] == {"x": "float32 2x3x8x8"} and set(row["latency_ms"]) | set(row["too_few"]) == {
        "p50",
        "p90",
        "p99",
    }


def test_two_files_are_compared_and_exported(edgeprune: InProcess, tmp_path: Path) -> None:
    first, second = write_onnx(tmp_path / "wide.onnx", width=64), write_onnx(tmp_path / "slim.onnx", width=4)
    exports = [
        word for name in ("trace.json", "times.json", "layers.csv", "a.csv", "a.md") for word in ("--export", name)
    ]
    code, out, _ = edgeprune("bench", str(first), str(second), "--quiet", *exports, *BRIEF)
    assert code in DONE and "slim.onnx takes 0." in out and "kinds of operators, as executed" in out
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {event["pid"] for event in events} == {0, 1} and {event["ph"] for event in events} == {"M", "X"}
    assert len(json.loads((tmp_path / "times.json").read_text())["times_ns"]) == 2
    for name in ("layers.csv", "a.csv", "a.md"):
        assert "slim.onnx" in (tmp_path / name).read_text()


def test_one_file_on_two_runtimes_is_side_by_side(edgeprune: InProcess, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path = write_onnx(tmp_path / "m.onnx")
    code, out, _ = edgeprune("bench", str(path), "-t", "local", "-t", "local-openvino", "--layers", "--quiet", *BRIEF)
    assert code in DONE and "m.onnx on local-openvino takes" in out and "openvino" in out and "onnxruntime" in out


def test_an_open_dimension_of_a_tflite_file_is_given(edgeprune: InProcess, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    path = write_tflite(tmp_path / "m.tflite", (1, 16), (-1, 16))
    code, _, err = edgeprune("bench", str(path), *BRIEF)
    assert code == 2 and "'?' (dimension 0); give its shape: --shape x=1x16" in err
    code, out, _ = edgeprune("bench", str(path), "--shape", "x=64x16", "--streams", "2", "--json", "--quiet", *BRIEF)
    assert code in DONE and json.loads(out)["files"][0]["inputs"] == {"x": "float32 64x16"}


def test_dry_run_says_what_would_be_measured(edgeprune: InProcess, tmp_path: Path) -> None:
    code, out, err = edgeprune("bench", str(write_onnx(tmp_path / "m.onnx")), "--dry-run")
    assert (code, err) == (0, "") and "this machine is the device" in out
    assert "inputs: x float32 1x3x8x8" in out and "expected: " in out


def test_a_file_that_the_runtime_cannot_load_is_one_line_with_exit_code_2(edgeprune: InProcess, tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in "xy")
    node = helper.make_node("Unknown", ["x"], ["y"], domain="com.example")
    path = save(tmp_path / "m.onnx", helper.make_graph([node], "g", [x], [y]))
    code, out, err = edgeprune("bench", str(path), "--quiet", *BRIEF)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith(f"error: {path}: onnxruntime on local cannot run it: load: ") and "com.example" in err


def test_a_file_that_reaches_outside_its_folder_is_refused(edgeprune: InProcess, tmp_path: Path) -> None:
    code, out, err = edgeprune("bench", str(with_external(tmp_path / "m.onnx", "/etc/passwd")))
    assert (code, out) == (6, "") and "outside the file's folder" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("missing.onnx",), "cannot be read"),
        (("m.onnx", "-t", "nowhere"), "no target 'nowhere'"),
        (("m.onnx", "--export", "a.png"), "name it *trace.json"),
        (("m.onnx", "--export", "no/a.csv"), "in a folder that you can write to"),
        (("m.onnx", "--time", "long"), "--time 'long' is not a duration"),
        (("m.onnx", "--shape", "z=1"), "no input of m.onnx"),
    ],
)
def test_wrong_arguments_are_one_line(
    edgeprune: InProcess, tmp_path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    write_onnx(tmp_path / "m.onnx")
    code, out, err = edgeprune("bench", *arguments)
    assert (code, out) == (2, "") and reason in err and err.count("\n") == 1, err


def test_a_program_measures_a_file_with_one_call(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx")
    found = edgeprune.bench(path, layers=True, seconds=0.1)
    (row,) = found.files
    assert found.status in ("pass", "inconclusive")
    assert 0 < row.latency_ms["p50"].low <= row.latency_ms["p50"].high and row.operators
    assert "m.onnx" in repr(found)
