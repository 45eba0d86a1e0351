"""The arguments of trtexec, and what it prints, by version.

These texts do not come from a board of ours. They follow the formats of NVIDIA/TensorRT's samples/common (tags 8.5.3, v10.3.0,
v11.1), of nvpmodel, and of tegrastats in JetPack 4 to 7. Their numbers are made up. The parsers also read outputs that others
published; docs/jetson.md names them.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeprune import runtimes
from edgeprune.devices.agent import undo
from edgeprune.devices.virtual import trtexec as trtexec_standin
from edgeprune.runtimes import machine
from edgeprune.runtimes.device import Failed
from edgeprune.runtimes.tensorrt import jetson, tool
from edgeprune.runtimes.tensorrt import trtexec as trt
from edgeprune.runtimes.tensorrt.device import RUNTIME
from edgeprune.runtimes.tensorrt.log import errors_of
from edgeprune.runtimes.timing import NodeTime

FAMILIES = sorted(trtexec_standin.FLAGS)


def asked(version: tuple[int, ...], precision: str, dla: int | None) -> list[list[str]]:
    run = trt.run_argv(version, "p", [("x", "f")], dla)
    return [
        trt.build_argv(version, "m", "p", "c", precision, dla),
        [*run, *trt.time_argv("t", 10)],
        [*run, *trt.profile_argv(version, "p", "l")],
        [*run, *trt.output_argv("o")],
    ]


@pytest.mark.parametrize("dla", [None, 0])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("version", FAMILIES)
def test_every_version_knows_every_flag_and_gets_each_once(
    version: tuple[int, int], precision: str, dla: int | None
) -> None:
    for argv in asked((*version, 0), precision, dla):
        flags = [argument.partition("=")[0].removeprefix("--") for argument in argv]
        assert set(flags) <= trtexec_standin.FLAGS[version] and len(set(flags)) == len(flags)


def test_precision_is_in_the_model_and_in_flags_only_where_needed() -> None:
    def flags(version: tuple[int, ...], precision: str, dla: int | None = None) -> set[str]:
        argv = trt.build_argv(version, "m", "p", "c", precision, dla)
        return {"--fp16", "--int8", "--stronglyTyped", "--noTF32", "--buildOnly", "--skipInference"} & set(argv)

    assert flags((8, 5, 2), "fp16") == {"--fp16", "--buildOnly"}
    assert flags((8, 6, 2), "int8") == {"--int8", "--skipInference"}
    assert flags((10, 3, 0), "fp16") == {"--stronglyTyped", "--skipInference"}
    assert flags((8, 5, 2), "int8", dla=0) == {"--int8", "--fp16", "--buildOnly"}  # the DLA's other layers
    assert flags((10, 3, 0), "int8", dla=0) == {"--int8", "--fp16", "--skipInference"}
    assert flags((10, 3, 0), "fp32") == {"--stronglyTyped", "--noTF32", "--skipInference"}
    assert flags((11, 1, 0), "fp16") == {"--skipInference"}


def test_a_profile_is_a_separate_run() -> None:
    """A profiler slows the network down, so the network's time comes from a run without one."""
    assert not any("rofile" in argument for argument in trt.time_argv("t", 10))
    assert "--separateProfileRun" in trt.profile_argv((10, 3, 0), "p", "l")
    assert "--separateProfileRun" not in trt.profile_argv((11, 1, 0), "p", "l")  # it does nothing else


@pytest.mark.parametrize(
    ("line", "version", "stand_in"),
    [
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v8201] # trtexec --help", (8, 2, 1), False),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v8502] # /usr/src/tensorrt/bin/trtexec --help", (8, 5, 2), False),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec --help", (10, 3, 0), False),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v101601] [b11] # trtexec --help", (10, 16, 1), False),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v110100] [b9] # trtexec --help", (11, 1, 0), False),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v100300] [stand-in] # trtexec --help", (10, 3, 0), True),
    ],
)
def test_the_version_is_in_the_first_line(line: str, version: tuple[int, ...], stand_in: bool) -> None:
    assert trt.version_of(line + "\n=== Model Options ===\n") == (version, stand_in)


