"""Equal boards that share measurements: each takes the next process as soon as it is free."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from edgeprune.devices.bench import Bench, Measured, open_bench
from edgeprune.devices.patience import Patience
from edgeprune.errors import EdgepruneError
from edgeprune.latency import stats
from edgeprune.records import Device, Interval, Samples, Target

EQUAL = 0.01  # boards whose latencies of the anchor differ by more than this share are not equal
COMPARED = 5  # processes of the anchor on each board

log = logging.getLogger("edgeprune")
Opener = Callable[[], AbstractContextManager[Bench]]


def others(target: Target, scratch: Path, patience: Patience) -> dict[str, Opener]:
    """Functions that open the other boards of a target, by name. None of them waits for a board that is taken."""
    found: dict[str, Opener] = {}
    for number, host in enumerate(target.others, 2):
        name = f"board {number} ({host.name})"
        folder = scratch / f"board-{number}"
        folder.mkdir(exist_ok=True)
        found[name] = partial(
            open_bench, replace(target, name=f"{target.name}, {name}", host=host), folder, 0.0, patience
        )
    return found


def differs(first: Samples, other: Samples) -> Interval | None:
    """The ratio of the anchor's latencies on two boards if it surely is over `EQUAL` from 1; None otherwise."""
    a, b = stats.latency(first), stats.latency(other)
    ratio = Interval(b.low / a.high, b.mid / a.mid, b.high / a.low)
    return ratio if ratio.high < 1 - EQUAL or ratio.low > 1 + EQUAL else None


@dataclass(frozen=True)
class _Job:
    """What all boards measure; see `Bench.measure`."""

    batches: Sequence[Sequence[Path]]
    inputs: Sequence[Path]
    timed_s: float
    profiled: bool


class Pool:
    """The device of a run, and other boards that help it. It is closed as soon as they are no longer needed.

    Args:
        first: the device.
        openers: open the other boards, by name.
    """

    def __init__(self, first: Bench, openers: dict[str, Opener] | None = None) -> None:
        self._first, self._openers = first, openers or {}
        self._others: dict[str, Bench] = {}
        self._open: dict[str, ExitStack] = {}
        self._lock = threading.Lock()

    def open(self, anchor: Path, inputs: Sequence[Path]) -> int:
        """Open the other boards, and leave out those that cannot be used or are not equal. Returns the number of boards."""
        openers, self._openers = self._openers, {}
        for name, opener in openers.items():
            stack = ExitStack()
            self._open[name] = stack
            try:
                self._others[name] = stack.enter_context(opener())
            except EdgepruneError as error:
                self._leave_out(name, str(error))
        if openers and self._others:
            self._compare(anchor, inputs)
        return 1 + len(self._others)

    def close(self) -> None:
        """Give the other boards back."""
        with ExitStack() as closing:
            for stack in self._open.values():
                closing.enter_context(stack)
        self._others, self._open = {}, {}

    def measure(
        self,
        batches: Sequence[Sequence[Path]],
        inputs: Sequence[Path],
        timed_s: float,
        profiled: bool,
        on_done: Callable[[int, list[Measured]], None],
    ) -> None:
        """Measure each batch on any board; see `Bench.measure`. A board that fails is left out, and others do its work.

        Raises the error of the first board.
        """
        if not self._others:
            self._first.measure(batches, inputs, timed_s, profiled, on_done=on_done)
            return
        job, todo = _Job(batches, inputs, timed_s, profiled), deque(range(len(batches)))
        with ThreadPoolExecutor(len(self._others)) as threads:
            helping = {name: threads.submit(self._work, b, job, todo, on_done) for name, b in self._others.items()}
            try:
                self._work(self._first, job, todo, on_done)
            except BaseException:
                todo.clear()  # the others end what they have begun
                raise
        for name, helped in helping.items():
            error = helped.exception()
            if isinstance(error, EdgepruneError):
                self._leave_out(name, str(error))
            elif error is not None:
                raise error
        self._work(self._first, job, todo, on_done)

    def _work(self, bench: Bench, job: _Job, todo: deque[int], on_done: Callable[[int, list[Measured]], None]) -> None:
        """Measure one batch after another on a board, until none is left. A batch that fails goes back."""
        while True:
            with self._lock:
                if not todo:
                    return
                place = todo.popleft()
            try:
                (found,) = bench.measure([job.batches[place]], job.inputs, job.timed_s, job.profiled)
            except BaseException:
                with self._lock:
                    todo.append(place)
                raise
            with self._lock:
                on_done(place, found)

    def _compare(self, anchor: Path, inputs: Sequence[Path]) -> None:
        """Leave out the boards of another kind, and those on which the anchor surely has another latency."""
        known = self._first.device
        for name, bench in list(self._others.items()):
            if bench.device.identity != known.identity:
                self._leave_out(name, f"it is another kind of device: {_difference(known, bench.device)}")

        def anchors(bench: Bench) -> Samples:
            found = bench.measure([[anchor]] * COMPARED, inputs)
            return Samples(tuple(one.run for (one,) in found))

        with ThreadPoolExecutor(1 + len(self._others)) as threads:
            asked = {name: threads.submit(anchors, bench) for name, bench in self._others.items()}
            first = anchors(self._first)
        for name, answer in asked.items():
            try:
                ratio = differs(first, answer.result())
            except EdgepruneError as error:
                self._leave_out(name, str(error))
                continue
            if ratio is not None:
                self._leave_out(
                    name,
                    f"its latency is {ratio.mid:.3f} times that of the first board"
                    f" ({ratio.low:.3f} to {ratio.high:.3f}), and 1 % is allowed",
                )

    def _leave_out(self, name: str, reason: str) -> None:
        log.warning("%s is left out: %s", name, reason)
        self._others.pop(name, None)
        self._open.pop(name).close()


def _difference(first: Device, other: Device) -> str:
    """The facts in which two kinds of devices differ."""
    facts = "machine", "cpu", "cores", "system", "runtime", "runtime_version", "emulated", "simulated"
    pairs = [(fact, getattr(first, fact), getattr(other, fact)) for fact in facts]
    return ", ".join(f"{fact} {b} and not {a}" for fact, a, b in pairs if a != b)
