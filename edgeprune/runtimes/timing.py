"""Time models one inference after the other, interleaved.

It travels to devices: standard library only, Python 3.8 and up.
"""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Callable, Iterator, Optional, Sequence, Tuple

from . import machine

STABLE = 0.02  # warm-up ends when the medians of two consecutive windows are this close
WINDOW = (3, 20)  # runs in a window: at least, and at most
WINDOW_NS = 20_000_000  # a window ends early once its runs fill this time
# Before its window a model runs so often, or for this time: the other models have filled the caches. See docs/adr/0010.
REFILL, REFILL_NS = 20, 5_000_000
NARROW = 0.002  # timing ends when the interval of the median is at most this wide, relative to the median


@dataclass(frozen=True)
class Timing:
    """How long to warm up and to time.

    `warmup_s` and `timed_s` count for each model. A measurement takes `runs_min` to `runs_max` runs of each model.
    """

    warmup_s: float
    timed_s: float
    runs_min: int
    runs_max: int


@dataclass(frozen=True)
class NodeTime:
    """Nanoseconds of one node of the runtime's graph.

    `fused` names the nodes of the model file that it stands for. `kind` is its operator, as the runtime calls it.
    """

    name: str = field(metadata={"chars": 1 << 14})  # names of fused nodes list their parts
    ns: int
    fused: Tuple[str, ...] = field(default=(), metadata={"chars": 1 << 14})
    kind: str = ""


@dataclass(frozen=True)
class Timed:
    """The runs of one model in one process.

    `times_ns` are in the order taken. `waited_ns` is how long the process waited for a busy processor, `waits` how often.
    `copies_ns` is what the copies to an accelerator and back take. `fallbacks` counts layers that an accelerator refused.
    `load_ns` is how long the runtime took to load the model; None where it cannot be known.
    """

    times_ns: Tuple[int, ...]
    waited_ns: int = 0
    waits: int = 0
    copies_ns: int = 0
    fallbacks: int = 0
    nodes: Tuple[NodeTime, ...] = ()
    load_ns: Optional[int] = None


Run = Callable[[], object]
Clock = Callable[[], int]


class _Log:
    """The runs of one model while they are taken."""

    def __init__(self) -> None:
        self.times_ns: list[int] = []
        self.waited_ns = self.waits = 0

    def add(self, run: Run, clock: Clock) -> None:
        waited, waits = scheduled()
        self.times_ns += window(run, clock)
        now = scheduled()
        self.waited_ns += now[0] - waited
        self.waits += now[1] - waits

    def timed(self) -> Timed:
        return Timed(tuple(self.times_ns), self.waited_ns, self.waits)


def interleaved(runs: Sequence[Run], timing: Timing) -> list[Timed]:
    """Warm up every model, then time them in windows, one model after the other.

    The models share every disturbance of the machine. `perf_counter_ns` never goes back, whatever the wall clock does.
    """
    clock = time.perf_counter_ns
    for run in runs:
        warm_up(run, timing, clock)
    with undisturbed():
        return _timed(runs, timing, clock)


@contextmanager
def undisturbed() -> Iterator[None]:
    """A context in which no garbage is collected. It is collected before, unless an outer context did so."""
    if not gc.isenabled():
        yield
        return
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _timed(runs: Sequence[Run], timing: Timing, clock: Clock) -> list[Timed]:
    logs = [_Log() for _ in runs]
    start, fewest, check = clock(), 0, timing.runs_min
    spent = int(timing.timed_s * 1e9) * len(runs)
    while fewest < timing.runs_max and (fewest < timing.runs_min or clock() < start + spent):
        for run, log in zip(runs, logs):
            if len(runs) > 1:
                refill(run, clock)
            log.add(run, clock)
        fewest = min(len(log.times_ns) for log in logs)
        if fewest >= check and clock() > start + spent // 2:  # equal times within one moment prove little
            if all(narrow(log.times_ns) for log in logs):
                break
            check = 2 * fewest
    return [log.timed() for log in logs]


def concurrent(runs: Sequence[Run], timing: Timing) -> tuple[int, int]:
    """Run several streams at the same time, each in its own thread, for `timed_s`.

    Returns:
        The inferences that were completed, and the nanoseconds from the first start to the last end.
    """
    clock = time.perf_counter_ns
    for run in runs:
        warm_up(run, timing, clock)
    begun: list[int] = []
    together = threading.Barrier(len(runs), lambda: begun.append(clock()))

    def stream(run: Run) -> tuple[int, int]:
        together.wait()
        until, count = begun[0] + int(timing.timed_s * 1e9), 0
        while count == 0 or clock() < until:
            run()
            count += 1
        return count, clock()

    with ThreadPoolExecutor(len(runs)) as threads:
        found = list(threads.map(stream, runs))
    return sum(count for count, _ in found), max(1, max(end for _, end in found) - begun[0])


def repeat(run: Run, timing: Timing) -> tuple[int, ...]:
    """Time one model, in nanoseconds."""
    return interleaved([run], timing)[0].times_ns


def warm_up(run: Run, timing: Timing, clock: Clock) -> None:
    """Run windows until two consecutive medians agree, or `warmup_s` is over."""
    until, last = clock() + int(timing.warmup_s * 1e9), 0
    while True:
        middle = median(window(run, clock))
        if (last and abs(middle - last) <= STABLE * last) or clock() > until:
            return
        last = middle


def refill(run: Run, clock: Clock) -> None:
    """Run until the caches hold the model again: `REFILL` times, but no longer than `REFILL_NS`."""
    until = clock() + REFILL_NS
    for _ in range(REFILL):
        run()
        if clock() >= until:
            return


def window(run: Run, clock: Clock) -> list[int]:
    """A few runs, in nanoseconds each."""
    times: list[int] = []
    while len(times) < WINDOW[0] or (len(times) < WINDOW[1] and sum(times) < WINDOW_NS):
        times.append(_one(run, clock))
    return times


def _one(run: Run, clock: Clock) -> int:
    """One inference takes at least a nanosecond: a clock may tick more slowly than that."""
    start = clock()
    run()
    return max(1, clock() - start)


def median(times: Sequence[int]) -> int:
    """The upper median."""
    return sorted(times)[len(times) // 2]


def middle_mean(times: Sequence[int]) -> int:
    """The mean of the middle half. It is finer than the clock's ticks and ignores disturbed runs."""
    ordered = sorted(times)
    middle = ordered[len(ordered) // 4 : len(ordered) - len(ordered) // 4]
    return sum(middle) // len(middle)


def narrow(times: Sequence[int]) -> bool:
    """Whether the 95 % interval of the median is narrow enough.

    The interval is distribution-free: order statistics from the binomial, by its normal approximation.
    """
    ordered, n = sorted(times), len(times)
    half = 0.98 * n**0.5
    low, high = ordered[max(0, int(n / 2 - half))], ordered[min(n - 1, int(n / 2 + half))]
    return high - low <= NARROW * ordered[n // 2]


def scheduled() -> tuple[int, int]:
    """How long this process waited for a processor, in nanoseconds, and how often it got one (Linux, sched-stats)."""
    fields = machine.first_line("/proc/self/schedstat").split()
    return (int(fields[1]), int(fields[2])) if len(fields) == 3 else (0, 0)
