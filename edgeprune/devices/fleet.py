"""Work on the hosts of a fleet: several at the same time, each within its deadline, up to a number of failures.

Each host has a thread. All reports and results come to the calling thread, so callbacks need no locks. A thread that misses
its deadline is left behind. It can begin no further step on its host, since every step asks `Turn` for the time that is left.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from edgeprune.devices.patience import duration
from edgeprune.errors import DeviceError, EdgepruneError, UsageError
from edgeprune.limits import LIMITS
from edgeprune.records import Target

GRACE_S = 10.0  # after a host's deadline, for its last step to report that it is over
SHOWN = 3  # failed hosts in a message
Value = TypeVar("Value")
Reporter = Callable[[str], None]
Hosts = Sequence[tuple[str, Target]]
log = logging.getLogger("edgeprune")


@dataclass(frozen=True)
class Pace:
    """How fast, and how far in spite of failures, a fleet is worked through.

    Attributes:
        parallel: hosts at the same time.
        max_failures: hosts that may fail; after one more, no other host begins. None is any number.
        host_s: the deadline of one host.
    """

    parallel: int = LIMITS.fleet_parallel
    max_failures: int | None = 0
    host_s: float = LIMITS.host_s

    def __post_init__(self) -> None:
        if not 1 <= self.parallel <= LIMITS.fleet_parallel_most:
            raise UsageError(f"--parallel must be from 1 to {LIMITS.fleet_parallel_most}, not {self.parallel}")
        if self.max_failures is not None and self.max_failures < 0:
            raise UsageError(f"--max-failures must be 0 or more, not {self.max_failures}")
        if self.host_s <= 0:
            raise UsageError("--host-time must be more than 0")


ALL = Pace(max_failures=None)  # for what only looks: every host is asked


class Overdue(DeviceError):
    """A host did not answer before its deadline. What it does now is not known."""


@dataclass(frozen=True)
class Turn:
    """The turn of one host: its name, how to reach it, and the moment of its deadline."""

    name: str
    target: Target
    until: float
    report: Reporter

    def left_s(self) -> float:
        """The time that is left, in seconds. Raises `Overdue` if there is none."""
        left = self.until - time.monotonic()
        if left <= 0:
            raise Overdue("its time is over")
        return left


Work = Callable[[Turn], Value]


@dataclass(frozen=True)
class Worked(Generic[Value]):
    """What came of the hosts, by name; a host in neither mapping was not begun."""

    values: Mapping[str, Value]
    errors: Mapping[str, EdgepruneError]
    interrupted: bool = False


def each(hosts: Hosts, work: Work[Value], pace: Pace = ALL, report: Reporter = lambda text: None) -> Worked[Value]:
    """Do the work on each host.

    Args:
        hosts: pairs of a name and a target with only this host.
        work: raises an `EdgepruneError` where the host fails.
        pace: how many at a time, and when to stop.
        report: is called in this thread with lines of the work, each with the host's name in front if there are several.

    Returns:
        What came of them. After Ctrl-C, no other host begins, and hosts that are being changed get time to end.
    """
    workers = _Workers(hosts, work, pace, report)
    try:
        workers.run()
    except KeyboardInterrupt:
        workers.interrupt()
    return Worked(workers.values, workers.errors, workers.interrupted)


def values(hosts: Hosts, worked: Worked[Value]) -> list[Value]:
    """The value of every host, in order.

    Raises:
        EdgepruneError: the error of the first host that failed; the message has the first errors of all.
        KeyboardInterrupt: the work was interrupted.
    """
    if worked.interrupted:
        raise KeyboardInterrupt
    failed = [(name, worked.errors[name]) for name, _ in hosts if name in worked.errors]
    if failed:
        first = failed[0][1]
        if len(hosts) > 1:
            more = f"; {len(failed) - SHOWN} more hosts failed" if len(failed) > SHOWN else ""
            first.args = ("; ".join(f"{name}: {error}" for name, error in failed[:SHOWN]) + more,)
        raise first
    return [worked.values[name] for name, _ in hosts]


@dataclass
class _Workers(Generic[Value]):
    hosts: Hosts
    work: Work[Value]
    pace: Pace
    report: Reporter
    values: dict[str, Value] = field(default_factory=dict)
    errors: dict[str, EdgepruneError] = field(default_factory=dict)
    interrupted: bool = False

    def __post_init__(self) -> None:
        self._waiting = deque(self.hosts)
        self._running: dict[str, float] = {}  # the moment at which each is given up
        self._events: queue.SimpleQueue[tuple[str, str, Any]] = queue.SimpleQueue()

    def run(self) -> None:
        while True:
            while self._waiting and len(self._running) < self.pace.parallel and self._goes_on():
                self._begin(*self._waiting.popleft())
            if not self._running:
                return
            self._take()

    def interrupt(self) -> None:
        """Begin no other host, and give those in work time to end. Another Ctrl-C gives them up."""
        self.interrupted = True
        until = time.monotonic() + LIMITS.settle_s
        self._running = {name: min(until, end) for name, end in self._running.items()}
        try:
            if self._running:
                names = ", ".join(self._running)
                self.report(f"interrupted; waiting up to {LIMITS.settle_s:g} s for {names}; Ctrl-C again to leave")
            while self._running:
                self._take()
        except KeyboardInterrupt:
            for name in list(self._running):
                self._give_up(name)

    def _goes_on(self) -> bool:
        return self.pace.max_failures is None or len(self.errors) <= self.pace.max_failures

    def _begin(self, name: str, target: Target) -> None:
        until = time.monotonic() + self.pace.host_s
        self._running[name] = until + GRACE_S
        several = len(self.hosts) > 1

        def say(text: str) -> None:
            self._events.put(("said", name, text if not several or text.startswith(name) else f"{name}: {text}"))

        def do() -> None:
            try:
                self._events.put(("done", name, self.work(Turn(name, target, until, say))))
            except EdgepruneError as error:
                self._events.put(("failed", name, error))
            except BaseException as error:  # a bug: it belongs to this host, and the others still get their table
                log.exception("%s: a bug in edgeprune; please report it", name)
                self._events.put(("failed", name, EdgepruneError(f"a bug in edgeprune: {error!r}")))

        threading.Thread(target=do, name=f"edgeprune-{name}", daemon=True).start()

    def _take(self) -> None:
        """Take one event, or give up the hosts whose time is over."""
        first = min(self._running.values())
        try:
            kind, name, value = self._events.get(timeout=max(0.0, first - time.monotonic()))
        except queue.Empty:
            for name in [name for name, end in self._running.items() if end <= time.monotonic()]:
                self._give_up(name)
            return
        if kind == "said":
            self.report(value)
        elif self._running.pop(name, None) is None:  # it was given up
            return
        elif kind == "done":
            self.values[name] = value
        else:
            self.errors[name] = value

    def _give_up(self, name: str) -> None:
        del self._running[name]
        after = "the interrupt" if self.interrupted else f"{duration(self.pace.host_s)}, its deadline (--host-time)"
        self.errors[name] = Overdue(f"no answer after {after}; what it runs is not known: edgeprune releases")
