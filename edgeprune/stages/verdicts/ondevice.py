"""Figures that only a device can tell: the memory of a process that runs the network, its throughput and its energy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeprune.devices.bench import Bench
from edgeprune.errors import InconclusiveError, UsageError
from edgeprune.latency import stats
from edgeprune.limits import LIMITS
from edgeprune.records import Check, Energy, Limit, Samples
from edgeprune.records.budget import amount_text
from edgeprune.stages.verdicts.verdict import POLICY

ENERGY_PROCESSES = 3  # of each model in a verdict, each with several cycles
NO_RAILS = (
    "[budget] energy: the device cannot measure it: this user can read no power rail there. Remove energy, or let the user"
    " read one: see the page of energy"
)


@dataclass(frozen=True)
class Subject:
    """A device, the files of the example inputs, and the samples that a call computes."""

    device: Bench
    files: Sequence[Path]
    size: int


def values(limit: Limit, subject: Subject, model: Path, processes: int) -> list[float]:
    """A figure in several fresh processes: bytes, or nanoseconds a sample. Of an energy, all cycles of one process."""
    if limit.figure == "memory":
        return peaks(subject.device.time([model], subject.files, processes)[0])
    if limit.figure == "energy":
        return [*energy(subject, model).each_uj]
    return [_sample_ns(limit, subject, model) for _ in range(processes)]


def energy(subject: Subject, model: Path) -> Energy:
    """The energy of a call. Raises `UsageError` if the device cannot measure it, `InconclusiveError` if it is too small."""
    found = subject.device.energy(model, subject.files)
    if found is None:
        raise UsageError(NO_RAILS)
    if np.median(found.each_uj) <= 0:
        raise InconclusiveError(
            f"a call draws too little to be told from the idle device by {found.source}; remove energy"
        )
    return found


def require(limits: Sequence[Limit], device: Bench) -> None:
    """Raises `UsageError` at once if a limit cannot be measured on the device."""
    if any(limit.figure == "energy" for limit in limits) and "rails" not in device.state():
        raise UsageError(NO_RAILS)


def peaks(samples: Samples) -> list[float]:
    """The peak memory of each process."""
    return [float(run.peak_memory_bytes) for run in samples.runs]


def pairs(limit: Limit, subject: Subject, models: tuple[Path, Path]) -> tuple[list[float], list[float]]:
    """A throughput or an energy of two models, interleaved, in as many processes as a round of a verdict takes."""
    if limit.figure == "energy":
        each = [[energy(subject, model).each_uj for model in models] for _ in range(ENERGY_PROCESSES)]
        return [uj for first, _ in each for uj in first], [uj for _, second in each for uj in second]
    found = [[_sample_ns(limit, subject, model) for model in models] for _ in range(POLICY.verify.processes)]
    return [first for first, _ in found], [second for _, second in found]


def check(limit: Limit, original: Sequence[float], pruned: Sequence[float]) -> Check:
    """Decide a limit, from the figure in fresh processes of the original and of the pruned network."""
    count = min(len(original), len(pruned))
    before, after = float(np.median(original)), float(np.median(pruned))
    most = limit.resolve(before)
    # A cycle of energy may be off by more than its value, so that only its median can be a limit.
    limits = [most if limit.figure == "energy" else limit.resolve(value) for value in original[:count]]
    found = stats.median_interval(np.array(pruned[:count]) / np.array(limits), POLICY.verify.confidence)
    rate = limit.figure == "throughput"
    shown, least = (1e9 / after, 1e9 / most) if rate else (after, most)
    share = f"{100 * found.low:.1f} to {100 * found.high:.1f}% of the limit{' in time a sample' * rate}"
    each = f"{count} {'cycles' if limit.figure == 'energy' else 'processes'}"
    note = f"[budget] {limit}, of {amount_text(limit.figure, before)}; {share}, over {each}"
    return Check(f"{limit.figure}_limit", stats.decide(found, 1.0), shown, least, note)


def _sample_ns(limit: Limit, subject: Subject, model: Path) -> float:
    calls = subject.device.throughput(model, subject.files, limit.streams, LIMITS.timed_s)
    return 1e9 / (calls * subject.size)
