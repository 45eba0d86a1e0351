"""Equal boards that share measurements: each takes the next process when it is free."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from edgeprune.devices.bench import Bench, Measured, open_bench
from edgeprune.devices.patience import Patience
from edgeprune.errors import EdgepruneError
from edgeprune.latency import stats
from edgeprune.records import Device, Interval, Run, Samples, Target

EQUAL = 0.01  # boards whose latencies of the anchor differ by more than this share are not equal
COMPARED = 2  # processes of the anchor on each board, before it measures anything else
CHECKED = 3  # batches of each board from which on their anchors are compared, too
FIRST = "the first board"

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
class _Work:
    """Batches that boards take one after another; see `Bench.measure`. `done` has the places that each board measured."""

    batches: Sequence[Sequence[Path]]
    inputs: Sequence[Path]
    timed_s: float
    profiled: bool
    on_done: Callable[[int, list[Measured]], None]
    todo: deque[int]
    done: dict[str, list[int]] = field(default_factory=dict)


class Pool:
    """The device of a run, and other boards that help it. It is closed when they are no longer needed.

    Args:
        first: the device.
        openers: open the other boards, by name.
    """

    def __init__(self, first: Bench, openers: Mapping[str, Opener] | None = None) -> None:
        self._first, self._openers = first, openers or {}
        self._others: dict[str, Bench] = {}
        self._open: dict[str, ExitStack] = {}
        self._anchors: dict[str, list[Run]] = {}  # in the batches of each board
        self._lock = threading.Lock()

    def open(self, anchor: Path, inputs: Sequence[Path]) -> int:
        """Open the other boards, and leave out any that cannot be used or differs. Returns the number of boards."""
        openers, self._openers = self._openers, {}
        for name, opener in openers.items():
            self._open[name] = ExitStack()
            try:
                self._others[name] = self._open[name].enter_context(opener())
            except EdgepruneError as error:
                self._leave_out(name, str(error))
        if openers and self._others:
            self._compare(anchor, inputs)
        return self.size

    @property
    def size(self) -> int:
        """The number of boards that measure now."""
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
        """Measure each batch on any board; see `Bench.measure`. Every batch begins with the anchor.

        A board that fails, or that turns out not to be equal, is left out. The first board then does its work of this call.
        Raises the error of the first board.
        """
        if not self._others:
            self._first.measure(batches, inputs, timed_s, profiled, on_done=on_done)
            return
        work = _Work(batches, inputs, timed_s, profiled, on_done, deque(range(len(batches))))
        with ThreadPoolExecutor(len(self._others)) as threads:
            helping = {name: threads.submit(self._take, name, bench, work) for name, bench in self._others.items()}
            try:
                self._take(FIRST, self._first, work)
            except BaseException:
                work.todo.clear()  # the others end what they have begun
                raise
        for name, helped in helping.items():
            try:
                helped.result()
            except EdgepruneError as error:
                self._leave_out(name, str(error))
        for name in list(self._others):
            known = self._anchors.get(FIRST, []), self._anchors.get(name, [])
            if min(map(len, known)) >= CHECKED and self._is_left_out(name, *known):
                work.todo.extend(work.done.get(name, []))
        self._take(FIRST, self._first, work)

    def _take(self, name: str, bench: Bench, work: _Work) -> None:
        """Measure one batch after another on a board, until none is left. A batch that fails goes back."""
        while True:
            with self._lock:
                if not work.todo:
                    return
                place = work.todo.popleft()
            try:
                (found,) = bench.measure([work.batches[place]], work.inputs, work.timed_s, work.profiled)
            except BaseException:
                with self._lock:
                    work.todo.append(place)
                raise
            with self._lock:
                self._anchors.setdefault(name, []).append(found[0].run)
                work.done.setdefault(name, []).append(place)
                work.on_done(place, found)

    def _compare(self, anchor: Path, inputs: Sequence[Path]) -> None:
        """Leave out the boards of another kind, and those on which the anchor surely has another latency."""
        known = self._first.device
        for name, bench in list(self._others.items()):
            if bench.device.identity != known.identity:
                self._leave_out(name, f"it is another kind of device: {_difference(known, bench.device)}")

        def anchors(bench: Bench) -> list[Run]:
            return [one.run for (one,) in bench.measure([[anchor]] * COMPARED, inputs)]

        with ThreadPoolExecutor(1 + len(self._others)) as threads:
            asked = {name: threads.submit(anchors, bench) for name, bench in self._others.items()}
            first = anchors(self._first)
        for name, answer in asked.items():
            try:
                self._is_left_out(name, first, answer.result())
            except EdgepruneError as error:
                self._leave_out(name, str(error))

    def _is_left_out(self, name: str, first: Sequence[Run], other: Sequence[Run]) -> bool:
        """Compare the anchor on two boards. A board that surely differs is left out."""
        ratio = differs(Samples(tuple(first)), Samples(tuple(other)))
        if ratio is None:
            return False
        self._leave_out(
            name,
            f"its latency is {ratio.mid:.3f} times that of {FIRST} ({ratio.low:.3f} to {ratio.high:.3f}), and 1 % is allowed",
        )
        return True

    def _leave_out(self, name: str, reason: str) -> None:
        log.warning("%s is left out: %s", name, reason)
        self._others.pop(name, None)
        self._open.pop(name).close()


def _difference(first: Device, other: Device) -> str:
    """The facts in which two kinds of devices differ."""
    facts = "machine", "cpu", "cores", "system", "runtime", "runtime_version", "emulated", "simulated"
    pairs = [(fact, getattr(first, fact), getattr(other, fact)) for fact in facts]
    return ", ".join(f"{fact} {b} and not {a}" for fact, a, b in pairs if a != b)
