"""The confirm stage: plan, measure, learn from what was not as predicted, and plan again, until a plan uses the budget."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeprune.errors import InconclusiveError
from edgeprune.latency import stats
from edgeprune.latency.fit import draft, fit
from edgeprune.latency.observations import FIT_QUANTILE, reference_ns
from edgeprune.limits import LIMITS
from edgeprune.pipeline.stage import Output, Stage
from edgeprune.records import (
    Budget,
    Confirmed,
    Experiment,
    Groups,
    Interval,
    MeasuredPlan,
    Plan,
    Profile,
    Scores,
    digest,
)
from edgeprune.stages import allocation, events, experiments
from edgeprune.stages.profile import Profiled
from edgeprune.storage.profiles import ProfileFile

if TYPE_CHECKING:
    from edgeprune.devices.bench import Bench
    from edgeprune.frontends.model import Network
    from edgeprune.stages.inputs import Variants

LEAST = 0.97  # share of the budget that a plan must use: a plan below it loses accuracy for nothing
STRIDE = 0.022  # share of the budget between plans of one round, less than the width of what is accepted
PROCESSES = 6  # in each of which the anchor, the original and the pruned networks are interleaved
PLANS = 4  # of one round, at most

log = logging.getLogger("edgeprune")
Measure = Callable[
    [int, Sequence[Plan]], tuple[Profile, list[MeasuredPlan]]
]  # a round's plans -> what is known after it


@dataclass(frozen=True)
class Reads:
    """The first plan and what it was made from, the device, and the profile's file, which learns what is measured."""

    network: Network
    survey: Groups
    scores: Scores
    plan: Plan
    profile: Profiled
    budget_latency: Budget
    device: Bench
    variants: Variants
    profile_file: ProfileFile


def run(reads: Reads, output: Output) -> Confirmed:
    """A plan whose latency was measured on the device. What is measured goes into the profile.

    Raises `InconclusiveError` where no plan is confirmed in `LIMITS.confirm_rounds` rounds.
    """
    if not reads.plan.cuts(reads.survey):
        return Confirmed(reads.plan, ())  # there is nothing to confirm
    profile = reads.profile.profile
    subject = experiments.Subject(reads.device, reads.variants, reads.survey, reads.network.files(output.scratch))

    def measured(number: int, plans: Sequence[Plan]) -> tuple[Profile, list[MeasuredPlan]]:
        nonlocal profile
        profile, found = measure(subject, profile, reads.budget_latency, number, plans)
        reads.profile_file.keep(profile)
        output.watch.step(number + 1, LIMITS.confirm_rounds, "; ".join(map(_figures, found)))
        return profile, found

    confirmed = Loop(reads.survey, reads.scores, reads.budget_latency).confirm(profile, measured)
    widths = {**reads.survey.full(), **confirmed.plan.widths}
    folder = output.events / events.name_of(confirmed.plan, reads.budget_latency)
    events.layers(folder, reads.survey, draft(reads.survey, profile), widths)
    return confirmed


def describe(confirmed: Confirmed, reads: Reads) -> str:
    """The prediction and the measurement of the confirmed plan, as a share of the budget."""
    own = confirmed.measurement
    if own is None:
        return "nothing is cut, so nothing is measured"
    rounds = f"{confirmed.rounds} round{'s' * (confirmed.rounds != 1)}"
    return f"{_figures(own)} of the budget, in {rounds}"


STAGE = Stage("confirm", Reads, run, Confirmed, describe)


def _figures(one: MeasuredPlan) -> str:
    return (
        f"predicted {one.predicted_ns / 1e6:.3f} ms, measured {one.measured.mid / 1e6:.3f} ms: {100 * one.share:.1f}%"
    )


@dataclass(frozen=True)
class Surprise:
    """What a confirm round taught.

    Attributes:
        round: the number of the next round, from 0.
        correction: measured over predicted latency, as the model sees it after the round.
        error: how far the round's predictions were off, relative.
    """

    round: int = 0
    correction: float = 1.0
    error: float = 0.0


