"""Sweeps: runs of one project over targets, precisions and budgets. What they share runs once; pure but for `cell`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgeprune.errors import EXIT_FAIL, EXIT_PASS, EdgepruneError, UsageError
from edgeprune.latency import stats
from edgeprune.limits import LIMITS
from edgeprune.pipeline.run import Run
from edgeprune.records import (
    Budget,
    Interval,
    Outcome,
    Result,
    Sweep,
    SweepCell,
    SweepPoint,
    TargetPrecision,
    TimedProcess,
    Unpruned,
    UnprunedNetworks,
)
from edgeprune.stages import result, verify
from edgeprune.storage import evidence

SCHEMA = 1  # of the record; changes when a key changes its meaning


@dataclass(frozen=True)
class Cell:
    """One run of a sweep. `precision` is None for the target file's."""

    target: str
    precision: TargetPrecision | None
    budget: str

    @property
    def name(self) -> str:
        """A short name for lines of progress."""
        return " ".join(part for part in (self.target, self.precision, self.budget) if part)


def cells(
    budgets: Sequence[str], targets: Sequence[str], precisions: Sequence[TargetPrecision | None] = ()
) -> list[Cell]:
    """All runs: those of a target follow each other, and of these, those of a precision. The largest budget comes first.

    Raises:
        UsageError: there is no budget, one cannot be read, or there are too many runs.
    """
    if not budgets or not targets:
        raise UsageError("a sweep needs a budget and a target; write: edgeprune sweep --budget 80% 50% --target local")
    ordered = sorted(dict.fromkeys(str(Budget.parse(text)) for text in budgets), key=_size, reverse=True)
    found = [
        Cell(target, precision, budget)
        for target in dict.fromkeys(targets)
        for precision in dict.fromkeys(precisions or (None,))
        for budget in ordered
    ]
    if len(found) > LIMITS.sweep_cells:
        raise UsageError(
            f"a sweep has at most {LIMITS.sweep_cells} runs, not {len(found)}; give fewer budgets or targets"
        )
    return found


def _size(text: str) -> tuple[bool, float]:
    """Shares before times, and each kind by its size."""
    budget = Budget.parse(text)
    return budget.fraction is not None, budget.fraction or float(budget.ns or 0)


def finished(cell: Cell, run: Run) -> SweepCell:
    """The result of a cell. Runs every stage that is missing. Raises as the stages do."""
    found = result.result(run)
    folder = run.entry(verify.STAGE)
    kept = evidence.read(folder)
    return SweepCell(
        target=found.target,
        precision=cell.precision,
        budget=cell.budget,
        status=found.status.value,
        exit_code=found.status.exit_code,
        share=stats.median_interval(shares(kept.pruned, kept.original)),
        result=found,
        verdict=folder,
    )


def failed(cell: Cell, target: str, error: EdgepruneError) -> SweepCell:
    """A cell that ended with an error. `target` is the name of its target."""
    text = " ".join(str(error).split())[: LIMITS.message_chars]
    return SweepCell(target, cell.precision, cell.budget, "error", error.exit_code, text)


def shares(processes: Sequence[TimedProcess], original: Sequence[TimedProcess]) -> np.ndarray:
    """The latency relative to the original network's, (processes,). Process i of both are neighbours, so drift cancels."""
    return np.array([one.median_ns / other.median_ns for one, other in zip(processes, original, strict=True)])


def summed(
    project: str, found: Sequence[SweepCell], unpruned: Mapping[str, UnprunedNetworks], notes: Sequence[str] = ()
) -> Sweep:
    """The record of a sweep.

    Args:
        project: its name.
        found: the cells that ended.
        unpruned: {target: the original network in every precision}.
        notes: see `Sweep`.
    """
    code = exit_code(found)
    outcome = next((one for one in Outcome if one.exit_code == code), None)
    results = [cell.result for cell in found if cell.result is not None]
    names = dict.fromkeys([*(cell.target for cell in found), *unpruned])
    return Sweep(
        schema=SCHEMA,
        status="error" if outcome is None else outcome.value,
        exit_code=code,
        project=project,
        metric_name=results[0].metric_name if results else "metric",
        cells=tuple(found),
        fronts={name: front([c for c in found if c.target == name], unpruned.get(name)) for name in names},
        notes=tuple(notes),
        unpruned=dict(unpruned),
    )


def exit_code(found: Iterable[SweepCell]) -> int:
    """0 if every cell passes, 1 if a check fails, else the code of the first cell that does not pass."""
    codes = [cell.exit_code for cell in found if cell.exit_code != EXIT_PASS]
    return EXIT_FAIL if EXIT_FAIL in codes else codes[0] if codes else EXIT_PASS


def front(found: Sequence[SweepCell], unpruned: UnprunedNetworks | None) -> tuple[SweepPoint, ...]:
    """The measured networks of a target, the fastest one first. The best ones are marked.

    Latencies of different runs lie on one scale: each is a share of the original network's latency from its own run, times
    the median of these latencies.
    """
    results = [one.result for one in found if one.result is not None]
    points = [_unpruned(one) for one in unpruned.networks] if unpruned else [_original(one) for one in results[:1]]
    points += [point for cell in found if (point := _pruned(cell)) is not None]
    references = [one.baseline.p50_ms for one in results]
    references += [one.latency_ms.mid for one in points if (one.status, one.precision) == ("unpruned", "fp32")]
    scale = float(np.median(references)) if references else 0.0
    scaled = [
        replace(one, latency_ms=Interval(scale * one.share.low, scale * one.share.mid, scale * one.share.high))
        for one in points
    ]
    return marked(scaled)


def _unpruned(one: Unpruned) -> SweepPoint:
    label = f"unpruned {one.precision}"
    return SweepPoint(
        label, None, one.precision, one.latency_ms, one.share, one.metric, one.size_bytes, "unpruned", False
    )


def _original(found: Result) -> SweepPoint:
    """The original network in fp32, as a verdict measured it."""
    whole, ms = found.baseline, found.baseline.p50_ms
    share, latency = Interval(1.0, 1.0, 1.0), Interval(ms, ms, ms)
    return SweepPoint("unpruned fp32", None, "fp32", latency, share, whole.metric, whole.size_bytes, "unpruned", False)


def _pruned(cell: SweepCell) -> SweepPoint | None:
    found = cell.result
    if found is None or cell.share is None or cell.status == "error":
        return None
    figures, label = found.pruned, f"{cell.budget} {found.precision}"
    share, size = cell.share, figures.size_bytes
    return SweepPoint(label, cell.budget, found.precision, share, share, figures.metric, size, cell.status, False)


def marked(points: Sequence[SweepPoint]) -> tuple[SweepPoint, ...]:
    """The points, the fastest one first. The best ones are marked: no other one is faster and has as high a metric."""
    highest, shown = -np.inf, []
    for one in sorted(points, key=lambda one: (one.share.mid, -one.metric)):
        shown.append(replace(one, best=one.metric > highest))
        highest = max(highest, one.metric)
    return tuple(shown)
