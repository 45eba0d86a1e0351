"""Measure an artifact, and compare it with its budgets and its baseline. For the rules see `verdict`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgeprune.devices.bench import Measured as MeasuredModel
from edgeprune.devices.rounds import until
from edgeprune.devices.validate import printable
from edgeprune.frontends.data import NotFinite
from edgeprune.latency import stats
from edgeprune.limits import LIMITS
from edgeprune.network.outputs import Structure
from edgeprune.records import (
    Artifact,
    Baseline,
    Budget,
    Check,
    Measurement,
    Outcome,
    Project,
    Report,
    Samples,
    Shift,
    Target,
)
from edgeprune.records.budget import date_text
from edgeprune.stages.verdicts import accuracy, comparable, verdict
from edgeprune.stages.verdicts.accuracy import Calls, Evaluation, Timer
from edgeprune.stages.verdicts.verdict import POLICY, Timed
from edgeprune.storage.baselines import Kept

MOST_SHIFTS = 5  # operators that a report names


@dataclass(frozen=True)
class Compiled:
    """An artifact, and calls that were kept when it was compiled.

    Attributes:
        artifact: what is checked.
        inputs: an array for each input, (calls, batch, ...).
        expected: torch's outputs, (samples, ...) each.
    """

    artifact: Artifact
    inputs: Sequence[np.ndarray]
    expected: Sequence[np.ndarray]


@dataclass(frozen=True)
class Measured:
    """An artifact as measured now, and the checks that need no baseline."""

    artifact: Artifact
    now: Measurement
    checks: tuple[Check, ...]


# ----------------------------------------------------------------------------------------------------- measuring


def measure(
    timer: Timer,
    evaluation: Evaluation,
    target: Target,
    compiled: Compiled,
    budgets: Sequence[Budget],
    original: Artifact | None,
) -> Measured:
    """Measure an artifact, and check its budgets and its outputs.

    NaN or infinity is not an error here: a check fails for it, and the metric is None.

    Args:
        timer: the device.
        evaluation: the metric. Its `most` is the baseline's number of samples, so that the same samples are compared.
        target: how many threads and which DLA.
        compiled: what is checked.
        budgets: a check each.
        original: the original network's artifact, needed if a budget is a share.
    """
    device, artifact = timer.device, compiled.artifact
    models = [artifact.files[0]] + ([original.files[0]] if original else [])
    timed = time_budgets(timer, models, budgets, same=original is not None and original.sha256 == artifact.sha256)
    calls = evaluation.read()
    if evaluation.most is None:
        calls = accuracy.affordable(device, artifact, calls, stats.latency(timed.samples).mid, LIMITS.check_metric_s)
    checks, metric = verdict.budgets(budgets, timed), None
    try:
        metric = accuracy.metric_of(device, artifact, evaluation, calls)
    except NotFinite as error:
        checks.append(verdict.not_finite("metric_not_finite", error.count, str(error)))
    checks += _outputs(timer, compiled, evaluation.metric.structure)
    return Measured(artifact, _measurement(timer, target, artifact, timed.samples, calls, metric), tuple(checks))


def time_budgets(timer: Timer, models: Sequence[Path], budgets: Sequence[Budget], same: bool = False) -> Timed:
    """Time an artifact until its budgets are decided, for at most `POLICY.check.rounds`.

    Args:
        timer: the device.
        models: the artifact's file and, where budgets are shares, the original network's.
        budgets: what is to be decided.
        same: whether both are one artifact.
    """
    device = timer.device

    def take(so_far: list[Samples]) -> list[Samples]:
        runs = _runs(budgets, so_far[0]) if so_far else LIMITS.timed_runs_min
        return timer.time(models, POLICY.check.processes, runs)

    def timed(taken: list[Samples]) -> Timed:
        return Timed(taken[0], taken[1] if taken[1:] else None, same, device.discarded)

    def decided(taken: list[Samples]) -> bool:
        return all(check.outcome is not Outcome.INCONCLUSIVE for check in verdict.budgets(budgets, timed(taken)))

    return timed(until(take, decided, POLICY.check.rounds))


def _runs(budgets: Sequence[Budget], so_far: Samples) -> int:
    """Timings a process: twice what the budgets' quantiles need at least, within the time allowed."""
    needed = max((2 * stats.needed(one.quantile, POLICY.sure) for one in budgets), default=0) / POLICY.check.processes
    affordable = LIMITS.check_timed_s / POLICY.check.processes / (stats.latency(so_far).mid / 1e9)
    return max(LIMITS.timed_runs_min, min(math.ceil(needed), int(affordable), LIMITS.timed_runs_max))


def _outputs(timer: Timer, compiled: Compiled, structure: Structure) -> list[Check]:
    """Compare the artifact's outputs on the kept calls with torch's."""
    artifact, expected, dims = compiled.artifact, compiled.expected, structure.batch_dims
    try:
        got = accuracy.outputs_of(timer.device, artifact, compiled.inputs, expected[0].shape[dims[0]], dims)
    except NotFinite as error:
        return [verdict.not_finite("output_not_finite", error.count, str(error))]
    return accuracy.compared(expected, got, artifact.precision, structure)


def _measurement(
    timer: Timer, target: Target, artifact: Artifact, samples: Samples, calls: Calls, metric: float | None
) -> Measurement:
    return Measurement(
        artifact=artifact.sha256,
        files=tuple(file.name for file in artifact.files),
        precision=artifact.precision,
        threads=target.threads,
        dla=target.dla,
        device=timer.device.device,
        samples=samples,
        size_bytes=artifact.size_bytes,
        metric=metric,
        data=calls.content,
        count=calls.count,
    )