@dataclass(frozen=True)
class Loop:
    """Plans for a latency budget until one is confirmed."""

    groups: Groups
    scores: Scores
    budget: Budget

    def plans(self, profile: Profile, learnt: Surprise | None = None) -> list[Plan]:
        """Exact plans on a profile, for the next confirm round.

        There are as many as it takes for one of them to be accepted. A model with a small error gives one plan, whose upper
        prediction meets the budget. Another gives several, `STRIDE` apart. The expected error shrinks with every round.

        Raises `InfeasibleError` where no plan is predicted to meet the budget.
        """
        learnt = learnt or Surprise()
        model = fit(self.groups, profile)
        budget_ns = self.budget.resolve(reference_ns(profile))
        error = max(model.error, learnt.error) / (1 + learnt.round)
        count = min(PLANS, max(1, math.ceil(2 * error / STRIDE)))
        aims = [(1 + LEAST) / 2 * (1 + STRIDE * (i - (count - 1) / 2)) for i in range(count)]
        if count == 1:
            aims = [1 / (1 + error)]
        aims = [aim / learnt.correction for aim in aims]
        return allocation.plans(self.groups, model, self.scores, budget_ns, digest(profile), aims)

    def confirm(self, profile: Profile, measure: Measure) -> Confirmed:
        """The plan whose measured latency uses most of the budget and is safely within it.

        Where noise leaves no plan safe, the fastest plan within the budget. Raises `InconclusiveError` where no plan is within
        the budget after `LIMITS.confirm_rounds` rounds, and `InfeasibleError` where no plan is predicted to be.
        """
        planned = self.plans(profile)
        tried: list[tuple[Plan, MeasuredPlan]] = []
        for number in range(LIMITS.confirm_rounds):
            profile, measured = measure(number, planned)
            now = list(zip(planned, measured, strict=True))
            tried += now
            safe = [(plan, found) for plan, found in tried if found.safe]
            plan, found = max(safe or tried, key=lambda pair: pair[1].share)
            model = draft(self.groups, profile)
            ratios = sorted(one.measured.mid / model.ns(plan.widths) for plan, one in now)
            correction = ratios[len(ratios) // 2]
            wider = allocation.wider(self.groups, plan.widths)
            full_up = all(model.ns(widths) * correction > found.budget_ns for widths in wider)
            if found.safe and (found.share >= LEAST or full_up):
                break
            if number + 1 < LIMITS.confirm_rounds:
                error = max(abs(one.measured.mid / one.predicted_ns - 1) for one in measured)
                planned = self.plans(profile, Surprise(number + 1, correction, error))
        met = [(plan, found) for plan, found in tried if found.share <= 1]
        if not met:
            shares = ", ".join(f"{100 * found.share:.1f}%" for _, found in tried)
            raise InconclusiveError(
                f"no plan was confirmed in {number + 1} rounds: measured {shares} of the budget; the device may be too busy"
                " to measure: run again when it is quiet, or raise the budget"
            )
        if not safe:  # the fastest is the one most likely to meet the budget when it is measured again
            plan, found = min(met, key=lambda pair: pair[1].share)
        if found.share < LEAST and not full_up:
            log.warning(
                "the confirmed plan uses only %.1f%% of the budget; more would keep more accuracy", 100 * found.share
            )
        return Confirmed(plan, tuple(found for _, found in tried))


def measure(
    subject: experiments.Subject, profile: Profile, budget: Budget, number: int, plans: Sequence[Plan]
) -> tuple[Profile, list[MeasuredPlan]]:
    """Measure the networks of plans, interleaved with the anchor and the original network.

    Returns the profile with the new experiments, and each plan as measured.
    """
    groups = subject.groups
    full = groups.full()
    wanted: experiments.Batch = [("anchor", experiments.anchor(groups)), (profile.original_role, full)]
    wanted += [("confirm", {**full, **plan.widths}) for plan in plans]
    models = [subject.variants.file(widths, role == "reference") for role, widths in wanted]
    samples = subject.device.compare(models, subject.inputs, PROCESSES)
    baseline_ns = reference_ns(profile)
    measured = []
    for plan, taken in zip(plans, samples[2:], strict=True):
        # The ratio of interleaved runs is free of the machine's drift; the profile's original latency gives it its size.
        ratio = stats.ratio(taken, samples[1], FIT_QUANTILE)
        scaled = Interval(ratio.low * baseline_ns, ratio.mid * baseline_ns, ratio.high * baseline_ns)
        latency_ns = scaled if budget.ns is None else stats.latency(taken)
        measured.append(MeasuredPlan(number, plan.widths, plan.predicted.mid, latency_ns, plan.budget_ns))
    new = (
        Experiment(role, profile.next_batch, widths, taken)
        for (role, widths), taken in zip(wanted, samples, strict=True)
    )
    return profile.with_experiments(new), measured