def test_the_python_module_may_be_a_preview() -> None:
    for text, version in (("8.5.2.2", (8, 5, 2)), ("10.0.0b6", (10, 0, 0)), ("9.2.0.post11.dev5", (9, 2, 0))):
        assert tool.parsed(text) == version
    with pytest.raises(Failed, match="no known version: 'unknown'"):
        tool.parsed("unknown")


def test_a_tool_without_a_version_is_refused() -> None:
    for text in ("", "trtexec: not found", "&&&& RUNNING TensorRT.trtexec # trtexec"):  # the last is of 7
        with pytest.raises(Failed, match="does not print its version"):
            trt.version_of(text)


FAILED = """&&&& RUNNING TensorRT.trtexec [TensorRT v8601] # trtexec --onnx=m.onnx
[01/02/2024-10:00:00] [I] Start parsing network model.
[01/02/2024-10:00:00] [E] [TRT] ModelImporter.cpp:771: While parsing node number 3 [Foo -> "y"]:
[01/02/2024-10:00:00] [E] Failed to parse onnx file
[01/02/2024-10:00:00] [W] something else
[01/02/2024-10:00:00] [E] Parsing model failed
&&&& FAILED TensorRT.trtexec [TensorRT v8601] # trtexec --onnx=m.onnx
"""


def test_a_failure_reports_its_errors() -> None:
    assert not trt.passed(FAILED, 1) and not trt.passed(FAILED, 0)
    text = errors_of(FAILED)
    assert text.startswith("[TRT] ModelImporter.cpp:771: While parsing node number 3")
    assert text.endswith("; Failed to parse onnx file; Parsing model failed")
    good = FAILED.replace("FAILED", "PASSED")
    assert trt.passed(good, 0) and not trt.passed(good, 139) and not trt.passed("", 0)
    assert errors_of("[01/02/2024-10:00:00] [I] fine\n") == "it printed no error"


TO_GPU = (
    "[01/02/2024-10:00:00] [W] [TRT] Layer '{}' ({}): Unsupported on DLA. Switching this layer's device type to GPU."
)


def test_layers_that_fall_back_from_the_dla_are_counted() -> None:
    text = f"""
[01/02/2024-10:00:00] [W] [TRT] /pool/GlobalAveragePool: DLA cores do not support AVG Reduce operation.
{TO_GPU.format("/pool/GlobalAveragePool", "REDUCE")}
{TO_GPU.format("/head/Gemm", "MATRIX_MULTIPLY")}
{TO_GPU.format("/head/Gemm", "MATRIX_MULTIPLY")}
[01/02/2024-10:00:02] [I] [TRT] [DlaLayer] {{ForeignNode[/a/Conv.../b/Relu]}}
"""
    assert trt.fallbacks_of(text) == ["/head/Gemm", "/pool/GlobalAveragePool"]
    assert trt.fallbacks_of("") == []


def times(**changes: Any) -> str:
    rows = [
        {"h2dMs": 0.01 * i, "computeMs": 0.873472 + i, "d2hMs": 0.005, "latencyMs": 1.0 + i, **changes}
        for i in range(3)
    ]
    return "[\n  " + "\n, ".join(map(json.dumps, rows)) + "\n]\n"


def test_times_are_the_gpu_s_and_copies_are_separate() -> None:
    assert trt.times_of(times()) == ([873472, 1873472, 2873472], 15000)


