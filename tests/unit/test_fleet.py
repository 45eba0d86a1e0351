"""Work on many hosts: several at a time, each within its deadline, up to a number of failures."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeprune.devices import fleet
from edgeprune.devices.fleet import ALL, Pace, Turn, each
from edgeprune.errors import DeviceError, UsageError
from edgeprune.records import Target


def hosts(count: int) -> list[tuple[str, Target]]:
    return [(f"h{i}", Target(Path("t.toml"), "t", "ssh", "null")) for i in range(count)]


def failing(*names: str) -> Callable[[Turn], str]:
    def work(turn: Turn) -> str:
        if turn.name in names:
            raise DeviceError("it is dead")
        return turn.name

    return work


def test_all_hosts_are_asked_also_when_the_first_is_dead() -> None:
    found = each(hosts(5), failing("h0"), ALL)
    assert list(found.errors) == ["h0"] and set(found.values) == {"h1", "h2", "h3", "h4"}
    with pytest.raises(DeviceError, match=r"^h0: it is dead$"):
        fleet.values(hosts(5), found)


def test_not_more_hosts_than_allowed_are_worked_on_at_the_same_time() -> None:
    lock, now, most = threading.Lock(), 0, 0
    together = threading.Barrier(3, timeout=60)  # three do work at the same time, or this fails

    def work(turn: Turn) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        together.wait()
        with lock:
            now -= 1

    each(hosts(9), work, Pace(parallel=3))
    assert most == 3


@pytest.mark.parametrize(("allowed", "begun"), [(0, 2), (1, 4), (2, 6), (None, 6)])
def test_no_other_host_begins_after_too_many_failures(allowed: int | None, begun: int) -> None:
    found = each(hosts(6), failing("h1", "h3"), Pace(parallel=1, max_failures=allowed))
    assert len(found.values) + len(found.errors) == begun


def test_a_host_that_misses_its_deadline_is_left_and_can_begin_no_further_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "GRACE_S", 0.0)
    hung, steps = threading.Event(), []

    def work(turn: Turn) -> str:
        if turn.name == "h1":
            hung.wait(20)
            turn.left_s()
            steps.append("a step after the deadline")
        return turn.name

    start = time.monotonic()
    found = each(hosts(3), work, Pace(max_failures=None, host_s=0.2))
    assert time.monotonic() - start < 15
    assert set(found.values) == {"h0", "h2"}
    assert isinstance(found.errors["h1"], fleet.Overdue) and "what it runs is not known" in str(found.errors["h1"])
    hung.set()
    time.sleep(0.1)
    assert not steps


def test_an_interrupt_lets_hosts_in_work_end_and_begins_no_other() -> None:
    lines: list[str] = []
    going = threading.Event()

    def work(turn: Turn) -> str:
        turn.report("begins")
        going.wait(10)
        return turn.name

    def report(text: str) -> None:
        lines.append(text)
        if text == "h1: begins":
            raise KeyboardInterrupt  # as Ctrl-C does in the main thread
        if "interrupted" in text:
            going.set()

    found = each(hosts(4), work, Pace(parallel=2), report)
    assert found.interrupted and set(found.values) == {"h0", "h1"} and not found.errors
    assert any("waiting up to 30 s for h0, h1" in text for text in lines)


def test_a_second_interrupt_gives_up_what_is_in_work() -> None:
    def work(turn: Turn) -> str:
        turn.report("begins")
        threading.Event().wait(30)
        return turn.name

    def report(text: str) -> None:
        raise KeyboardInterrupt

    found = each(hosts(2), work, Pace(parallel=1), report)
    assert found.interrupted and not found.values and "h0" in found.errors


def test_a_bug_on_one_host_is_its_own_error() -> None:
    def work(turn: Turn) -> str:
        return {"h0": "fine"}[turn.name]

    found = each(hosts(2), work, ALL)
    assert found.values == {"h0": "fine"} and "bug" in str(found.errors["h1"]) and found.errors["h1"].exit_code == 70


@pytest.mark.parametrize("wrong", [{"parallel": 0}, {"parallel": 1000}, {"max_failures": -1}, {"host_s": 0.0}])
def test_wrong_options_are_usage_errors(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="--"):
        Pace(**wrong)  # type: ignore[arg-type]
