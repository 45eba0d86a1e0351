"""What competes with a measurement is read from the files of the kernel, and named."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeprune.devices import patience
from edgeprune.devices.agent import contention
from edgeprune.devices.patience import ATTEMPTS, Disturbances, Patience
from edgeprune.errors import InconclusiveError, UsageError
from edgeprune.limits import LIMITS
from edgeprune.records import Run

SPIN = "while True: pass"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def kernel(tmp_path: Path) -> tuple[Path, Path]:
    """Folders that stand for /proc and /sys/fs/cgroup."""
    return tmp_path / "proc", tmp_path / "cgroup"


def quota(kernel: tuple[Path, Path]) -> float | None:
    return contention.quota_cores(str(kernel[0]), str(kernel[1]))


def test_a_quota_of_version_2_is_read(kernel: tuple[Path, Path]) -> None:
    """`docker run --cpus 0.5`: the container sees its own group as the root."""
    proc, cgroup = kernel
    write(proc / "self/cgroup", "0::/\n")
    write(cgroup / "cpu.max", "50000 100000\n")
    assert quota(kernel) == 0.5
    assert contention.limits(str(cgroup), str(proc), "none") == {"quota": 0.5}
    assert contention.cores(str(proc), str(cgroup)) == 1


def test_the_least_quota_of_the_groups_around_counts(kernel: tuple[Path, Path]) -> None:
    proc, cgroup = kernel
    write(proc / "self/cgroup", "0::/user.slice/job\n")
    write(cgroup / "cpu.max", "max 100000\n")
    write(cgroup / "user.slice/cpu.max", "150000 100000\n")
    write(cgroup / "user.slice/job/cpu.max", "max 100000\n")
    assert quota(kernel) == 1.5


def test_a_quota_of_version_1_is_read(kernel: tuple[Path, Path]) -> None:
    proc, cgroup = kernel
    write(proc / "self/cgroup", "8:pids:/x\n3:cpu,cpuacct:/docker/1f\n0::/\n")
    write(cgroup / "cpu,cpuacct/cpu.cfs_quota_us", "200000\n")
    write(cgroup / "cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    assert quota(kernel) == 2.0  # the group's own folder is not visible in the container


@pytest.mark.parametrize("content", ["max 100000\n", "", "x y\n", "100000\n", "5 0\n"])
def test_without_a_quota_nothing_is_reported(content: str, kernel: tuple[Path, Path]) -> None:
    proc, cgroup = kernel
    write(proc / "self/cgroup", "0::/\n")
    write(cgroup / "cpu.max", content)
    assert quota(kernel) is None
    assert contention.cores(str(proc), str(cgroup)) == len(os.sched_getaffinity(0))


def test_a_capped_clock_is_reported(tmp_path: Path) -> None:
    write(tmp_path / f"cpu{min(os.sched_getaffinity(0))}/cpufreq/cpuinfo_max_freq", "1800000\n")
    write(tmp_path / f"cpu{min(os.sched_getaffinity(0))}/cpufreq/scaling_max_freq", "900000\n")
    assert contention.limits("none", "none", str(tmp_path)) == {"capped": 0.5}


def stat(proc: Path, pid: int, name: str, ticks: int) -> None:
    write(
        proc / str(pid) / "stat", f"{pid} ({name}) R 1 1 1 0 -1 4194304 100 0 0 0 {ticks} 0 0 0 20 0 1 0 100 1000 10\n"
    )


def test_the_busiest_other_process_is_named(kernel: tuple[Path, Path]) -> None:
    proc, cgroup = kernel
    hertz = os.sysconf("SC_CLK_TCK")
    write(proc / "self/cgroup", "0::/\n")
    write(cgroup / "cpu.stat", "nr_throttled 1\nthrottled_usec 0\n")
    stat(proc, 1, "init", 0)
    stat(proc, 7, "own", 0)
    stat(proc, 8, "ff) mpeg\x1b", 0)
    before = contention.snapshot(str(proc), str(cgroup))
    write(cgroup / "cpu.stat", "nr_throttled 9\nthrottled_usec 500000\n")
    stat(proc, 7, "own", 9 * hertz)
    stat(proc, 8, "ff) mpeg\x1b", hertz // 2)
    stat(proc, 9, "new", hertz // 4)
    after = contention.snapshot(str(proc), str(cgroup))
    taken = contention.Snapshot(before.at_s + 1, after.ticks, after.stopped_ns)
    found = contention.between(before, taken, own=7)
    assert found == {"others": 0.75, "busiest": "ff) mpeg\\x1b 50%", "stopped": 0.5}


@pytest.fixture
def neighbour() -> Iterator[int]:
    """A process that keeps a processor busy."""
    process = subprocess.Popen([sys.executable, "-c", SPIN])
    yield process.pid
    process.kill()
    process.wait()


def test_a_busy_process_of_this_machine_is_found(neighbour: int) -> None:
    before = contention.snapshot()
    until = time.monotonic() + 30
    while time.monotonic() < until:
        time.sleep(0.2)
        after = contention.snapshot()
        if after.ticks[neighbour][1] > before.ticks.get(neighbour, ("", 0))[1]:
            break
    assert float(contention.between(before, after, os.getpid())["others"]) > 0


# ------------------------------------------------------------------------------------------------------- patience


def crowded(**after: float | str) -> Run:
    return Run((10,), 1, waited_ns=9, waits=1, after=dict(after))


def test_a_quota_is_blamed_where_it_stopped_the_process() -> None:
    assert crowded(stopped=0.9).disturbed == "a quota stopped the process"
    assert crowded(stopped=0.01).disturbed == "other processes used the processor"


def test_patience_ends_with_what_disturbed_and_what_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disturbed measurement is repeated until the time is used up; pauses count, too."""
    pauses: list[float] = []
    monkeypatch.setattr(patience.time, "sleep", pauses.append)
    lines: list[str] = []
    disturbances = Disturbances("pi", Patience(100.0, lines.append))
    run = crowded(others=1.9, busiest="ffmpeg 98%", load=2.5, quota=0.5, stopped=0.1, capped=0.6)
    with pytest.raises(InconclusiveError) as caught:  # noqa: PT012 - it is not known which attempt raises
        for number in range(50):
            disturbances.attempt(number, [run], 0, 10.0)
    attempts = len(lines) + 1
    assert attempts * 10 + sum(pauses) >= 100 > (attempts - 1) * 10 + sum(pauses[:-1])
    assert attempts >= ATTEMPTS and max(pauses) <= LIMITS.pause_s
    for part in (
        "pi: too disturbed to measure: other processes used the processor",
        "other processes used 1.9 processors, the most by ffmpeg 98%",
        "load 2.5",
        "quota 0.5 processors, which stopped it for 10% of the time",
        "the clock is capped at 60%",
        f"{attempts} of {attempts} processes discarded",
        "--patience 30m",
    ):
        assert part in str(caught.value)
    assert all("ffmpeg 98%" in line and "discarded" in line for line in lines)


def test_a_notice_promises_no_wait_of_no_time() -> None:
    lines: list[str] = []
    Disturbances("pi", Patience(0.5, lines.append)).attempt(0, [crowded()], 1, 1.0)
    assert lines[0].endswith("; waits no longer")


def test_a_measurement_that_gets_on_does_not_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience.time, "sleep", lambda seconds: pytest.fail("it pauses"))
    disturbances = Disturbances("pi", Patience(1000.0, lambda text: None))
    for number in range(10):
        disturbances.attempt(number, [crowded()], 1, 1.0)
    assert (disturbances.discarded, disturbances.kept) == (10, 10)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("1.5 h", 5400), ("2min", 120)])
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert patience.parse(text) == seconds


@pytest.mark.parametrize("text", ["", "15", "-1m", "1d", "m", "1e3s"])
def test_a_bad_duration_is_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="write 90s, 15m or 2h"):
        patience.parse(text)