@pytest.mark.parametrize("spoilt", [{"computeMs": float("nan")}, {"computeMs": -1.0}, {"h2dMs": float("inf")}])
def test_a_missing_or_absurd_time_is_an_error(spoilt: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        trt.times_of(times(**spoilt))
    with pytest.raises(ValueError, match="no run"):
        trt.times_of("[]")
    with pytest.raises(KeyError):
        trt.times_of('[{"latencyMs": 1.0}]')


PROFILE = """[
  { "count" : 20 }
, { "name" : "Reformatting CopyNode for Input Tensor 0 to /a/Conv + /a/Relu", "timeMs" : 2, "averageMs" : 0.1, "medianMs" : 0.1, "percentage" : 10 }
, { "name" : "/a/Conv + /a/Relu", "timeMs" : 16, "averageMs" : 0.8, "medianMs" : 0.75, "percentage" : 80 }
, { "name" : "__myl_MulAddMatMul_myl0_1", "timeMs" : 2, "averageMs" : 0.1, "percentage" : 10 }
]"""  # noqa: E501
NAMES = '{"Layers": ["/a/Conv + /a/Relu"], "Bindings": ["x", "y"]}'
DETAILED = json.dumps(
    {"Layers": [{"Name": "__myl_MulAddMatMul_myl0_1", "LayerType": "gemm",
                 "Metadata": "[ONNX Layer: /b/Mul]\x1f[ONNX Layer: /head/MatMul]\x1e[ONNX Layer: /head/Add]"}], "Bindings": []}
)  # fmt: skip


def test_layers_are_named_after_the_node_that_does_most_work() -> None:
    runtime = runtimes.host("tensorrt")
    rows = trt.layers_of(PROFILE, DETAILED)
    assert (rows[2].name, rows[2].ns) == ("__myl_MulAddMatMul_myl0_1", 100000)
    assert runtime.node_times(rows) == (("/a/Conv", 100000), ("/a/Conv", 750000), ("/head/MatMul", 100000))
    old = trt.layers_of(PROFILE, NAMES)  # up to 8.5 only names are reported
    assert runtime.node_times(old)[2] == ("__myl_MulAddMatMul_myl0_1", 100000)


@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("Conv_0 + Relu_1", "Conv_0"),
        ("conv1.weight + QuantizeLinear_7 + Conv_9", "Conv_9"),
        ("/b1/Conv || /b2/Conv", "/b1/Conv"),
        ("PWN(/act/Sigmoid)", "/act/Sigmoid"),
        ("PWN(PWN(/act/Sigmoid), /act/Mul)", "/act/Sigmoid"),
        ("Reformatting CopyNode for Output Tensor 0 to PWN(/act/Relu)", "/act/Relu"),
        ("{ForeignNode[/a/Conv.../b/Add]}", "{ForeignNode[/a/Conv.../b/Add]}"),
        ("/head/Gemm", "/head/Gemm"),
    ],
)
def test_names_of_fused_layers(name: str, node: str) -> None:
    assert runtimes.host("tensorrt").node_times([NodeTime(name, 7)]) == ((node, 7),)


def test_outputs_are_read_by_name_and_shape() -> None:
    text = '[\n  { "name" : "y"\n  , "dimensions" : "1x2x2"\n  , "values" : [ 1, -2.5, 3e-05, -nan ]\n  }\n]'
    (found,) = trt.outputs_of(text, ["y"])
    assert found.shape == (1, 2, 2) and found.dtype == np.float32
    assert found[0, 0].tolist() == [1, -2.5] and np.isnan(found[0, 1, 1])


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: MAXN\n0\n", ("MAXN", 0)),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: 15W\n2\n", ("15W", 2)),
        ("NV Fan Mode:quiet\nNV Power Mode: MODE_30W_ALL\n3\nNVPM ERROR: Error opening /sys/x: 13\n", ("MODE_30W_ALL", 3)),
        ("NVPM VERB: Current mode: NV Power Mode: MAXN_SUPER\n2\nNVPM VERB: PARAM x\n", ("MAXN_SUPER", 2)),
        ("nvpmodel: command not found\n", None),
        ("NV Power Mode: MAXN\n", None),
    ],
)  # fmt: skip
def test_the_power_mode(text: str, mode: tuple[str, int] | None) -> None:
    assert jetson.power_mode_of(text) == mode


