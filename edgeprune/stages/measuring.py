"""Measure the networks of plans on a device, interleaved with the original network, for the confirm stage and sweeps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from edgeprune.devices.bench import SETTLED
from edgeprune.devices.rounds import until
from edgeprune.latency import stats
from edgeprune.latency.observations import FIT_QUANTILE, anchor_ns, reference_ns
from edgeprune.limits import LIMITS
from edgeprune.records import Budget, Experiment, Interval, MeasuredPlan, Plan, Profile, Run, Samples
from edgeprune.stages import experiments

LEAST = 0.955  # share of the budget that a plan must use; a plan below it removes more than is needed
# The share that it may use at most. In the verdict each network has processes of its own, and the ratio was measured to be
# up to 1.3 % above that in shared processes. So a confirmed plan also passes the verdict.
MOST = 0.985
PROCESSES = 6  # each interleaves the anchor, the original network and the pruned networks
REPEATS = 3  # of these, while no plan is known to be in the accepted range or out of it
# A process counts if its ratio of the original network to the anchor is within this share of the profile's. The share is the
# first, or up to the second where processes differ anyway: a small transformer's have a standard deviation of 4 %.
STEADY = 0.05, 0.1
ATTEMPTS = 4  # at a measurement with enough such processes
TIMED_S = LIMITS.median_s  # of each network in a process

log = logging.getLogger("edgeprune")


def tail(profile: Profile, quantile: float) -> float:
    """The quantile of the original network's latency over its median. A plan is assumed to have the same."""
    if quantile == 0.5:
        return 1.0
    taken = [one.samples for one in profile.experiments if one.role == profile.original_role]
    return median(stats.latency(one, quantile).mid / stats.latency(one).mid for one in taken)


def baseline_ns(profile: Profile, budget: Budget) -> float:
    """The original network's latency at the quantile of a budget, in nanoseconds."""
    return reference_ns(profile) * tail(profile, budget.quantile)


def accepted(found: MeasuredPlan) -> bool:
    """Whether the whole interval is within `MOST` of the budget. The verdict then is likely to pass."""
    return found.measured.high <= MOST * found.budget_ns


def decided(found: Sequence[MeasuredPlan]) -> bool:
    """Whether a plan is in the accepted range, or all are out of it."""
    if any(accepted(one) and one.share >= LEAST for one in found):
        return True
    return all(accepted(one) or one.measured.low > MOST * one.budget_ns for one in found)


@dataclass(frozen=True)
class Round:
    """The plans of a confirm round.

    Attributes:
        number: of the round, from 0.
        budget: the latency budget.
        plans: that the round measures.
    """

    number: int
    budget: Budget
    plans: Sequence[Plan]


def measure(
    subject: experiments.Subject, profile: Profile, rounds: Sequence[Round], target: str = ""
) -> tuple[Profile, list[list[MeasuredPlan]]]:
    """Measure the networks of plans, interleaved with the anchor and the original network.

    Args:
        subject: the network's variants and the device.
        profile: all measurements so far.
        rounds: what to measure: a round of one budget, or of several in the same processes.
        target: the target's name, if there are several.

    Returns:
        The profile with the new experiments, and for each round its plans as measured.
    """
    groups = subject.groups
    full = groups.full()
    wanted: experiments.Batch = [("anchor", experiments.anchor(groups)), (profile.original_role, full)]
    wanted += [("confirm", {**full, **plan.widths}) for one in rounds for plan in one.plans]
    files, usual = subject.files(wanted), reference_ns(profile) / anchor_ns(profile)

    def found(samples: Sequence[Samples]) -> list[list[MeasuredPlan]]:
        own = iter(samples[2:])
        return [_measured(profile, one, [next(own) for _ in one.plans], samples[1], target) for one in rounds]

    samples = until(
        lambda _: _compared(subject, files, usual), lambda samples: all(map(decided, found(samples))), REPEATS
    )
    new = (
        Experiment(role, profile.next_batch, widths, taken)
        for (role, widths), taken in zip(wanted, samples, strict=True)
    )
    return profile.with_experiments(new), found(samples)


def _measured(
    profile: Profile, one: Round, taken: Sequence[Samples], original: Samples, target: str
) -> list[MeasuredPlan]:
    original_ns, measured = baseline_ns(profile, one.budget), []
    for plan, samples in zip(one.plans, taken, strict=True):
        own, latency = plan.latency_on(target), _latency_ns(one.budget, samples, original, original_ns)
        measured.append(MeasuredPlan(one.number, plan.widths, own.value, latency, own.limit, target))
    return measured


def _compared(subject: experiments.Subject, files: Sequence[Path], usual: float) -> list[Samples]:
    """Processes that interleave the anchor, the original network and plans, without those that were disturbed.

    Programs on other cores may take the memory, which slows down networks with large weights more than others. No counter of
    the processor shows it, but the ratio of two networks that never change does. If it stays different, the device itself
    has changed, and all processes count.

    Args:
        usual: the ratio of the original network to the anchor in the profile.
    """
    kept: list[tuple[Run, ...]] = []  # of each process: a run of each file
    for _ in range(ATTEMPTS):
        found = subject.device.compare(files, subject.inputs, PROCESSES, TIMED_S)
        ratios = stats.ratios(found[1], found[0], FIT_QUANTILE)
        off = np.abs(ratios / usual - 1) > np.clip(3 * stats.relative_spread(ratios), *STEADY)
        each = list(zip(*(samples.runs for samples in found), strict=True))
        kept += [runs for runs, bad in zip(each, off, strict=True) if not bad]
        if len(kept) >= min(SETTLED, len(each)):
            return [Samples(runs) for runs in zip(*kept, strict=True)]
        log.warning("other programs used the memory for a while: %d processes are measured again", int(off.sum()))
    return found


def _latency_ns(budget: Budget, taken: Samples, original: Samples, original_ns: float) -> Interval:
    """A network's latency. Drift cancels out in the ratio of interleaved runs: `original_ns` turns it into nanoseconds."""
    if budget.ns is not None:
        return stats.latency(taken, budget.quantile)
    ratio = stats.ratio(taken, original, budget.quantile)
    return Interval(ratio.low * original_ns, ratio.mid * original_ns, ratio.high * original_ns)
