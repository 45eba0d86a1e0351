"""Fronts, sweeps and comparisons: what several plans or several runs give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgeprune.records.answer import Answer
from edgeprune.records.device import Interval
from edgeprune.records.result import Result
from edgeprune.records.target import Precision, TargetPrecision
from edgeprune.records.verdict import Check


@dataclass(frozen=True)
class FrontPoint:
    """An exact plan of a front.

    Attributes:
        latency_ms: the predicted latency, with the interval that should cover a measurement.
        share: the predicted latency, relative to that of the original network.
        loss: the expected increase of the loss, which no plan of this latency can be below by more than `gap`.
        gap: of the proof, relative.
        channels: how many channels remain.
        removed: blocks that are removed.
        widths: {group: remaining channels}.
    """

    latency_ms: Interval
    share: float
    loss: float
    gap: float
    channels: int
    removed: tuple[str, ...]
    widths: dict[str, int]

    @property
    def latency_ns(self) -> float:
        """The predicted latency."""
        return 1e6 * self.latency_ms.mid


@dataclass(frozen=True, repr=False)
class Front(Answer):
    """The expected loss over the whole range of latency, before anything is trained.

    Attributes:
        schema: changes when a key changes its meaning.
        project: its name.
        target: its name.
        runtime: its name.
        precision: of the predicted networks.
        emulated: whether the device is emulated.
        simulated: whether the runtime is a stand-in.
        original_ms: the latency of the original network in fp32, which shares refer to.
        error: nine of ten predictions of unseen networks differ by less, relative.
        points: the plans, from the least latency that any plan reaches to the original network.
        knee: the place of the knee in `points`; None if there are too few points.
    """

    schema: int
    project: str
    target: str
    runtime: str
    precision: Precision
    emulated: bool
    simulated: bool
    original_ms: float
    error: float
    points: tuple[FrontPoint, ...]
    knee: int | None

    def summary(self) -> dict[str, Any]:
        """See `Answer.summary`."""
        knee = None if self.knee is None else f"{self.points[self.knee].share:.0%}"
        names = ("project", "target", "precision", "original_ms", "points")
        return {name: getattr(self, name) for name in names} | {"knee": knee}

    def rows(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """See `Answer.rows`: a row for each plan."""
        names = ("latency_ms", "share", "loss", "channels", "removed")
        return {"points": [{name: getattr(one, name) for name in names} for one in self.points]}


@dataclass(frozen=True)
class Unpruned:
    """The original network in one precision, measured on a target.

    Attributes:
        precision: of the artifact.
        latency_ms: its latency.
        share: its latency relative to that of fp32, from processes that hold both.
        metric: on the samples that verdicts use.
        size_bytes: of the artifact.
    """

    precision: Precision
    latency_ms: Interval
    share: Interval
    metric: float
    size_bytes: int


@dataclass(frozen=True)
class UnprunedNetworks:
    """The original network in every precision that a target's runtime has and its device can run, fp32 first."""

    networks: tuple[Unpruned, ...]


@dataclass(frozen=True)
class SweepCell:
    """One run of a sweep.

    Attributes:
        target: its name.
        precision: as asked; None for the target file's.
        budget: as asked.
        status: of the verdict; "error" if there is none.
        exit_code: what `edgeprune run` would exit with.
        error: why there is no verdict; else empty.
        share: the pruned network's latency relative to the original's in fp32; None without a verdict.
        result: what `edgeprune run` gives; None without a verdict.
        verdict: the folder of the verdict, which `edgeprune compare` and `edgeprune report` take.
    """

    target: str
    precision: TargetPrecision | None
    budget: str
    status: Literal["pass", "fail", "inconclusive", "error"]
    exit_code: int
    error: str = ""
    share: Interval | None = None
    result: Result | None = None
    verdict: Path | None = None