def test_power_modes_are_known_by_name_since_numbers_differ_by_board() -> None:
    text = "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n<POWER_MODEL ID=2 NAME=MAXN_SUPER>\n< PM_CONFIG DEFAULT=1 >"
    assert jetson.power_modes_of(text) == {"15W": 0, "MAXN_SUPER": 2}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (  # Nano, JetPack 4
            "RAM 900/3956MB (lfb 5x4MB) SWAP 0/1978MB (cached 0MB) IRAM 0/252kB(lfb 252kB) CPU [5%@1479,off,off,2%@1479]"
            " EMC_FREQ 3%@1600 GR3D_FREQ 40%@921 APE 25 PLL@30C CPU@33.5C POM_5V_IN 2100/2050 POM_5V_GPU 40/40",
            {"emc_mhz": 1600, "gpu_mhz": 921, "power_mw": 2100},
        ),
        (  # AGX Orin, JetPack 5, as root
            "01-02-2024 10:00:00 RAM 4000/30000MB (lfb 1x4MB) CPU [1%@2201,off] EMC_FREQ 1%@3199 GR3D_FREQ 90%@[1300,1296]"
            " VIC_FREQ 729 APE 174 CV0@-256C CPU@48.1C tj@48.1C VDD_GPU_SOC 3000mW/2990mW",
            {"emc_mhz": 3199, "gpu_mhz": 1300},
        ),
        (  # Orin Nano, JetPack 6, as a user
            "01-02-2025 10:00:00 RAM 2000/7600MB (lfb 2x4MB) SWAP 0/3800MB (cached 0MB) CPU [0%@1510] GR3D_FREQ 0% cpu@45C"
            " VDD_IN 4500mW/4480mW VDD_CPU_GPU_CV 500mW/500mW",
            {"power_mw": 4500},
        ),
        ("RAM 1/2MB GR3D_FREQ @[900,910,905] VDD_IN 9000mW/8000mW/9900mW", {"gpu_mhz": 910, "power_mw": 9000}),  # Thor
        ("GPU 100/100 CPU 200/200 EMC_FREQ 0% GR3D_FREQ 12%", {}),  # AGX Xavier as a user: rails of these names
        ("", {}),
    ],
)  # fmt: skip
def test_tegrastats_by_board_and_user(line: str, found: dict[str, int]) -> None:
    assert jetson.tegrastats_of(line) == found


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_clocks_and_their_limits(tmp_path: Path) -> None:
    devfreq, thermal, monitors = tmp_path / "devfreq", tmp_path / "thermal", tmp_path / "hwmon"
    for name, node in (("15340000.vic", "vic"), ("17000000.gpu", "gpu\0")):
        put(devfreq / name / "device/of_node/name", node)
        for kind, clock in (("cur", 510), ("min", 306), ("max", 918)):
            put(devfreq / name / f"{kind}_freq", f"{clock}000000\n")
    assert jetson.gpu_clocks(str(devfreq)) == {"gpu_hz": 510000000, "gpu_max_hz": 918000000, "clocks_pinned": 0}
    put(devfreq / "17000000.gpu" / "min_freq", "918000000\n")
    assert jetson.gpu_clocks(str(devfreq))["clocks_pinned"] == 1
    thor = tmp_path / "thor"
    for name, clocks in (
        ("bwmgr", (4266, 665, 4266)),
        ("gpu-nvd-0", (900, 300, 1692)),
        ("gpu-gpc-0", (1500, 1500, 1500)),
    ):
        for kind, clock in zip(("cur", "min", "max"), clocks, strict=True):
            put(thor / name / f"{kind}_freq", f"{clock}000000\n")
    assert jetson.gpu_clocks(str(thor)) == {"gpu_hz": 1500000000, "gpu_max_hz": 1500000000, "clocks_pinned": 1}
    for kind, clock in (("cur", 800), ("min", 300), ("max", 1500)):
        put(thor / "gpu-gpc-1" / f"{kind}_freq", f"{clock}000000\n")
    assert jetson.gpu_clocks(str(thor))["clocks_pinned"] == 0  # every part of the GPU counts
    assert jetson.gpu_clocks(str(tmp_path / "none")) == {} == jetson.limits(str(thermal), str(monitors))
    put(thermal / "cooling_device0" / "type", "pwm-fan\n")
    put(thermal / "cooling_device0" / "cur_state", "3\n")
    put(thermal / "cooling_device1" / "type", "gpu-throttle-alert\n")
    put(thermal / "cooling_device1" / "cur_state", "0\n")
    put(monitors / "hwmon3" / "name", "soctherm_oc\n")
    put(monitors / "hwmon3" / "oc1_event_cnt", "2\n")
    put(monitors / "hwmon3" / "oc3_event_cnt", "40\n")
    assert jetson.limits(str(thermal), str(monitors)) == {"throttled": 0, "over_current_events": 42}
    put(thermal / "cooling_device1" / "cur_state", "1\n")
    assert jetson.limits(str(thermal), str(monitors))["throttled"] == jetson.THROTTLED


