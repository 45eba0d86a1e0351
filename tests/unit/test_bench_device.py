"""What `edgeprune bench` asks of a device: several streams, disturbed processes that are used, and a first estimate."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from edgeprune.devices.bench import Bench
from edgeprune.devices.patience import Patience
from edgeprune.devices.transports.base import Document
from edgeprune.devices.transports.fake import Fake
from edgeprune.errors import DeviceError, InconclusiveError
from edgeprune.records import Target
from edgeprune.runtimes import timing
from edgeprune.runtimes.timing import Timing, concurrent, interleaved, repeat, undisturbed

IDENTITY = {
    **dict.fromkeys(("machine", "cpu", "system", "runtime", "runtime_version", "boot_id", "serial"), "x"),
    "cores": 2,
    "emulated": False,
    "simulated": False,
}
TIMING = Timing(0.01, 0.1, 1, 1)


def test_garbage_is_collected_once_before_many_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection takes milliseconds, and a runtime may time hundreds of operators one by one."""
    collections: list[bool] = []
    monkeypatch.setattr(gc, "collect", lambda: collections.append(gc.isenabled()))
    with undisturbed():
        for _ in range(3):
            repeat(lambda: collections.extend([True] * gc.isenabled()), Timing(0, 0, 3, 3))
        assert not gc.isenabled()
    assert gc.isenabled() and collections == [True]
    repeat(lambda: None, Timing(0, 0, 3, 3))
    assert gc.isenabled() and len(collections) == 2


class Cached:
    """A processor on which the first runs after another model's take longer."""

    def __init__(self, usual_ns: int) -> None:
        self.usual_ns, self.now_ns, self.last, self.runs = usual_ns, 0, "", 0

    def run(self, name: str) -> None:
        self.runs = self.runs + 1 if name == self.last else 0
        self.last = name
        self.now_ns += self.usual_ns + max(0, 8 - self.runs) * self.usual_ns // 20

    def perf_counter_ns(self) -> int:
        return self.now_ns


@pytest.mark.parametrize(("usual_ns", "refilled"), [(100_000, True), (50_000_000, False)])
def test_models_that_take_turns_are_timed_as_if_alone(
    usual_ns: int, refilled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small network needs more than one run until the caches hold it again. A large one never fits, and one run will do."""
    processor = Cached(usual_ns)
    monkeypatch.setattr(timing, "time", processor)
    first, second = interleaved([lambda: processor.run("a"), lambda: processor.run("b")], Timing(0.01, 0.02, 50, 60))
    if refilled:
        assert set(first.times_ns) | set(second.times_ns) == {usual_ns}
    waste = processor.now_ns / (sum(first.times_ns) + sum(second.times_ns))
    assert waste < (3 if refilled else 1.5)


def bench(tmp_path: Path, patience: Patience, **throughput: Any) -> tuple[Bench, Fake]:
    """A device whose processes are all disturbed."""

    def answer(job: Document) -> Document:
        if job["mode"] == "identify":
            return IDENTITY
        state = {"before": {"boot_id": "x"}, "after": {"boot_id": "x"}}
        if job["mode"] == "throughput":
            return {**state, "runs": 100, "spent_ns": 500_000_000, **throughput}
        timed = {"times_ns": [1_000_000] * 5, "waited_ns": 1 << 40, "waits": 5, "load_ns": 7}
        return {**state, "models": [timed for _ in job["models"]], "peak_memory_bytes": 1 << 20}

    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "model" / "m.json").write_text("{}")
    fake = Fake(answer)
    return Bench(Target(tmp_path / "t.toml", "t", "local", "null", threads=3), fake, tmp_path, patience), fake


def test_disturbed_processes_are_used_once_the_patience_is_over(tmp_path: Path) -> None:
    notices: list[str] = []
    device, fake = bench(tmp_path, Patience(0.0, notices.append, accepting=True))
    ((measured,),) = device.measure([[tmp_path / "model" / "m.json"]], [])
    assert measured.run.disturbed == "other processes used the processor" and measured.load_ns == 7
    assert device.discarded == 0 and notices == [] and sum(job["mode"] == "time" for job in fake.jobs) == 1


def test_disturbed_processes_are_first_repeated(tmp_path: Path) -> None:
    notices: list[str] = []
    device, fake = bench(tmp_path, Patience(0.02, notices.append, accepting=True))
    device.measure([[tmp_path / "model" / "m.json"]], [])
    assert device.discarded == len(notices) == sum(job["mode"] == "time" for job in fake.jobs) - 1 > 0


def test_without_that_patience_they_are_an_error(tmp_path: Path) -> None:
    device, _ = bench(tmp_path, Patience(0.0, lambda text: None))
    with pytest.raises(InconclusiveError):
        device.measure([[tmp_path / "model" / "m.json"]], [])


def test_an_estimate_takes_one_process_disturbed_or_not(tmp_path: Path) -> None:
    device, fake = bench(tmp_path, Patience())
    assert device.estimate(tmp_path / "model" / "m.json", []).times_ns == (1_000_000,) * 5
    assert [job["mode"] for job in fake.jobs] == ["identify", "time"] and device.discarded == 0


def test_throughput_is_runs_in_a_second_of_all_streams(tmp_path: Path) -> None:
    device, fake = bench(tmp_path, Patience())
    assert device.throughput(tmp_path / "model" / "m.json", [], streams=4, timed_s=0.5) == 200
    assert (fake.jobs[-1]["streams"], fake.jobs[-1]["threads"]) == (4, 3)


@pytest.mark.parametrize("reply", [{"runs": 0}, {"spent_ns": 0}, {"runs": -1}, {"runs": 1e99}])
def test_an_impossible_throughput_is_a_fault_of_the_device(tmp_path: Path, reply: dict[str, Any]) -> None:
    device, _ = bench(tmp_path, Patience(), **reply)
    with pytest.raises(DeviceError, match="t: "):
        device.throughput(tmp_path / "model" / "m.json", [], streams=1, timed_s=0.5)


def test_streams_run_at_the_same_time() -> None:
    """Each run waits until another one runs, too."""
    pair = threading.Barrier(2)
    began: list[int] = []

    def run() -> None:
        if threading.current_thread() is not threading.main_thread():  # the warm-up is one after the other
            pair.wait(60)
            began.append(threading.get_ident())
        if len(began) >= 10:
            pair.abort()  # streams end one after the other

    with pytest.raises(threading.BrokenBarrierError):
        concurrent([run, run], Timing(0.01, 5.0, 1, 1))
    assert len(set(began)) == 2


def test_the_time_of_streams_is_from_the_first_start_to_the_last_end() -> None:
    start = time.perf_counter_ns()
    runs, spent_ns = concurrent([lambda: time.sleep(0.005)] * 2, TIMING)
    assert 2 <= runs <= 2 * (spent_ns / 5e6) and 1e8 <= spent_ns <= time.perf_counter_ns() - start


def test_an_error_in_a_stream_is_raised() -> None:
    def run() -> None:
        if threading.current_thread() is not threading.main_thread():
            raise ValueError("no kernel")

    with pytest.raises(ValueError, match="no kernel"):
        concurrent([run, run], TIMING)
