"""The confirm stage: plan, measure, correct the prediction, and plan again, until a measured plan uses the budget."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeprune.devices.rounds import until
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
    Reference,
    Samples,
    Scores,
    digest,
)
from edgeprune.stages import allocation, events, experiments
from edgeprune.storage.profiles import ProfileFile

if TYPE_CHECKING:
    from edgeprune.devices.bench import Bench
    from edgeprune.frontends.model import Network
    from edgeprune.stages.inputs import Evidence, Variants

LEAST = 0.96  # share of the budget that a plan must use; a plan below it removes more than is needed
# The share that it may use at most. In the verdict each network has processes of its own, and the ratio was measured to
# differ by up to 1 % from that in shared processes. So a confirmed plan also passes the verdict.
MOST = 0.99
STRIDE = 0.022  # share of the budget between the plans of a round; less than the accepted range, MOST − LEAST
PROCESSES = 6  # each interleaves the anchor, the original network and the pruned networks
REPEATS = 3  # of these, while no plan is known to be in the accepted range or out of it
PLANS = 4  # most plans of a round
TIMED_S = 0.1  # time of each network in a process; processes differ more than parts of one, so more time tells little

log = logging.getLogger("edgeprune")
# (number of the round, its plans) -> the profile with the new measurements, and each plan as measured
Measure = Callable[[int, Sequence[Plan]], tuple[Profile, list[MeasuredPlan]]]


@dataclass(frozen=True)
class Reads:
    """The first plan, the records that it was made from, the device, and the profile's file, which new measurements go to."""

    network: Network
    survey: Groups
    evidence: Evidence | Reference
    plan: Plan
    budget_latency: Budget
    device: Bench
    variants: Variants
    profile_file: ProfileFile


def run(reads: Reads, output: Output) -> Confirmed:
    """Find a plan whose latency is confirmed on the device. All measurements go into the profile. Raises as `Loop.confirm`."""
    evidence = reads.evidence
    if isinstance(evidence, Reference) or not reads.plan.cuts(reads.survey):
        return Confirmed(reads.plan, ())  # there is nothing to confirm
    profile = evidence.profile
    subject = experiments.Subject(reads.device, reads.variants, reads.survey, reads.network.files(output.scratch))

    def measured(number: int, plans: Sequence[Plan]) -> tuple[Profile, list[MeasuredPlan]]:
        nonlocal profile
        profile, found = measure(subject, profile, reads.budget_latency, number, plans)
        reads.profile_file.keep(profile)
        output.watch.step(number + 1, max(number + 1, LIMITS.confirm_rounds), "; ".join(map(_figures, found)))
        return profile, found

    confirmed = Loop(reads.survey, evidence.scores, reads.budget_latency).confirm(profile, measured)
    widths = {**reads.survey.full(), **confirmed.plan.widths}
    folder = output.events / events.name_of(confirmed.plan, reads.budget_latency)
    events.layers(folder, reads.survey, draft(reads.survey, profile), widths)
    return confirmed


def describe(confirmed: Confirmed, reads: Reads) -> str:
    """The prediction and the measurement of the confirmed plan, as a share of the budget."""
    found = confirmed.measurement
    if found is None:
        return "nothing is cut, so nothing is measured"
    rounds = f"{confirmed.rounds} round{'s' * (confirmed.rounds != 1)}"
    return f"{_figures(found)} of the budget, in {rounds}"


STAGE = Stage("confirm", Reads, run, Confirmed, describe)


def _figures(one: MeasuredPlan) -> str:
    return (
        f"predicted {one.predicted_ns / 1e6:.3f} ms, measured {one.measured.mid / 1e6:.3f} ms: {100 * one.share:.1f}%"
    )


@dataclass(frozen=True)
class Feedback:
    """The errors of a confirm round's predictions. The next round's plans take them into account.

    Attributes:
        round: the number of the next round, from 0.
        correction: measured latency over the latency that the model predicts after the round.
        error: the largest relative error of the round's predictions.
    """

    round: int = 0
    correction: float = 1.0
    error: float = 0.0


