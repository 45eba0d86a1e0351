"""Workers die, hang and print too much. The host gets one clear error in time."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeprune.devices import bundle, wire
from edgeprune.devices.agent import main
from edgeprune.devices.bench import Bench
from edgeprune.devices.transports.fake import Fake
from edgeprune.devices.transports.local import Local
from edgeprune.errors import DeviceError, InconclusiveError, RuntimeMissing, UsageError
from edgeprune.records import Target
from edgeprune.runtimes.timing import Timing, repeat

CAPS = {"warmup_s": 0.01, "timed_s": 0.01, "runs_min": 5, "runs_max": 50, "deadline_s": 20.0}


def job(model: dict[str, Any], tmp_path: Path, **changes: Any) -> dict[str, Any]:
    path = tmp_path / f"model{len(list(tmp_path.iterdir()))}.json"
    path.write_text(json.dumps(model))
    base = {
        "id": 0,
        "mode": "time",
        "runtime": "null",
        "threads": 1,
        "models": [str(path)],
        "inputs": [],
    }
    return {**base, **CAPS, **changes}


def done(jobs: list[dict[str, Any]], deadline_s: float = 60) -> list[Mapping[str, Any]]:
    with closing(Local()) as local:
        return list(local.call(jobs, deadline_s))


def test_a_worker_that_is_killed_is_recognised_and_the_next_one_runs(tmp_path: Path) -> None:
    jobs = [job({"ns": 1000, "raises": signal.SIGKILL}, tmp_path), job({"ns": 1000}, tmp_path, id=1)]
    killed, fine = done(jobs)
    assert killed["error"] == "killed" and "memory" in killed["message"]
    assert fine["models"][0]["times_ns"]


def test_a_crash_is_reported_with_its_signal(tmp_path: Path) -> None:
    (crashed,) = done([job({"ns": 1000, "raises": signal.SIGSEGV}, tmp_path)])
    assert crashed["error"] == "killed" and str(int(signal.SIGSEGV)) in crashed["message"]


def test_an_exception_of_a_runtime_is_reported_without_its_traceback(tmp_path: Path) -> None:
    (failed,) = done([job({"ns": 1000, "raises": "no signal"}, tmp_path)])
    assert failed["error"] == "run" and "no reply; TypeError: " in failed["message"]


def test_a_worker_that_hangs_is_ended_at_its_deadline(tmp_path: Path) -> None:
    started = time.monotonic()
    (late,) = done([job({"ns": 1000, "hangs": 600}, tmp_path, deadline_s=1.0)])
    assert late["error"] == "deadline" and time.monotonic() - started < 30


def test_a_silent_device_is_an_error_at_the_deadline(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="deadline"):
        done([job({"ns": 1000, "hangs": 600}, tmp_path)], 1.0)


def test_agent_and_worker_end_after_the_connection_ends(tmp_path: Path) -> None:
    """The agent notices that its standard input closed, as it does when an SSH session drops."""
    file = tmp_path / "agent.py"
    file.write_bytes(bundle.agent())
    hello, request = {"nonce": "0" * 32}, {"jobs": [job({"ns": 1000, "hangs": 600}, tmp_path)]}
    agent = subprocess.Popen(
        [sys.executable, "-I", str(file), "serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert agent.stdin is not None
    assert agent.stdout is not None
    agent.stdin.write(json.dumps(hello).encode() + b"\n" + json.dumps(request).encode() + b"\n")
    agent.stdin.flush()
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children")
    deadline = time.monotonic() + 60
    while not (workers := children.read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    agent.stdin.close()
    agent.wait(60)
    agent.stdout.close()
    for worker in workers:
        while Path(f"/proc/{worker}/exe").exists() and os.path.lexists(f"/proc/{worker}/cwd"):
            assert time.monotonic() < deadline + 20
            time.sleep(0.02)


def test_a_closed_call_leaves_no_worker(tmp_path: Path) -> None:
    with closing(Local()) as local:
        replies = local.call([job({"ns": 1000}, tmp_path), job({"ns": 1000, "hangs": 600}, tmp_path, id=1)], 60)
        next(iter(replies))
        started = time.monotonic()
        replies.close()  # type: ignore[attr-defined]
        assert time.monotonic() - started < 20


TARGET = Target(Path("targets/t.toml"), "t", "local", "onnxruntime")
IDENTITY = {
    **{"machine": "x86_64", "cpu": "c", "cores": 1, "system": "s", "runtime": "onnxruntime"},
    **{"runtime_version": "1", "boot_id": "b", "serial": "s", "emulated": False, "simulated": False},
}


def bench(answer: Mapping[str, Any], tmp_path: Path) -> Bench:
    return Bench(TARGET, Fake(lambda job: IDENTITY if job["mode"] == "identify" else answer), tmp_path)


def saved(tmp_path: Path) -> Path:
    model = tmp_path / "models" / "model.onnx"
    model.parent.mkdir(exist_ok=True)
    model.write_bytes(b"")
    return model


OWN = {"times_ns": [5], "waited_ns": 0, "waits": 1}
TRUE = {"models": [OWN], "peak_memory_bytes": 1, "before": {}, "after": {}}
THROTTLED = {**TRUE, "after": {"throttled": 0x50005}}
RESET = {**TRUE, "before": {"boot_id": "b"}, "after": {"boot_id": "c"}}
CROWDED = {**TRUE, "models": [{**OWN, "waited_ns": 4, "waits": 2}]}


@pytest.mark.parametrize(
    ("answer", "reason"), [(THROTTLED, "throttled"), (CROWDED, "other processes")], ids=["throttled", "crowded"]
)
def test_disturbed_processes_are_discarded_and_repeated(
    answer: Mapping[str, Any], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answers = iter([answer, TRUE, TRUE])
    bench = Bench(TARGET, Fake(lambda job: IDENTITY if job["mode"] == "identify" else next(answers)), tmp_path)
    model = saved(tmp_path)
    assert [m.run.times_ns for (m,) in bench.measure([[model], [model]], [])] == [(5,), (5,)]
    assert bench.discarded == 1 and reason in caplog.text


@pytest.mark.parametrize("answer", [THROTTLED, CROWDED], ids=["throttled", "crowded"])
def test_a_device_that_stays_disturbed_is_inconclusive(answer: Mapping[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InconclusiveError, match="too disturbed"):
        bench(answer, tmp_path).measure([[saved(tmp_path)]], [])


def test_one_reset_is_accepted(tmp_path: Path) -> None:
    """The disturbed process is discarded and the device identified again. A second reset is a fault of the board."""
    boots = iter("bcd")

    def device(answers: Any) -> Bench:
        return Bench(
            TARGET,
            Fake(lambda job: {**IDENTITY, "boot_id": next(boots)} if job["mode"] == "identify" else next(answers)),
            tmp_path,
        )

    calm = {**TRUE, "before": {"boot_id": "c"}, "after": {"boot_id": "c"}}
    again = {**TRUE, "before": {"boot_id": "c"}, "after": {"boot_id": "d"}}
    opened = device(iter([RESET, calm, again]))
    model = saved(tmp_path)
    assert opened.measure([[model]], [])[0][0].run.after == {"boot_id": "c"}
    with pytest.raises(DeviceError, match="reset 2 times"):
        opened.measure([[model]], [])


def test_another_device_at_the_address_is_refused(tmp_path: Path) -> None:
    who = iter([IDENTITY, {**IDENTITY, "boot_id": "c", "serial": "other"}])
    opened = Bench(TARGET, Fake(lambda job: next(who) if job["mode"] == "identify" else RESET), tmp_path)
    with pytest.raises(DeviceError, match="another device"):
        opened.measure([[saved(tmp_path)]], [])


def test_an_emulated_device_is_refused_unless_the_target_expects_it(tmp_path: Path) -> None:
    emulated = {**IDENTITY, "emulated": True}
    with pytest.raises(UsageError, match="emulated"):
        Bench(TARGET, Fake(lambda job: emulated), tmp_path)
    assert Bench(replace(TARGET, emulated=True), Fake(lambda job: emulated), tmp_path).device.emulated


def test_a_device_that_repeats_itself_is_measured_in_few_processes(tmp_path: Path) -> None:
    fake = Fake(
        lambda job: IDENTITY if job["mode"] == "identify" else {**TRUE, "models": [{**OWN, "times_ns": [1000, 1000]}]}
    )
    (samples,) = Bench(TARGET, fake, tmp_path).time([saved(tmp_path)], [], 8)
    assert len(samples.runs) == 3


def test_the_clock_of_the_device_may_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only clocks that never go back are read while timing."""
    monkeypatch.setattr(time, "time", iter(range(0, -1000, -100)).__next__)
    timing = Timing(warmup_s=0.01, timed_s=0.01, runs_min=5, runs_max=50)
    assert all(ns > 0 for ns in repeat(lambda: None, timing))


