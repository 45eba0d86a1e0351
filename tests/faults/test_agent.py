"""Workers die, hang and babble; the host gets one clear error in time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeprune.agent import AGENT
from edgeprune.bench import Bench
from edgeprune.errors import DeviceError, RuntimeMissing
from edgeprune.transports.fake import Fake
from edgeprune.transports.local import Local
from edgeprune.types import Target

CAPS = {"warmup_s": 0.01, "timed_s": 0.01, "runs_min": 5, "runs_max": 50, "deadline_s": 20.0}


def job(model: dict[str, Any], tmp_path: Path, **changes: Any) -> dict[str, Any]:
    path = tmp_path / f"model{len(list(tmp_path.iterdir()))}.json"
    path.write_text(json.dumps(model))
    base = {
        "id": 0,
        "mode": "time",
        "runtime": "null",
        "threads": 1,
        "precision": "fp32",
        "model": str(path),
        "inputs": [],
    }
    return {**base, **CAPS, **changes}


def test_a_worker_that_is_killed_is_recognised_and_the_next_one_runs(tmp_path: Path) -> None:
    jobs = [job({"ns": 1000, "raises": signal.SIGKILL}, tmp_path), job({"ns": 1000}, tmp_path, id=1)]
    killed, fine = Local().call(jobs, 60)
    assert killed["error"] == "killed" and "memory" in killed["message"]
    assert fine["times_ns"]


def test_a_worker_that_crashes_says_of_which_signal(tmp_path: Path) -> None:
    (crashed,) = Local().call([job({"ns": 1000, "raises": signal.SIGSEGV}, tmp_path)], 60)
    assert crashed["error"] == "killed" and str(int(signal.SIGSEGV)) in crashed["message"]


def test_a_worker_that_hangs_is_ended_at_its_deadline(tmp_path: Path) -> None:
    started = time.monotonic()
    (late,) = Local().call([job({"ns": 1000, "hangs": 600}, tmp_path, deadline_s=1.0)], 60)
    assert late["error"] == "deadline" and time.monotonic() - started < 30


def test_a_device_that_says_nothing_is_an_error_at_the_deadline(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="deadline"):
        list(Local().call([job({"ns": 1000, "hangs": 600}, tmp_path)], 1.0))


def test_a_host_that_leaves_takes_agent_and_worker_with_it(tmp_path: Path) -> None:
    """The agent notices that its standard input closed, as it does when an SSH session drops."""
    request = {"nonce": "0" * 32, "jobs": [job({"ns": 1000, "hangs": 600}, tmp_path)]}
    agent = subprocess.Popen(
        [sys.executable, "-I", str(AGENT), "serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert agent.stdin is not None
    assert agent.stdout is not None
    agent.stdin.write(json.dumps(request).encode() + b"\n")
    agent.stdin.flush()
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children")
    deadline = time.monotonic() + 20
    while not (workers := children.read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    agent.stdin.close()
    agent.wait(20)
    agent.stdout.close()
    for worker in workers:
        while Path(f"/proc/{worker}/exe").exists() and os.path.lexists(f"/proc/{worker}/cwd"):
            assert time.monotonic() < deadline + 20
            time.sleep(0.02)


def test_a_closed_call_leaves_no_worker(tmp_path: Path) -> None:
    replies = Local().call([job({"ns": 1000}, tmp_path), job({"ns": 1000, "hangs": 600}, tmp_path, id=1)], 60)
    next(iter(replies))
    started = time.monotonic()
    replies.close()  # type: ignore[attr-defined]
    assert time.monotonic() - started < 20


TARGET = Target(Path("targets/t.toml"), "t", "local", "onnxruntime")
IDENTITY = {
    **{"machine": "x86_64", "cpu": "c", "cores": 1, "system": "s", "runtime": "onnxruntime"},
    **{"runtime_version": "1", "boot_id": "b"},
}


def bench(answer: Mapping[str, Any], tmp_path: Path) -> Bench:
    return Bench(TARGET, Fake(lambda job: IDENTITY if job["mode"] == "identify" else answer), tmp_path)


@pytest.mark.parametrize(
    "answer",
    [
        {"times_ns": [], "peak_memory_bytes": 1},
        {"times_ns": [5, 0], "peak_memory_bytes": 1},
        {"times_ns": [5, -1], "peak_memory_bytes": 1},
        {"times_ns": ["5"], "peak_memory_bytes": 1},
        {"times_ns": [5], "peak_memory_bytes": 0},
        {"times_ns": [5]},
        {"peak_memory_bytes": 1},
        {"error": "load", "message": "\x1b[31mno\n"},
    ],
)
def test_answers_that_cannot_be_true_are_errors(answer: Mapping[str, Any], tmp_path: Path) -> None:
    model = tmp_path / "models" / "model.onnx"
    model.parent.mkdir()
    model.write_bytes(b"")
    with pytest.raises(DeviceError) as caught:
        bench(answer, tmp_path).time([model], [], 1)
    assert str(caught.value).isprintable()


def test_a_missing_runtime_names_the_extra(tmp_path: Path) -> None:
    missing = {"error": "runtime-missing", "message": "No module named 'openvino'"}
    with pytest.raises(RuntimeMissing, match=r"targets/t\.toml.*edgeprune\[openvino\]") as caught:
        Bench(replace(TARGET, runtime="openvino"), Fake(lambda job: missing), tmp_path)
    assert caught.value.exit_code == 2


def test_a_device_that_forgets_a_fact_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cpu"):
        Bench(TARGET, Fake(lambda job: {k: v for k, v in IDENTITY.items() if k != "cpu"}), tmp_path)
