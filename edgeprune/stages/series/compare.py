"""Finished runs beside each other: figures, ratios with intervals, and what cannot be compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeprune.devices.validate import printable
from edgeprune.errors import UsageError
from edgeprune.latency import stats
from edgeprune.limits import LIMITS
from edgeprune.records import ComparedRun, Comparison, Interval, TimedProcess
from edgeprune.stages.series import finished, sweep
from edgeprune.stages.series.finished import Finished

LABEL_CHARS = 120
SCHEMA = 1  # of the record; changes when a key changes its meaning
MACHINE = ("serial", "cpu", "cores", "machine", "system", "emulated", "simulated")  # facts that must be the same
DATA = ("[data] test samples", "[data] metric")  # labels of what a metric depends on


def compare(paths: Sequence[Path]) -> Comparison:
    """Compare finished runs with the first one.

    Args:
        paths: run folders, whose last verdict counts, or folders of verdicts; or one folder that holds run folders.

    Raises:
        UsageError: there are fewer than two runs or too many, or one cannot be read. The message names it.
    """
    places = finished.found(paths)
    if not 2 <= len(places) <= LIMITS.compared_runs:
        raise UsageError(
            f"compare takes 2 to {LIMITS.compared_runs} different runs, not {len(places)};"
            " give run folders, or folders of verdicts: edgeprune compare runs/local runs/raspberrypi"
        )
    return of_runs([finished.read(place) for place in places])


def of_runs(runs: Sequence[Finished]) -> Comparison:
    """Compare runs with the first one; pure."""
    first, *others = runs
    shown = [_figures(run, label) for run, label in zip(runs, _labels(runs), strict=True)]
    return Comparison(
        SCHEMA, (shown[0], *(_beside(row, run, first) for row, run in zip(shown[1:], others, strict=True)))
    )


def _figures(run: Finished, label: str) -> ComparedRun:
    verdict, figures, device = run.verify, run.verify.pruned, run.made.device
    p50 = stats.median_interval(_medians(run.evidence.pruned))
    return ComparedRun(
        label=label,
        folder=run.folder,
        project=run.made.project,
        target=run.made.target,
        runtime=f"{run.made.runtime} {device.runtime_version}" if device else run.made.runtime,
        device=device.cpu if device else "unknown",
        precision=run.compile.precision,
        budget=run.made.budget,
        status=verdict.outcome.value,
        p50_ms=Interval(p50.low / 1e6, p50.mid / 1e6, p50.high / 1e6),
        p90_ms=figures.p90_ms,
        metric=figures.metric,
        metric_name=verdict.metric_name,
        parameters=figures.parameters,
        macs=figures.macs,
        size_bytes=figures.size_bytes,
        checks=verdict.checks,
    )


def _labels(runs: Sequence[Finished]) -> list[str]:
    """The target and the budget of each run, with the project where several are compared; the folder where two are alike."""
    several = len({run.made.project for run in runs}) > 1
    labels = []
    for run in runs:
        made = run.made
        words = [made.project if several else "", made.target, made.budget or "no budget", run.compile.precision]
        labels.append(printable(" ".join(word for word in words if word), LABEL_CHARS))
    alike = Counter(labels)
    return [one if alike[one] == 1 else f"{one} ({run.folder.name})" for one, run in zip(labels, runs, strict=True)]


def _beside(row: ComparedRun, run: Finished, first: Finished) -> ComparedRun:
    why = other_device(run, first)
    if not why:
        shared = run.original.sha256 == first.original.sha256
        row = replace(row, latency_ratio=latency_ratio(run, first, shared), shared_ratio=shared)
    other = other_data(run, first)
    if not other:
        row = replace(row, metric_difference=run.verify.pruned.metric - first.verify.pruned.metric)
    return replace(row, why_no_ratio=why, why_no_difference=other)


def latency_ratio(run: Finished, first: Finished, shared: bool) -> Interval:
    """The latency relative to the first run's, with its interval.

    The runs were measured at different times. If both were interleaved with the same original artifact (`shared`), it is the
    ratio of both shares, so that drift between the runs cancels. Else it is the ratio of the latencies.
    """
    mine, other = (_shares(one) if shared else _medians(one.evidence.pruned) for one in (run, first))
    return stats.ratio_of_medians(mine, other)


def _medians(processes: Sequence[TimedProcess]) -> np.ndarray:
    return np.array([one.median_ns for one in processes])


def _shares(run: Finished) -> np.ndarray:
    return sweep.shares(run.evidence.pruned, run.evidence.original)


def other_device(run: Finished, first: Finished) -> str:
    """Why the latencies cannot be compared; empty if they can. Runtimes and precisions may differ."""
    one, other = run.made.device, first.made.device
    if one is None or other is None:
        return "its device is not known"
    for name in MACHINE:
        values = getattr(one, name), getattr(other, name)
        if values[0] != values[1]:
            if name == "serial":
                return "it ran on another device"
            return f"it ran on another device: {name} {printable(str(values[0]))}, not {printable(str(values[1]))}"
    threads = [found.reads.get("[runtime] threads") for found in (run, first)]
    return "" if threads[0] == threads[1] else f"it ran with {threads[0]} threads, not {threads[1]}"


def other_data(run: Finished, first: Finished) -> str:
    """Why the metrics cannot be compared; empty if they can."""
    if run.verify.metric_name != first.verify.metric_name:
        return f"its metric is another one: {run.verify.metric_name}"
    for label in DATA:
        if run.reads.get(label) != first.reads.get(label):
            return f"{label} is another one"
    counts = [{one.samples for one in found.evidence.differences} for found in (run, first)]
    if counts[0] != counts[1]:
        few, many = (", ".join(map(str, sorted(count))) or "no" for count in counts)
        return f"its metric is of {few} samples, not of {many}"
    return ""