@pytest.mark.parametrize(
    "answer",
    [
        {**TRUE, "models": [{**OWN, "times_ns": []}]},
        {**TRUE, "models": [{**OWN, "times_ns": [5, 0]}]},
        {**TRUE, "models": [{**OWN, "times_ns": [5, -1]}]},
        {**TRUE, "models": [{**OWN, "times_ns": ["5"]}]},
        {**TRUE, "models": [{**OWN, "times_ns": 5}]},
        {**TRUE, "models": []},
        {**TRUE, "models": [OWN, OWN]},
        {**TRUE, "models": [5]},
        {**TRUE, "models": 5},
        {**TRUE, "peak_memory_bytes": 0},
        {**TRUE, "models": [{**OWN, "waited_ns": -1}]},
        {**TRUE, "before": 3},
        {"models": [OWN]},
        {"peak_memory_bytes": 1},
        {"error": "load", "message": "\x1b[31mno\n"},
    ],
)
def test_impossible_replies_are_errors(answer: Mapping[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DeviceError) as caught:
        bench(answer, tmp_path).time([saved(tmp_path)], [], 1)
    assert str(caught.value).isprintable()


def test_a_missing_runtime_names_the_extra(tmp_path: Path) -> None:
    missing = {"error": "runtime-missing", "message": "No module named 'openvino'"}
    with pytest.raises(RuntimeMissing, match=r"targets/t\.toml.*edgeprune\[openvino\]") as caught:
        Bench(replace(TARGET, runtime="openvino"), Fake(lambda job: missing), tmp_path)
    assert caught.value.exit_code == 2


def test_a_missing_fact_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cpu"):
        Bench(TARGET, Fake(lambda job: {k: v for k, v in IDENTITY.items() if k != "cpu"}), tmp_path)


# ---------------------------------------------------------------------------------------------------- an agent's start


class Told:
    """The link to a host that has sent a hello, and what it got."""

    def __init__(self, token: str) -> None:
        self._hello = wire.document(wire.Hello("0" * 32, "me", token))
        self.replies: list[dict[str, Any]] = []

    def next_request(self) -> dict[str, Any]:
        return self._hello

    def reply(self, document: dict[str, Any]) -> None:
        self.replies.append(document)


def started(told: Told, monkeypatch: pytest.MonkeyPatch) -> str:
    """The message of an agent that does not start."""
    monkeypatch.setattr(main, "Link", lambda: told)
    monkeypatch.setattr(main.worker, "ENDINGS", ())
    main.serve()
    (reply,) = told.replies
    assert reply["error"] == "system"
    return str(reply["message"])


def test_an_agent_that_cannot_write_its_folder_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The home may have become full or read-only since the agent was sent, as with a worn SD card."""

    def refused(leased: bool) -> str:
        raise OSError(errno.EROFS, "Read-only file system", "/home/pi/.edgeprune/work")

    monkeypatch.setattr(main, "_work_folder", refused)
    text = started(Told(""), monkeypatch)
    assert "Read-only file system: '/home/pi/.edgeprune/work'. Is the disk there full or read-only?" in text


def test_a_lease_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for place, reason in (("link", "symbolic links"), ("none/lease", "No such file")):
        monkeypatch.setattr(main.lease, "LEASE", str(tmp_path / place))
        text = started(Told("t"), monkeypatch)
        assert str(tmp_path / place) in text and reason in text and "repair /tmp" in text
    assert not (tmp_path / "elsewhere").exists()


def test_a_damaged_record_of_changes_does_not_keep_the_agent_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main.machine, "root", lambda: str(tmp_path))
    gone = f"undo-999999999-{main.machine.boot_id()[:8]}.json"
    for name, text in (("undo-x.json", "["), ("undo-1-abc.json", '{"a"'), ("undo-2-abc.json", "[7]"), (gone, "")):
        (tmp_path / name).write_text(text)
    kept = tmp_path / "undo-3-abc.json"
    kept.write_text(json.dumps([["false"]]))
    main.undo.restore()
    assert main.undo.pending() == ["false"] and kept.exists() and not (tmp_path / gone).exists()
