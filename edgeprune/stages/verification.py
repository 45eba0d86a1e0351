"""Verify an artifact against its network, the metric limit and the latency budget; see `stages.verdict` for the rules."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from edgeprune.devices.bench import until
from edgeprune.latency import stats
from edgeprune.limits import LIMITS
from edgeprune.network import weights
from edgeprune.records import Artifact, Budget, Check, Figures, Outcome, Samples, Verdict
from edgeprune.stages import accuracy, verdict
from edgeprune.stages.accuracy import Evaluation, Timer
from edgeprune.stages.verdict import POLICY, Timed


@dataclass(frozen=True)
class Version:
    """A network, the artifact that was compiled from it, and its multiply-accumulates a call."""

    network: nn.Module
    artifact: Artifact
    macs: int


def verify(
    timer: Timer, evaluation: Evaluation, original: Version, pruned: Version, budget: Budget, max_metric_drop: float
) -> Verdict:
    """All checks of the pruned artifact.

    Latencies come from fresh processes of both artifacts, interleaved; more are started while the budget is inconclusive. The
    metric is computed through the artifacts, on as many samples as the slower one computes in `LIMITS.metric_s`.

    Args:
        timer: the device.
        evaluation: the metric, on the test set, or on the validation set if there is no test set.
        original: the original network.
        pruned: the pruned network.
        budget: the latency to meet.
        max_metric_drop: how much lower than the original's the metric may be.

    Raises:
        NotFinite: an output or a metric is not a finite number.
        DeviceError: the device fails.
    """
    device, versions = timer.device, (original, pruned)
    before, after = _time(timer, budget, original.artifact, pruned.artifact)
    timed = Timed(after, before, _same(original.artifact, pruned.artifact), device.discarded)
    slowest_ns = max(stats.latency(samples).mid for samples in (before, after))
    calls = accuracy.affordable(device, original.artifact, evaluation.read(), slowest_ns, LIMITS.metric_s)
    outputs = [accuracy.outputs_of(device, one.artifact, calls.inputs, calls.count) for one in versions]
    metrics = [
        accuracy.metric(device, one.artifact, evaluation, found, calls.targets)
        for one, found in zip(versions, outputs, strict=True)
    ]
    where = (
        "in closed loop" if evaluation.metric.in_closed_loop else f"on {calls.share} {evaluation.split.name} samples"
    )
    note = f"the original network's minus the pruned one's, both through their artifacts, {where}"
    expected = accuracy.computed(pruned.network, calls.inputs, calls.count)
    checks = (
        *verdict.outputs(expected, outputs[1], pruned.artifact.precision),
        verdict.metric_drop(metrics[0], metrics[1], max_metric_drop, note),
        *_latency(budget, timed, before),
        verdict.at_most("size_bytes", pruned.artifact.size_bytes, original.artifact.size_bytes),
        verdict.growth("peak_memory_bytes", after.peak_memory_bytes, before.peak_memory_bytes, POLICY.memory),
    )
    return Verdict(
        pruned.artifact.sha256,
        budget.resolve(stats.latency(before).mid) / 1e6,
        _figures(original, before, metrics[0]),
        _figures(pruned, after, metrics[1]),
        checks,
        emulated=device.device.emulated,
        simulated=device.device.simulated,
    )


def _time(timer: Timer, budget: Budget, original: Artifact, pruned: Artifact) -> tuple[Samples, Samples]:
    """Samples of both artifacts, as many as decide the budget."""
    models, same = [original.files[0], pruned.files[0]], _same(original, pruned)
    before, after = until(
        lambda _: timer.time(models, POLICY.verify.processes),
        lambda taken: verdict.budget(budget, Timed(taken[1], taken[0], same)).outcome is not Outcome.INCONCLUSIVE,
        POLICY.verify.rounds,
    )
    return before, after


def _same(original: Artifact, pruned: Artifact) -> bool:
    return original.sha256 == pruned.sha256


def _latency(budget: Budget, timed: Timed, original: Samples) -> list[Check]:
    checks = [verdict.budget(budget, timed)]
    if not timed.same:  # against itself, a tail can only be inconclusive
        checks.append(verdict.tail(timed.samples, original))
    return checks


def _figures(version: Version, samples: Samples, metric: float) -> Figures:
    return Figures(
        p50_ms=stats.latency(samples).mid / 1e6,
        p90_ms=stats.latency(samples, 0.9).mid / 1e6,
        metric=metric,
        parameters=weights.count_parameters(version.network),
        macs=version.macs,
        size_bytes=version.artifact.size_bytes,
        operators=version.artifact.operators,
    )
