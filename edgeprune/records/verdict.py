"""Artifacts, checks, verdicts and baselines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

from edgeprune.errors import EXIT_FAIL, EXIT_PASS, InconclusiveError
from edgeprune.records.answer import Answer
from edgeprune.records.device import Conditions, Device, Interval, Samples
from edgeprune.records.target import Precision


@dataclass(frozen=True)
class Candidate:
    """The original network in one precision: its latency, interleaved with all candidates, and its metric."""

    precision: Precision
    latency: Interval
    metric: float


@dataclass(frozen=True)
class Choice:
    """The chosen precision, and all candidates that were measured."""

    precision: Precision
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, repr=False)
class Artifact(Answer):
    """A compiled model.

    Attributes:
        files: the first is the one to load.
        sha256: the digest of all files.
        format: the runtime that loads it.
        precision: of its weights and activations.
        source: the digest of what it was compiled from.
        operators: how many the simplified network has, before a runtime fuses or quantises them.
    """

    files: tuple[Path, ...]
    sha256: str
    format: str
    precision: Precision
    source: str
    operators: int

    @property
    def size_bytes(self) -> int:
        """Bytes on disk, all files together."""
        return sum(file.stat().st_size for file in self.files)


class Outcome(StrEnum):
    """The three outcomes of a check."""

    PASS = "pass"  # noqa: S105 - an outcome, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"

    @property
    def exit_code(self) -> int:
        """What a command with this outcome exits with."""
        codes = {Outcome.PASS: EXIT_PASS, Outcome.FAIL: EXIT_FAIL, Outcome.INCONCLUSIVE: InconclusiveError.exit_code}
        return codes[self]

    @staticmethod
    def of(checks: Iterable[Check]) -> Outcome:
        """The worst outcome of the checks."""
        return Outcome.worst(check.outcome for check in checks)

    @staticmethod
    def worst(outcomes: Iterable[Outcome]) -> Outcome:
        """Fail if any is, else inconclusive if any is, else pass."""
        found = set(outcomes)
        return next((one for one in (Outcome.FAIL, Outcome.INCONCLUSIVE) if one in found), Outcome.PASS)


@dataclass(frozen=True)
class Reference:
    """Whether the original network meets the budget, in the target's precision. All latencies are in nanoseconds.

    `latency` is the one in that precision, `before` the one in fp32.
    """

    outcome: Outcome
    latency: Interval
    before: Interval
    budget_ns: float


@dataclass(frozen=True)
class Check:
    """A figure of the artifact, its limit, and the outcome. `note` holds the interval and how it was measured."""

    name: str
    outcome: Outcome
    value: float
    limit: float
    note: str = ""


@dataclass(frozen=True)
class Figures:
    """Figures of one artifact and its network: a column of the table. `macs` are multiply-accumulates a call."""

    p50_ms: float
    p90_ms: float
    metric: float
    parameters: int
    macs: int
    size_bytes: int
    operators: int


@dataclass(frozen=True, repr=False)
class Verdict(Answer):
    """All checks of one artifact on one device, with figures of the original (`baseline`) and the pruned network.

    Without a budget nothing is pruned: `budget_ms` is None, and `pruned` is the artifact of the same network. `metric_name` is
    "metric", or "agreement with the original" for samples without labels.
    """

    artifact: str
    budget_ms: float | None
    baseline: Figures
    pruned: Figures
    checks: tuple[Check, ...]
    emulated: bool = False  # the device: its times are not those of a board
    simulated: bool = False  # the runtime is a stand-in: its times are not those of a board
    metric_name: str = "metric"

    @property
    def outcome(self) -> Outcome:
        """The outcome of all checks together."""
        return Outcome.of(self.checks)

    def summary(self) -> dict[str, object]:
        """See `Answer.summary`."""
        return {"outcome": self.outcome, **super().summary()}


@dataclass(frozen=True)
class Measurement:
    """One artifact on one device, in separate processes.

    `files` are names, the first the one to load. `metric` is of the first `count` samples of the split, whose content has the
    digest `data`. It is None if it, or an output, is not a finite number.
    """

    artifact: str
    files: tuple[str, ...]
    precision: Precision
    threads: int
    dla: int | None
    device: Device
    samples: Samples
    size_bytes: int
    metric: float | None
    data: str
    count: int

    def __post_init__(self) -> None:
        if not self.files or any(Path(name).name != name for name in self.files):
            raise ValueError(f"the files of an artifact are names without folders, not {self.files}")

    @property
    def conditions(self) -> Conditions:
        """The state of the device when its times began to be taken."""
        return self.samples.runs[0].before


@dataclass(frozen=True)
class Baseline:
    """A measurement that somebody has declared good: `check` compares later ones with it.

    Attributes:
        project: its name.
        target: its name.
        reason: why it is good.
        commit: the project's; empty outside a repository.
        created_s: when, in seconds since 1970.
        measured: the measurement. The artifact's files are kept beside the baseline.
        layer_ns: {operator: nanoseconds} by the runtime's profiler. They rank operators; only `measured` has the true times.
    """

    project: str
    target: str
    reason: str
    commit: str
    created_s: int
    measured: Measurement
    layer_ns: dict[str, int]

    def __post_init__(self) -> None:
        if self.measured.metric is None:
            raise ValueError("a baseline has a metric")


@dataclass(frozen=True)
class Shift:
    """An operator that takes longer than before, in nanoseconds by the runtime's profiler. A new one has `before_ns` 0."""

    operator: str
    before_ns: int
    after_ns: int


@dataclass(frozen=True, repr=False)
class Report(Answer):
    """The report of a check.

    Attributes:
        project: its name.
        target: its name.
        artifact: its digest.
        checks: those of the artifact, then those against the baseline.
        baseline: when and why it was made; empty if there is none.
        stale: what has changed since the baseline, if times cannot be compared.
        slower: operators that take longer, if the slowdown fails.
        emulated: whether the device is emulated.
        simulated: whether the runtime is a stand-in.
    """

    project: str
    target: str
    artifact: str
    checks: tuple[Check, ...]
    baseline: str
    stale: tuple[str, ...] = ()
    slower: tuple[Shift, ...] = ()
    emulated: bool = False
    simulated: bool = False

    @property
    def outcome(self) -> Outcome:
        """The outcome of all checks together."""
        return Outcome.of(self.checks)

    def summary(self) -> dict[str, object]:
        """See `Answer.summary`."""
        return {"outcome": self.outcome, **super().summary()}


@dataclass(frozen=True)
class Record:
    """One check in the history, latencies with their intervals. `note` is the reason if it became the baseline."""

    created_s: int
    commit: str
    artifact: str
    device: str  # its identity
    outcome: Outcome
    p50_ns: Interval
    p90_ns: Interval
    peak_memory_bytes: int
    size_bytes: int
    metric: float | None
    note: str = ""


@dataclass(frozen=True, repr=False)
class History(Answer):
    """A figure over the checks of a project on a target, oldest first. A new level begins at each index in `changes`."""

    project: str
    target: str
    figure: str
    records: tuple[Record, ...]
    values: tuple[float, ...]
    changes: tuple[int, ...]


Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing that doctor examined. `fix` is what to do about it."""

    level: Level
    what: str
    fix: str = ""