TOOLS = {
    "nvpmodel": """
state = pathlib.Path(folder, "mode")
if "-q" in sys.argv:
    print("NV Power Mode: %s" % {"0": "MAXN", "1": "15W"}[state.read_text()])
    print(state.read_text())
elif pathlib.Path(folder, "stuck").exists():
    print("NVPM WARN: Reboot required for changing to this power mode: 0")
else:
    state.write_text(sys.argv[2])
""",
    "jetson_clocks": """
clocks = pathlib.Path(folder, "devfreq/17000000.gpu/min_freq")
if sys.argv[1:2] == ["--store"]:
    pathlib.Path(sys.argv[2]).write_text(clocks.read_text())
elif sys.argv[1:2] == ["--restore"]:
    clocks.write_text(pathlib.Path(sys.argv[2]).read_text())
else:
    clocks.write_text("918000000")
""",
    "sudo": "\nimport os\nos.execvp(sys.argv[2], sys.argv[2:])\n",
}


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fakes of a Jetson's tools for its power mode and clocks."""
    for name, text in TOOLS.items():
        tool = tmp_path / "bin" / name
        put(tool, f"#!{sys.executable}\nimport pathlib, sys\nfolder = {str(tmp_path)!r}\n{text}")
        tool.chmod(0o755)
    put(tmp_path / "mode", "1")
    put(tmp_path / "nvpmodel.conf", "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=15W >\n")
    for kind, clock in (("cur", 306), ("min", 306), ("max", 918)):
        put(tmp_path / "devfreq/17000000.gpu" / f"{kind}_freq", f"{clock}000000")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    (tmp_path / ".edgeprune").mkdir()
    monkeypatch.setattr(machine, "home", lambda: str(tmp_path / ".edgeprune"))
    monkeypatch.setattr(os, "getppid", os.getpid)  # a worker's parent is its agent
    monkeypatch.setattr(jetson, "MODES_FILE", str(tmp_path / "nvpmodel.conf"))
    monkeypatch.setattr(jetson.gpu_clocks, "__defaults__", (str(tmp_path / "devfreq"),))
    return tmp_path


def test_a_measurement_restores_what_it_changes(board: Path) -> None:
    jetson.prepare("MAXN", True, undo.record)
    assert (board / "mode").read_text() == "0" and jetson.gpu_clocks()["clocks_pinned"] == 1
    jetson.prepare("MAXN", True, undo.record)  # at every measurement: it is so already
    undo.restore()
    assert (board / "mode").read_text() == "1" and jetson.gpu_clocks()["clocks_pinned"] == 0
    assert not list((board / ".edgeprune").iterdir())
    undo.restore()


def test_the_next_agent_restores_what_a_killed_agent_changed(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getppid", lambda: 2**22 + 1)  # no process has this number
    jetson.prepare("MAXN", False, undo.record)
    undo.restore()
    assert (board / "mode").read_text() == "1"


def test_the_changes_of_a_running_agent_are_kept(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getppid", lambda: 1)
    jetson.prepare("MAXN", False, undo.record)
    undo.restore()
    assert (board / "mode").read_text() == "0"


def test_a_failed_restore_is_reported_and_tried_again(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jetson.prepare("MAXN", False, undo.record)
    (board / "bin" / "sudo").rename(board / "bin" / "away")
    undo.restore()
    assert "cannot restore what was changed: sudo -n nvpmodel -m 1" in capsys.readouterr().err
    (board / "bin" / "away").rename(board / "bin" / "sudo")
    undo.restore()
    assert (board / "mode").read_text() == "1"


def test_a_power_mode_that_cannot_be_set_is_an_error(board: Path) -> None:
    with pytest.raises(Failed, match="no power mode 'MAXQ'; known: 15W, MAXN"):
        jetson.prepare("MAXQ", False, undo.record)
    put(board / "stuck", "")
    with pytest.raises(Failed, match="the power mode stays 15W"):
        jetson.prepare("MAXN", False, undo.record)


def test_the_state_of_a_jetson(board: Path) -> None:
    assert RUNTIME.conditions()["power_mode"] == "15W"
