"""Verify an artifact against its network, the metric limit and the latency budget. For the rules see `verdict`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from edgeprune.devices.bench import Bench
from edgeprune.devices.rounds import until
from edgeprune.latency import stats
from edgeprune.limits import LIMITS
from edgeprune.network import weights
from edgeprune.records import Artifact, Budget, Check, Differences, Figures, Outcome, Samples, Verdict
from edgeprune.stages.verdicts import accuracy, evidence, verdict
from edgeprune.stages.verdicts.accuracy import Evaluation, Timer
from edgeprune.stages.verdicts.verdict import POLICY, Timed


@dataclass(frozen=True)
class Version:
    """A network, the artifact that was compiled from it, and its multiply-accumulates a call."""

    network: nn.Module
    artifact: Artifact
    macs: int


@dataclass(frozen=True)
class Verified:
    """A verdict, and how far the artifact's outputs are from torch's."""

    verdict: Verdict
    differences: tuple[Differences, ...]


Round = Callable[[int, list[Samples], Sequence[Check]], None]


def timed_s(budget: Budget | None) -> float:
    """How long a process times an artifact, in seconds: a tail needs more runs than a median."""
    return LIMITS.median_s if budget is None or budget.quantile == 0.5 else LIMITS.timed_s


def timed(
    timer: Timer,
    budget: Budget | None,
    versions: tuple[Version, Version],
    on_round: Round = lambda number, taken, checks: None,
    taken: Sequence[Samples] = (),
    discarded: int = 0,
) -> Timed:
    """Latencies of both artifacts from fresh processes, interleaved. More are started while the budget is inconclusive.

    Args:
        timer: the device.
        budget: the latency to meet; None to measure one round.
        versions: the original and the pruned network.
        on_round: gets the number of each round, from 1, with all samples so far and what they decide.
        taken: samples of an earlier measurement of the same artifacts on this device: the original's and the pruned one's.
        discarded: how many disturbed processes that measurement discarded.
    """
    artifacts = [version.artifact for version in versions]
    same = artifacts[0].sha256 == artifacts[1].sha256
    numbers, seconds = itertools.count(0 if taken else 1), timed_s(budget)

    def found(so_far: Sequence[Samples]) -> Timed:
        lost = discarded + timer.device.discarded
        return Timed(so_far[1], so_far[0], same, lost, POLICY.verify.confidence)

    def decided(so_far: list[Samples]) -> bool:
        checks = latency(budget, found(so_far))
        on_round(next(numbers), so_far, checks)
        return all(check.outcome is not Outcome.INCONCLUSIVE for check in checks)

    def take(so_far: Sequence[Samples]) -> list[Samples]:
        models = [artifact.files[0] for artifact in artifacts]
        if same and budget is None:  # the times are shown only, so one artifact is measured for both
            return timer.time(models[:1], POLICY.verify.processes, timed_s=seconds) * 2
        return timer.time(models, POLICY.verify.processes, timed_s=seconds)

    rounds = POLICY.verify.rounds - bool(taken)  # the confidence is for so many decisions, and the first is on these
    return found(until(take, decided, rounds, taken, LIMITS.verify_s))


def verify(
    timed: Timed,
    evaluation: Evaluation,
    device: Bench,
    versions: tuple[Version, Version],
    budget: Budget | None,
    max_metric_drop: float,
) -> Verified:
    """All checks of the pruned artifact.

    The metric is computed through the artifacts, on as many samples as the slower one computes in `LIMITS.metric_s`.

    Args:
        timed: the latencies of both artifacts.
        evaluation: the metric, on the test set, or on the validation set if there is no test set.
        device: computes the outputs.
        versions: the original and the pruned network.
        budget: the latency to meet; None if nothing was pruned. Only outputs and the metric are then checked.
        max_metric_drop: how much lower than the original's the metric may be.

    Raises:
        NotFinite: an output or a metric is not a finite number.
        DeviceError: the device fails.
    """
    original, pruned = versions
    assert timed.original is not None
    before, after = timed.original, timed.samples
    slowest_ns = max(stats.latency(samples).mid for samples in (before, after))
    calls = accuracy.affordable(device, original.artifact, evaluation.read(), slowest_ns, LIMITS.metric_s)
    outputs = accuracy.outputs_of(device, pruned.artifact, calls.inputs, calls.count, evaluation.output_dims)
    metric = accuracy.metric(device, pruned.artifact, evaluation, outputs, calls.targets)
    is_one = timed.same and budget is None  # as in `timed`
    reference = metric if is_one else accuracy.metric_of_original(device, original.artifact, evaluation, calls)
    where = (
        "in closed loop" if evaluation.metric.in_closed_loop else f"on {calls.share} {evaluation.split.name} samples"
    )
    of = "the pruned one" if budget else "the artifact"
    note = f"the original network's minus {of}'s, both through their artifacts, {where}"
    precision, structure = pruned.artifact.precision, evaluation.metric.structure
    expected = accuracy.computed(pruned.network, calls.inputs, calls.count, evaluation.output_dims)
    checks = (
        *accuracy.compared(expected, outputs, precision, structure),
        verdict.metric_drop(reference, metric, max_metric_drop, note, evaluation.metric.name),
        *latency(budget, timed),
        *(_size(versions, timed) if budget else ()),
    )
    found = Verdict(
        pruned.artifact.sha256,
        budget.resolve(stats.latency(before).mid) / 1e6 if budget else None,
        _figures(original, before, reference),
        _figures(pruned, after, metric),
        checks,
        emulated=device.device.emulated,
        simulated=device.device.simulated,
        metric_name=evaluation.metric.name,
    )
    return Verified(found, evidence.differences(expected, outputs, precision, structure))


def _size(versions: tuple[Version, Version], timed: Timed) -> list[Check]:
    original, pruned = (version.artifact for version in versions)
    assert timed.original is not None
    after, before = timed.samples.peak_memory_bytes, timed.original.peak_memory_bytes
    return [
        verdict.at_most("size_bytes", pruned.size_bytes, original.size_bytes),
        verdict.growth("peak_memory_bytes", after, before, POLICY.memory),
    ]


def latency(budget: Budget | None, timed: Timed) -> list[Check]:
    """The checks of the latencies: the budget, and the tail. Without a budget there are none."""
    if budget is None:
        return []
    checks = [verdict.budget(budget, timed)]
    limited = budget.quantile == 0.9  # the tail itself has a limit
    if timed.original is not None and not timed.same and not limited:  # against itself, a tail can only be inconclusive
        checks.append(verdict.tail(timed.samples, timed.original, timed.confidence))
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