def operators(timer: Timer, models: Sequence[Path]) -> list[dict[str, int]]:
    """Nanoseconds of each model's operators by the runtime's profiler: medians over processes that load all models."""
    found = timer.device.measure([models] * POLICY.profiled, timer.files, profiled=True)
    return [_by_name([batch[i] for batch in found]) for i in range(len(models))]


def _by_name(measured: Sequence[MeasuredModel]) -> dict[str, int]:
    totals: list[dict[str, int]] = []
    for one in measured:
        totals.append({})
        for name, ns in one.nodes:
            shown = printable(name, 200)
            totals[-1][shown] = totals[-1].get(shown, 0) + ns
    names = dict.fromkeys(name for total in totals for name in total)
    return {name: int(np.median([total.get(name, 0) for total in totals])) for name in names}


# ----------------------------------------------------------------------------------------------------- comparing


def compare(timer: Timer, project: Project, target: Target, measured: Measured, kept: Kept | None) -> Report:
    """The report of a measurement: its own checks and, if there is a baseline, those against it."""
    report = Report(
        project=project.name,
        target=target.name,
        artifact=measured.now.artifact,
        checks=measured.checks,
        baseline=_origin(kept.baseline) if kept else "",
        emulated=timer.device.device.emulated,
        simulated=timer.device.device.simulated,
    )
    if kept is None:
        return report
    now, then = measured.now, kept.baseline.measured
    changed = comparable.stale(now, then)
    if changed:
        note = f"stale: {'; '.join(changed)}; if this change is intended: edgeprune check --update --reason …"
        found = Check("baseline", Outcome.INCONCLUSIVE, len(changed), 0, note)
        checks = (*report.checks, found, *_metric(now, then, project), _size(now, then))
        return replace(report, stale=changed, checks=checks)
    allowed = POLICY.allowed_slowdown(project.check.slowdown, report.emulated)
    slowdown, slower = _slowdown(timer, measured, kept, allowed)
    checks = (*report.checks, slowdown, *_metric(now, then, project), _size(now, then), _memory(now, then))
    return replace(report, slower=slower, checks=checks)


def _slowdown(timer: Timer, measured: Measured, kept: Kept, allowed: float) -> tuple[Check, tuple[Shift, ...]]:
    """The slowdown against the baseline and, if it fails, the operators that take longer."""
    now, then, own = measured.now, kept.baseline.measured, measured.artifact.files[0]
    other = then.artifact != now.artifact
    if other and kept.model is not None:
        check = slowdown(timer, own, kept.model, allowed)
        models = [own, kept.model]
    else:
        check = verdict.slowdown_recorded(now, then, allowed, kept.missing if other else "")
        models = [own]
    if check.outcome is not Outcome.FAIL:
        return check, ()
    after, *before = operators(timer, models)
    slower, note = shifts(before[0] if before else kept.baseline.layer_ns, after)
    return (replace(check, note=f"{check.note}; {note}") if note else check), slower


def slowdown(timer: Timer, model: Path, baseline: Path, allowed: float) -> Check:
    """The slowdown of a model against the baseline's, interleaved in the same processes until it is decided."""
    now, then = until(
        lambda _: timer.compare([model, baseline], POLICY.slowdown.processes),
        lambda taken: verdict.slowdown(taken[0], taken[1], allowed).outcome is not Outcome.INCONCLUSIVE,
        POLICY.slowdown.rounds,
    )
    return verdict.slowdown(now, then, allowed)


def _metric(now: Measurement, then: Measurement, project: Project) -> list[Check]:
    """The metric against the baseline's. Without a metric of today there is no check, since another one has failed."""
    if now.metric is None or then.metric is None:
        return []
    note = f"the baseline's minus this artifact's, on {now.count} samples"
    if now.data != then.data:
        note = "the data has changed since the baseline; make a new one: edgeprune check --update --reason …"
    found = verdict.metric_drop(then.metric, now.metric, project.budget.max_metric_drop, note, project.data.metric_name)
    return [found if now.data == then.data else replace(found, outcome=Outcome.INCONCLUSIVE)]


def _size(now: Measurement, then: Measurement) -> Check:
    return verdict.growth("size_bytes", now.size_bytes, then.size_bytes, POLICY.size)


def _memory(now: Measurement, then: Measurement) -> Check:
    before, after = then.samples.peak_memory_bytes, now.samples.peak_memory_bytes
    return verdict.growth("peak_memory_bytes", after, before, POLICY.memory)


def shifts(before: Mapping[str, int], after: Mapping[str, int]) -> tuple[tuple[Shift, ...], str]:
    """The operators that take longer, the largest difference first, and a note if none of them explains the slowdown.

    An operator is named if it adds `POLICY.shifted` of the network's time. If none does, the largest is named.

    Args:
        before: {operator: nanoseconds} of the baseline.
        after: the same of the artifact.
    """
    slower = [Shift(name, before.get(name, 0), ns) for name, ns in after.items() if ns > before.get(name, 0)]
    slower.sort(key=lambda one: one.before_ns - one.after_ns)
    found = [one for one in slower if one.after_ns - one.before_ns > POLICY.shifted * sum(before.values())]
    if found:
        return tuple(found[:MOST_SHIFTS]), ""
    if not slower:
        return (), "the profiler reports no operator that takes longer"
    return tuple(slower[:1]), f"spread evenly over {len(slower)} operators"


def _origin(baseline: Baseline) -> str:
    """When, from which commit and why a baseline was made; on one line."""
    day = date_text(baseline.created_s, "%Y-%m-%d")
    commit = f", commit {printable(baseline.commit, 100)}" if baseline.commit else ""
    return f"of {day}{commit}: {printable(baseline.reason, LIMITS.message_chars)}"