@dataclass(frozen=True)
class SweepPoint:
    """A measured network of a target, as a point of accuracy against latency.

    Attributes:
        label: the budget, or "unpruned"; with the precision.
        budget: as asked; None for an unpruned network.
        precision: of the artifact.
        latency_ms: `share` times the latency of the target's original network in fp32, so that drift between runs cancels.
        share: the latency relative to that of the original network in fp32, from interleaved processes.
        metric: on the samples of the verdict.
        size_bytes: of the artifact.
        status: of the verdict; "unpruned" for the original network.
        best: whether no other point of the target is faster and has a metric at least as high.
    """

    label: str
    budget: str | None
    precision: Precision
    latency_ms: Interval
    share: Interval
    metric: float
    size_bytes: int
    status: Literal["pass", "fail", "inconclusive", "unpruned"]
    best: bool


@dataclass(frozen=True, repr=False)
class Sweep(Answer):
    """Runs of one project over targets, precisions and budgets.

    Attributes:
        schema: changes when a key changes its meaning.
        status: "pass" if every cell passes, else "fail", "inconclusive" or "error"; see `exit_code`.
        exit_code: what `edgeprune sweep` exits with.
        project: its name.
        metric_name: the metric's.
        cells: the runs.
        fronts: {target: its measured networks, the fastest one first}.
        notes: what could not be measured beside the cells, a sentence each.
        unpruned: {target: the original network in every precision}, where it was measured.
    """

    schema: int
    status: Literal["pass", "fail", "inconclusive", "error"]
    exit_code: int
    project: str
    metric_name: str
    cells: tuple[SweepCell, ...]
    fronts: dict[str, tuple[SweepPoint, ...]]
    notes: tuple[str, ...] = ()
    unpruned: dict[str, UnprunedNetworks] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """See `Answer.summary`."""
        return {"project": self.project, "status": self.status, "cells": self.cells}

    def rows(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """See `Answer.rows`: a row for each cell, and one for each point of a front."""
        names = ("target", "precision", "budget", "status")
        cells = [{name: getattr(one, name) for name in names} | _measured(one) for one in self.cells]
        return {"cells": cells, **{name: [asdict(one) for one in points] for name, points in self.fronts.items()}}


def _measured(cell: SweepCell) -> dict[str, Any]:
    found = cell.result
    figures = {"p50_ms": found.pruned.p50_ms, "metric": found.pruned.metric} if found else {"p50_ms": "", "metric": ""}
    return {**figures, "error": cell.error}


@dataclass(frozen=True)
class ComparedRun:
    """A run beside others.

    Attributes:
        label: a short name, different for each run.
        folder: of the verdict.
        project: its name.
        target: its name.
        runtime: its name, with the version.
        device: what the times were taken on.
        precision: of the artifact.
        budget: as asked; None without a budget.
        status: of the verdict.
        p50_ms: the latency of the artifact, from the processes of the verdict.
        p90_ms: the same at 90 %.
        metric: the artifact's.
        metric_name: the metric's.
        parameters: of the network.
        macs: multiply-accumulates a call.
        size_bytes: of the artifact.
        checks: of the verdict.
        latency_ratio: the latency relative to the first run's; None for the first one, and where `why_no_ratio` says why.
        shared_ratio: whether the ratio is one of shares of the original network, which drift of the device leaves as it is.
        metric_difference: the metric minus the first run's; None as above, by `why_no_difference`.
        why_no_ratio: why latencies cannot be compared; else empty.
        why_no_difference: why metrics cannot be compared; else empty.
    """

    label: str
    folder: Path
    project: str
    target: str
    runtime: str
    device: str
    precision: Precision
    budget: str | None
    status: str
    p50_ms: Interval
    p90_ms: float
    metric: float
    metric_name: str
    parameters: int
    macs: int
    size_bytes: int
    checks: tuple[Check, ...]
    latency_ratio: Interval | None = None
    shared_ratio: bool = False
    metric_difference: float | None = None
    why_no_ratio: str = ""
    why_no_difference: str = ""


@dataclass(frozen=True, repr=False)
class Comparison(Answer):
    """Finished runs beside each other. All are compared with the first one."""

    schema: int
    runs: tuple[ComparedRun, ...]

    def rows(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """See `Answer.rows`: a row for each run."""
        names = (
            "label",
            "status",
            "p50_ms",
            "latency_ratio",
            "metric",
            "metric_difference",
            "parameters",
            "size_bytes",
        )
        return {"runs": [{name: getattr(one, name) for name in names} for one in self.runs]}
