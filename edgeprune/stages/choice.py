"""Choose a precision: the fastest artifact that keeps the metric."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from edgeprune.errors import DeviceError
from edgeprune.latency import stats
from edgeprune.limits import LIMITS
from edgeprune.records import Artifact, Candidate, Choice, Precision, Samples
from edgeprune.stages.verdicts import accuracy
from edgeprune.stages.verdicts.accuracy import Evaluation, Timer
from edgeprune.stages.verdicts.verdict import POLICY

log = logging.getLogger("edgeprune")


def fastest(
    timer: Timer,
    evaluation: Evaluation,
    reference: Artifact,
    candidates: Mapping[Precision, Artifact],
    max_metric_drop: float,
) -> Choice:
    """The fastest candidate that keeps the reference's metric; see `best`.

    All candidates are interleaved in the same processes. Their metrics are computed through the artifacts.

    Args:
        timer: the device.
        evaluation: the metric, on the validation set.
        reference: the original network in fp32.
        candidates: {precision: the original network in it}. Of equally fast ones, the first is chosen.
        max_metric_drop: how much lower than the reference's a metric may be.

    Raises:
        DeviceError: the device can run no candidate. If it cannot run one of several, that one is left out with a warning.
    """
    measured = measure(timer, evaluation, reference, candidates)
    samples = {name: one.samples for name, one in measured.items()}
    metrics = {name: one.metric for name, one in measured.items()}
    found = {name: samples[name] for name in candidates if name in samples}
    if not found:
        raise DeviceError(f"the device can run none of {', '.join(candidates)}")
    shown = tuple(Candidate(name, stats.latency(samples[name]), metrics[name]) for name in measured)
    return Choice(best(found, metrics, metrics["fp32"] - max_metric_drop), shown)


@dataclass(frozen=True)
class Measured:
    """The original network in one precision. Process i of its samples is process i of all precisions."""

    artifact: Artifact
    samples: Samples
    metric: float


def measure(
    timer: Timer, evaluation: Evaluation, reference: Artifact, candidates: Mapping[Precision, Artifact]
) -> dict[Precision, Measured]:
    """The reference and all candidates that the device can run, interleaved in the same processes; see `fastest`."""
    runnable = {"fp32": reference, **_runnable(timer, candidates)}
    models = [artifact.files[0] for artifact in runnable.values()]
    taken = timer.compare(models, POLICY.verify.processes, LIMITS.median_s)  # only medians count
    slowest_ns = max(stats.latency(samples).mid for samples in taken)
    calls = accuracy.affordable(timer.device, reference, evaluation.read(), slowest_ns, LIMITS.metric_s)

    def metric(artifact: Artifact) -> float:
        measured = accuracy.metric_of_original if artifact is reference else accuracy.metric_of
        return measured(timer.device, artifact, evaluation, calls)

    return {
        name: Measured(artifact, samples, metric(artifact))
        for (name, artifact), samples in zip(runnable.items(), taken, strict=True)
    }


def _runnable(timer: Timer, candidates: Mapping[Precision, Artifact]) -> dict[Precision, Artifact]:
    """The candidates that the device can run, without fp32."""
    found: dict[Precision, Artifact] = {}
    for precision, artifact in candidates.items():
        if precision == "fp32":
            continue
        try:
            timer.device.estimate(artifact.files[0], timer.files)
        except DeviceError as error:
            if len(candidates) == 1:
                raise
            log.warning("%s is left out: %s", precision, error)
        else:
            found[precision] = artifact
    return found


def best(times: Mapping[Precision, Samples], metrics: Mapping[Precision, float], least: float) -> Precision:
    """The fastest candidate with a metric of at least `least`; if there is none, the one with the best metric.

    Args:
        times: {precision: samples}. Process i is the same process for all. A candidate replaces the ones before it only if
            its whole interval is faster.
        metrics: {precision: metric}.
        least: the lowest metric that is accepted.
    """
    accurate = [name for name in times if metrics[name] >= least - POLICY.rounding]
    if not accurate:
        return max(times, key=metrics.__getitem__)
    chosen = accurate[0]
    for name in accurate[1:]:
        if stats.ratio(times[name], times[chosen]).high < 1:
            chosen = name
    return chosen
