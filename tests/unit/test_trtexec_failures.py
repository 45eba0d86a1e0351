"""Failures of trtexec: the reason is found in any log, a signal is named, and a crash after its work is a failure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeprune.runtimes.device import Failed
from edgeprune.runtimes.tensorrt import log, tool
from edgeprune.runtimes.tensorrt.host import RUNTIME
from edgeprune.runtimes.tensorrt.trtexec import fallbacks_of, layers_of

AT = "[03/04/2025-11:22:33] "
BEGIN = "&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec --onnx=m.onnx"
PASSED = "&&&& PASSED TensorRT.trtexec [TensorRT v100300] # trtexec --onnx=m.onnx"
FAILED = "&&&& FAILED TensorRT.trtexec [TensorRT v100300] # trtexec --onnx=m.onnx"
SUMMARY = [
    f"{AT}[E] {text}"
    for text in ("Engine could not be created from network", "Building engine failed", "Engine set up failed")
]


def reasons(*lines: str) -> str:
    """The reasons in what is kept of a log."""
    keeper = log.Keeper()
    return log.errors_of("\n".join(line for line in "\n".join(lines).splitlines() if keeper.wants(line)))


def test_the_reason_comes_before_the_summary_and_after_no_kernel_that_was_skipped() -> None:
    skipped = [f"{AT}[E] Error[9]: Skipping tactic 0x000000000000{i:04x} due to exception" for i in range(20)]
    reason = (
        f"{AT}[E] Error[10]: Error Code 10: Internal Error (Could not find any implementation for node /head/Gemm.)"
    )
    text = reasons(BEGIN, *SUMMARY[:1], *skipped, reason, *SUMMARY[1:], FAILED)
    assert text.startswith(
        "Error[10]: Error Code 10: Internal Error (Could not find any implementation for node /head/Gemm.)"
    )
    assert text.endswith("Engine could not be created from network; Building engine failed; Engine set up failed")
    assert "Skipping" in reasons(*skipped)


def test_summaries_of_version_8_come_after_the_reason() -> None:
    text = reasons(
        BEGIN,
        f"{AT}[E] Engine creation failed",
        f"{AT}[E] Got invalid engine!",
        f"{AT}[E] [TRT] 3: getPluginCreator could not find plugin: GridSample version: 1",
        FAILED,
    )
    assert text.startswith(
        "[TRT] 3: getPluginCreator could not find plugin: GridSample version: 1; Engine creation failed"
    )


def test_a_profile_of_another_form_is_one_line() -> None:
    with pytest.raises(Failed, match="TensorRT's profile: "), tool.understood("TensorRT's profile"):
        layers_of("[]", "[]")
    (found,) = layers_of('[{"name": "a", "averageMs": 1}]', '{"Layers": [{"Name": "a", "Metadata": null}]}')
    assert found.fused == ()


def test_lines_that_continue_an_error_belong_to_it_and_the_dump_of_a_node_does_not() -> None:
    text = reasons(
        f'{AT}[E] [TRT] ModelImporter.cpp:768: While parsing node number 5 [Foo -> "y"]:',
        f"{AT}[E] [TRT] ModelImporter.cpp:769: --- Begin node ---",
        'input: "x"\nop_type: "Foo"\nattribute {\n  name: "mode"\n}\n',
        f"{AT}[E] [TRT] ModelImporter.cpp:770: --- End node ---",
        f"{AT}[E] [TRT] ModelImporter.cpp:773: ERROR: importers.cpp:5428 In function importFoo:",
        "[8] Assertion failed: creator && No plugin Foo",
        f"{AT}[I] the next line",
        "no part of it",
    )
    assert text == (
        '[TRT] ModelImporter.cpp:768: While parsing node number 5 [Foo -> "y"]:;'
        " [TRT] ModelImporter.cpp:773: ERROR: importers.cpp:5428 In function importFoo:"
        " [8] Assertion failed: creator && No plugin Foo"
    )


@pytest.mark.parametrize(
    "line",
    [
        "Cuda failure: no CUDA-capable device is detected",
        "trtexec: error while loading shared libraries: libnvinfer.so.10: cannot open shared object file",
        "terminate called after throwing an instance of 'std::runtime_error'",
        "NvRmMemInitNvmap failed with Permission denied",
        "[E] [TRT] a line of a logger without a date",
        f"a progress bar 50% {AT}[E] an error on the line of other output",
    ],
)
def test_a_reason_is_found_wherever_it_stands(line: str) -> None:
    text = reasons(BEGIN, f"{AT}[I] Starting", "a line that says nothing", line, f"{AT}[V] no error here", FAILED)
    assert text and line.endswith(text)


# ------------------------------------------------------------------------------------------- by a program that ends so


@pytest.fixture
def trtexec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a shell script as trtexec: the message of its failure."""

    def run(script: str, deadline_s: float = 30.0) -> str:
        program = tmp_path / "trtexec"
        program.write_text(f"#!/bin/sh\necho '{BEGIN}'\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(tool, "trtexec", lambda: str(program))
        with pytest.raises(Failed) as caught:
            tool.run([], "build", str(tmp_path), deadline_s)
        assert caught.value.kind == "load"
        return str(caught.value)

    return run


def test_a_crash_after_passed_is_a_failure_that_names_the_signal(trtexec: Callable[..., str]) -> None:
    text = trtexec(f"echo '{PASSED}'; kill -SEGV $$")
    assert text.startswith("trtexec cannot build the model (it crashed with SIGSEGV, after it had printed PASSED)")
    assert "(it crashed with SIGABRT, after" in trtexec(f"echo '{PASSED}'; exit 134")  # as a shell around it reports


def test_a_process_that_is_killed_or_reports_no_memory_names_what_to_do(trtexec: Callable[..., str]) -> None:
    text = trtexec("kill -KILL $$")
    assert "(killed by SIGKILL)" in text and "out of memory: stop other programs" in text
    line = f"{AT}[E] Error[2]: Error Code 2: OutOfMemory (Requested size was 1073741824 bytes.)"
    text = trtexec(f"echo '{line}'; echo '{FAILED}'; exit 1")
    assert "(exit status 1): Error[2]: Error Code 2: OutOfMemory" in text and "add swap" in text
    warned = f"{AT}[W] [TRT] Requested amount of GPU memory (1073741824 bytes) could not be allocated."
    assert "add swap" in trtexec(f"echo '{warned}'; echo '{SUMMARY[0]}'; exit 1")
    assert "memory" not in trtexec(f"echo '{SUMMARY[0]}'; exit 1")


@pytest.mark.parametrize(
    ("reason", "is_memory"),
    [
        (
            "[TRT] 10: [optimizer.cpp::computeCosts::1855] Error Code 10: Could not find any implementation for node /a.",
            True,
        ),
        ("Error Code 4: Internal Error (Network must have at least one output)", False),
        (
            "Error[2]: [virtualMemoryBuffer.cpp::resizePhysical::127] Error Code 2: OutOfMemory (no further details)",
            True,
        ),
        ("Error Code 1: Cuda Driver (out of memory)", True),
        ("Error[3]: API Usage Error (Int8 mode is requested but there is no calibrator)", False),
    ],
)
def test_kernels_that_were_skipped_for_memory_are_no_reason_if_another_one_is_known(
    reason: str, is_memory: bool
) -> None:
    """A small Jetson skips such kernels in builds that succeed, too."""
    skipped = [
        f"{AT}[W] [TRT] Tactic Device request: 1152MB Available: 910MB. Device memory is insufficient to use tactic.",
        f"{AT}[W] [TRT] Skipping tactic 3 due to insufficient memory on requested size of 1152 detected for tactic 4.",
        f"{AT}[E] Skipping tactic 5 due to out of memory on requested size of 1152",
    ]
    text = "\n".join([BEGIN, *skipped, f"{AT}[E] {reason}", *SUMMARY, FAILED])
    assert ("out of memory: stop" in log.remedy(text, 1)) is is_memory


def test_a_build_that_takes_too_long_is_no_crash(trtexec: Callable[..., str]) -> None:
    text = trtexec("exec sleep 20", 0.3)
    assert text.startswith("trtexec took over 0.3 s to build the model") and "memory" not in text


def test_the_reason_survives_a_log_of_any_length(trtexec: Callable[..., str]) -> None:
    flood = f"yes '{AT}[V] [TRT] a verbose line about an error' | head -n 200000"
    assert "the reason at the end" in trtexec(f"{flood}; echo '{AT}[E] the reason at the end'; exit 1")


# --------------------------------------------------------------------------------------------------------- the DLA


@pytest.mark.parametrize(
    "line",
    [
        "[TRT] Layer '/a/Shape (1)' (SHUFFLE): Unsupported on DLA. Switching this layer's device type to GPU.",
        "[TRT] Default DLA is enabled but layer /a/Shape (1) is not supported on DLA, falling back to GPU.",
        "[TRT] Validation failed for DLA layer: /a/Shape (1). Switching to GPU fallback.",
        "[TRT] DLA only supports FP16 and Int8 precision type. Switching /a/Shape (1) device type to GPU.",
    ],
)
def test_a_layer_that_the_dla_cannot_run_is_counted_once_in_the_words_of_any_version(line: str) -> None:
    keeper = log.Keeper()
    kept = [text for text in [f"{AT}[W] {line}"] * 2 if keeper.wants(text)]
    assert fallbacks_of("\n".join(kept)) == ["/a/Shape (1)"]


def test_a_region_of_the_dla_is_one_layer_with_its_copies() -> None:
    """The GPU waits for the DLA in the copy after it, so the region's own row is short."""
    names = {
        "images to nvm": 0.1, "{ForeignNode[/a/Conv.../c/Relu]}": 0.01, "mid from nvm": 5.0, "/d/Gemm": 0.5, "mid to nvm": 0.2,
        "{ForeignNode[/e/Conv.../f/Relu]}": 0.02, "out from nvm": 3.0, "images copy finish": 0.001, "out copy finish": 0.002,
    }  # fmt: skip
    rows = [{"count": 100}, *({"name": name, "averageMs": ms, "medianMs": ms} for name, ms in names.items())]
    regions = [
        {"Name": name, "LayerType": "DLA", "Metadata": "[ONNX Layer: /a/Conv]\x1e[ONNX Layer: /c/Relu]"}
        for name in names
        if "Foreign" in name
    ]
    found = layers_of(json.dumps(rows), json.dumps({"Layers": regions}))
    assert [(row.name, row.ns) for row in found] == [
        ("{ForeignNode[/a/Conv.../c/Relu]}", 5_110_000),
        ("/d/Gemm", 500_000),
        ("{ForeignNode[/e/Conv.../f/Relu]}", 3_223_000),
    ]
    assert sum(row.ns for row in found) == round(1e6 * sum(names.values()))
    assert [name for name, _ in RUNTIME.node_times(found)] == [
        row.name for row in found
    ]  # no node gets the time of all


def test_a_region_of_the_gpu_keeps_its_nodes() -> None:
    name = "{ForeignNode[/a/MatMul.../b/Add]}"
    rows = [{"name": name, "averageMs": 1.0}]
    layers = [{"Name": name, "LayerType": "Myelin", "Metadata": "[ONNX Layer: /a/MatMul]\x1e[ONNX Layer: /b/Add]"}]
    (found,) = layers_of(json.dumps(rows), json.dumps({"Layers": layers}))
    assert found.fused == ("/a/MatMul", "/b/Add")
