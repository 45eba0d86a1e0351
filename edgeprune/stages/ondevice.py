"""Figures that only a device can tell: the memory of a process that runs the network, and its throughput."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeprune.devices.bench import Bench
from edgeprune.latency import stats
from edgeprune.limits import LIMITS
from edgeprune.records import Check, Limit, Samples
from edgeprune.records.budget import amount_text
from edgeprune.stages.verdict import POLICY


@dataclass(frozen=True)
class Subject:
    """A device, the files of the example inputs, and the samples that a call computes."""

    device: Bench
    files: Sequence[Path]
    size: int


def values(limit: Limit, subject: Subject, model: Path, processes: int) -> list[float]:
    """A figure in several fresh processes: bytes, or nanoseconds a sample."""
    if limit.figure == "memory":
        return peaks(subject.device.time([model], subject.files, processes)[0])
    return [_sample_ns(limit, subject, model) for _ in range(processes)]


def peaks(samples: Samples) -> list[float]:
    """The peak memory of each process."""
    return [float(run.peak_memory_bytes) for run in samples.runs]


def pairs(limit: Limit, subject: Subject, models: tuple[Path, Path]) -> tuple[list[float], list[float]]:
    """A throughput of two models, interleaved, in as many processes as a round of a verdict takes."""
    found = [[_sample_ns(limit, subject, model) for model in models] for _ in range(POLICY.verify.processes)]
    return [first for first, _ in found], [second for _, second in found]


def check(limit: Limit, original: Sequence[float], pruned: Sequence[float]) -> Check:
    """Decide a limit, from the figure in fresh processes of the original and of the pruned network."""
    limits = np.array([limit.resolve(value) for value in original])
    count = min(len(limits), len(pruned))
    found = stats.median_interval(np.array(pruned[:count]) / limits[:count], POLICY.verify.confidence)
    before, after, most = (float(np.median(one)) for one in (original, pruned, limits))
    rate = limit.figure == "throughput"
    shown, least = (1e9 / after, 1e9 / most) if rate else (after, most)
    used = f"{100 * found.low:.1f} to {100 * found.high:.1f}% of the limit{' in time a sample' * rate}"
    note = f"[budget] {limit}, of {amount_text(limit.figure, before)}; {used}, over {count} processes"
    return Check(f"{limit.figure}_limit", stats.decide(found, 1.0), shown, least, note)


def _sample_ns(limit: Limit, subject: Subject, model: Path) -> float:
    calls = subject.device.throughput(model, subject.files, limit.streams, LIMITS.timed_s)
    return 1e9 / (calls * subject.size)
