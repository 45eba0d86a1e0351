"""Artifacts, checks, verdicts and baselines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from edgeprune.records.device import Conditions, Device, Interval, Samples


@dataclass(frozen=True)
class Candidate:
    """The unpruned network in one precision, measured: its latency with all candidates taking turns, and its metric."""

    precision: str
    latency: Interval
    metric: float


@dataclass(frozen=True)
class Choice:
    """The precision that was taken, and all that were measured for it."""

    precision: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Artifact:
    """A compiled model: its files (the first is the one to load), what it was built from and for.

    `operators` is how many are left of the network once it was simplified, before a runtime fuses or quantises them.
    """

    files: tuple[Path, ...]
    sha256: str
    format: str
    precision: str
    source: str
    operators: int

    @property
    def size_bytes(self) -> int:
        """Bytes on disk, all files together."""
        return sum(file.stat().st_size for file in self.files)


class Outcome(StrEnum):
    """The three answers a check can give."""

    PASS = "pass"  # noqa: S105 - an outcome, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"

    @staticmethod
    def of(checks: Iterable[Check]) -> Outcome:
        """Fail if any check failed, else inconclusive if any was, else pass."""
        outcomes = {check.outcome for check in checks}
        return next((one for one in (Outcome.FAIL, Outcome.INCONCLUSIVE) if one in outcomes), Outcome.PASS)


@dataclass(frozen=True)
class Check:
    """One question asked of the artifact: its figure, the limit it was held to, and the answer."""

    name: str
    outcome: Outcome
    value: float
    limit: float
    note: str = ""


@dataclass(frozen=True)
class Figures:
    """One column of the table."""

    p50_ms: float
    p90_ms: float
    metric: float
    parameters: int
    macs: int
    size_bytes: int
    operators: int


@dataclass(frozen=True)
class Verdict:
    """All checks of one artifact on one device."""

    artifact: str
    budget_ms: float
    baseline: Figures
    pruned: Figures
    checks: tuple[Check, ...]
    emulated: bool = False  # the device was: its times are no measure of a board
    simulated: bool = False  # the runtime was a stand-in: likewise

    @property
    def outcome(self) -> Outcome:
        """What all checks together say."""
        return Outcome.of(self.checks)


@dataclass(frozen=True)
class Measurement:
    """One artifact as measured on one device, alone: `files` are their names, the first the one to load.

    `metric` is of the first `count` samples of the split, whose content has the digest `data`; None where it, or an output, is
    no finite number.
    """

    artifact: str
    files: tuple[str, ...]
    precision: str
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
    """A measurement that somebody has declared good, and why: what `check` holds later ones against.

    `commit` is the project's, empty where it is in no repository. `layer_ns` is what the runtime's profiler saw of each of the
    artifact's operators; it ranks them, only `measured.samples` carry the scale. The artifact's files are kept beside it.
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
    """An operator that takes longer than it did, in nanoseconds by the runtime's profiler; `before_ns` is 0 for a new one."""

    operator: str
    before_ns: int
    after_ns: int


@dataclass(frozen=True)
class Report:
    """What `check` found. `stale` says what has changed since the baseline was measured so that times are not compared,
    `slower` which operators take longer where the whole does."""

    project: str
    target: str
    artifact: str
    checks: tuple[Check, ...]
    baseline: str  # when and why it was made; empty where there is none
    stale: tuple[str, ...] = ()
    slower: tuple[Shift, ...] = ()
    emulated: bool = False
    simulated: bool = False

    @property
    def outcome(self) -> Outcome:
        """What all checks together say."""
        return Outcome.of(self.checks)


@dataclass(frozen=True)
class Record:
    """One check, as the history keeps it; latencies with their intervals. `note` is the reason of a baseline."""

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


@dataclass(frozen=True)
class History:
    """A figure over the checks of a project on a target, oldest first; a new level begins at each of `changes`."""

    project: str
    target: str
    figure: str
    records: tuple[Record, ...]
    values: tuple[float, ...]
    changes: tuple[int, ...]


@dataclass(frozen=True)
class Finding:
    """One thing that doctor looked at: `level` is "ok", "warn" or "fail"; `fix` says what to do about it."""

    level: str
    what: str
    fix: str = ""
