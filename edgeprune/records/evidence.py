"""What a verdict rests on: times by process, discarded processes, differences of outputs. It is kept beside the verdict."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.records.device import Conditions


@dataclass(frozen=True)
class Discarded:
    """A process whose times were discarded as disturbed.

    Attributes:
        reason: what disturbed it.
        facts: what competed for the processor, as the device reported it; may be empty.
        median_ns: the median of the discarded times.
    """

    reason: str
    facts: str
    median_ns: int


@dataclass(frozen=True)
class TimedProcess:
    """One fresh process of a verdict.

    Attributes:
        times_ns: raw times in the order in which they were taken; one of each equal part if there are more than a cap.
        count: how many were taken.
        median_ns: the median of all of them.
        peak_memory_bytes: the process's peak memory.
    """

    times_ns: tuple[int, ...]
    count: int
    median_ns: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Differences:
    """How far one output of an artifact is from torch's, over all its values. Differences are absolute.

    Attributes:
        output: the name of the output.
        scale: the largest absolute value of torch's output.
        tolerance: the largest difference that passes.
        equal: how many values are the same.
        edges: of the histogram's bins, on a logarithmic scale, one more than `counts`. Smaller differences are in the first
            bin. Empty if all values are the same.
        counts: how many values differ by so much.
        worst: the sample with the largest difference: its place in the split, in the order of the verdict.
        largest: this difference.
        expected: torch's value at that place.
        got: the artifact's value there.
        samples: how many samples were compared.
    """

    output: str
    scale: float
    tolerance: float
    equal: int
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    worst: int
    largest: float
    expected: float
    got: float
    samples: int


@dataclass(frozen=True)
class Evidence:
    """What a verdict rests on.

    Attributes:
        original: the processes of the original network. Process i was interleaved with process i of `pruned`.
        pruned: the same of the pruned network. They are the same processes if both networks are one artifact without a budget.
        discarded: the disturbed processes of both, and of other networks of a sweep that were measured together with them.
        before: the state of the device before the first process.
        after: its state after the last one.
        differences: an item for each output that is compared, the main one first.
    """

    original: tuple[TimedProcess, ...]
    pruned: tuple[TimedProcess, ...]
    discarded: tuple[Discarded, ...]
    before: Conditions
    after: Conditions
    differences: tuple[Differences, ...]