@dataclass(frozen=True)
class Loop:
    """Makes and measures plans for a latency budget, until one is confirmed."""

    groups: Groups
    scores: Scores
    budget: Budget

    def plans(self, profile: Profile, feedback: Feedback | None = None) -> list[Plan]:
        """The plans of the next confirm round, exact on a profile.

        If the latency model has a small error, there is one plan, in the middle of the accepted range. Else there are several,
        `STRIDE` apart, so that one of them is likely to be accepted. The expected error shrinks with every round.

        Args:
            profile: all measurements so far.
            feedback: of the round before; None for the first round.

        Raises:
            InfeasibleError: no plan is predicted to meet the budget.
        """
        feedback = feedback or Feedback()
        model = fit(self.groups, profile)
        budget_ns = self.budget.resolve(reference_ns(profile))
        error = max(model.error, feedback.error) / (1 + feedback.round)
        count = min(PLANS, max(1, math.ceil(2 * error / STRIDE)))
        aims = [(MOST + LEAST) / 2 * (1 + STRIDE * (i - (count - 1) / 2)) for i in range(count)]
        aims = [aim / feedback.correction for aim in aims]
        return allocation.plans(self.groups, model, self.scores, budget_ns, digest(profile), aims)

    def confirm(self, profile: Profile, measure: Measure) -> Confirmed:
        """The plan that uses most of the budget, of those whose whole interval is within `MOST` of it.

        If noise leaves no such plan, it is the fastest plan within the budget.

        Args:
            profile: all measurements so far.
            measure: measures the plans of a round.

        Raises:
            InconclusiveError: no plan is within the budget after `LIMITS.confirm_rounds_without` rounds.
            InfeasibleError: no plan is predicted to meet the budget.
        """
        planned = self.plans(profile)
        tried: list[tuple[Plan, MeasuredPlan]] = []
        for number in itertools.count():
            profile, measured = measure(number, planned)
            now = list(zip(planned, measured, strict=True))
            tried += now
            safe = [pair for pair in tried if accepted(pair[1])] or [pair for pair in tried if pair[1].safe]
            plan, found = max(safe or tried, key=lambda pair: pair[1].share)
            model = draft(self.groups, profile)
            ratios = sorted(one.measured.mid / model.ns(plan.widths) for plan, one in now)
            correction = ratios[len(ratios) // 2]
            met = any(one.share <= 1 for _, one in tried)
            if not met:  # an exact planner finds what the model takes for fastest, so its next plans err alike
                errors = sorted(one.measured.mid / one.predicted_ns for one in measured)
                correction = max(correction, errors[len(errors) // 2])
            wider = allocation.wider(self.groups, plan.widths)
            widest = all(model.ns(widths) * correction > found.budget_ns for widths in wider)
            if accepted(found) and (found.share >= LEAST or widest):
                break
            if number + 1 >= (LIMITS.confirm_rounds if met else LIMITS.confirm_rounds_without):
                break
            error = max(abs(one.measured.mid / one.predicted_ns - 1) for one in measured)
            planned = self.plans(profile, Feedback(number + 1, correction, error))
        if not met:
            shares = ", ".join(f"{100 * found.share:.1f}%" for _, found in tried)
            raise InconclusiveError(
                f"no plan was confirmed in {number + 1} rounds: measured {shares} of the budget; the device may be too busy"
                " to measure: run again when it is quiet, or raise the budget"
            )
        if not safe:  # the fastest plan is the most likely to meet the budget in another measurement
            plan, found = min(tried, key=lambda pair: pair[1].share)
        if found.share < LEAST and not widest:
            log.warning(
                "the confirmed plan uses only %.1f%% of the budget; a plan that uses more may keep more accuracy",
                100 * found.share,
            )
        return Confirmed(plan, tuple(found for _, found in tried))


def accepted(found: MeasuredPlan) -> bool:
    """Whether the whole interval is within `MOST` of the budget. The verdict then is likely to pass."""
    return found.measured.high <= MOST * found.budget_ns


def decided(found: Sequence[MeasuredPlan]) -> bool:
    """Whether a plan is in the accepted range, or all are out of it."""
    if any(accepted(one) and one.share >= LEAST for one in found):
        return True
    return all(accepted(one) or one.measured.low > MOST * one.budget_ns for one in found)


def measure(
    subject: experiments.Subject, profile: Profile, budget: Budget, number: int, plans: Sequence[Plan]
) -> tuple[Profile, list[MeasuredPlan]]:
    """Measure the networks of plans, interleaved with the anchor and the original network.

    Args:
        subject: the network's variants and the device.
        profile: all measurements so far.
        budget: the latency budget.
        number: the number of the confirm round, from 0.
        plans: the plans of the round.

    Returns:
        The profile with the new experiments, and each plan as measured.
    """
    groups = subject.groups
    full = groups.full()
    wanted: experiments.Batch = [("anchor", experiments.anchor(groups)), (profile.original_role, full)]
    wanted += [("confirm", {**full, **plan.widths}) for plan in plans]
    files, baseline_ns = subject.files(wanted), reference_ns(profile)

    def found(samples: Sequence[Samples]) -> list[MeasuredPlan]:
        return [
            MeasuredPlan(
                number,
                plan.widths,
                plan.predicted.mid,
                _latency_ns(budget, taken, samples[1], baseline_ns),
                plan.budget_ns,
            )
            for plan, taken in zip(plans, samples[2:], strict=True)
        ]

    samples = until(
        lambda _: subject.device.compare(files, subject.inputs, PROCESSES, TIMED_S),
        lambda samples: decided(found(samples)),
        REPEATS,
    )
    new = (
        Experiment(role, profile.next_batch, widths, taken)
        for (role, widths), taken in zip(wanted, samples, strict=True)
    )
    return profile.with_experiments(new), found(samples)


def _latency_ns(budget: Budget, taken: Samples, original: Samples, baseline_ns: float) -> Interval:
    """A network's latency. Drift cancels out in the ratio of interleaved runs: `baseline_ns` turns it into nanoseconds."""
    if budget.ns is not None:
        return stats.latency(taken)
    ratio = stats.ratio(taken, original, FIT_QUANTILE)
    return Interval(ratio.low * baseline_ns, ratio.mid * baseline_ns, ratio.high * baseline_ns)
