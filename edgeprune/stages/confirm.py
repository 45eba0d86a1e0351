"""The confirm stage: plan, measure, correct the prediction, and plan again, until a measured plan uses the budget."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgeprune.errors import InconclusiveError
from edgeprune.latency.fit import draft, fit
from edgeprune.limits import LIMITS
from edgeprune.pipeline.stage import Output, Stage
from edgeprune.records import (
    Budget,
    Confirmed,
    Groups,
    MeasuredPlan,
    Plan,
    Profile,
    Reference,
    Scores,
    Widths,
    digest,
)
from edgeprune.stages import events, experiments
from edgeprune.stages.measuring import LEAST, MOST, Round, accepted, baseline_ns, measure, tail
from edgeprune.stages.planning import allocation
from edgeprune.stages.planning.figures import Bound, Latency
from edgeprune.storage.profiles import ProfileFile

if TYPE_CHECKING:
    from edgeprune.devices.bench import Bench
    from edgeprune.frontends.model import Network
    from edgeprune.stages.bounds import Evidence
    from edgeprune.stages.inputs import Variants

STRIDE = 0.022  # share of the budget between the plans of a round; less than the accepted range, MOST − LEAST
PLANS = 4  # most plans of a round

log = logging.getLogger("edgeprune")
Profiles = Mapping[str, Profile]  # by target; a single one has no name
OnTargets = Mapping[str, MeasuredPlan]  # a plan as measured, by target
Tried = tuple[Plan, OnTargets]
# (number of the round, its plans) -> the profiles with the new measurements, and each plan as measured
Measure = Callable[[int, Sequence[Plan]], tuple[Profiles, list[OnTargets]]]
Rounds = Generator[list[Plan], tuple[Profiles, list[OnTargets]], Confirmed]


@dataclass(frozen=True)
class Board:
    """A target whose latency is limited.

    Attributes:
        target: its name, if there are several.
        open: gives the device, the variants, and the profile's file, which new measurements go to.
        release: ends the lease of the device, if there are several targets.
    """

    target: str
    open: Callable[[], tuple[Bench, Variants, ProfileFile]]
    release: Callable[[], None]


@dataclass(frozen=True)
class Reads:
    """The first plan, the records that it was made from, the devices, and what a sweep confirmed for several budgets."""

    network: Network
    survey: Groups
    evidence: Evidence | Reference
    plan: Plan
    budget_latency: Budget | None
    bounds: tuple[Bound, ...]
    boards: tuple[Board, ...]
    confirmed_ahead: Mapping[str, Confirmed]


def run(reads: Reads, output: Output) -> Confirmed:
    """Find a plan whose latency is confirmed on the device. All measurements go into the profile. Raises as `Loop.confirm`."""
    evidence, budget = reads.evidence, reads.budget_latency
    if isinstance(evidence, Reference) or budget is None or not reads.plan.cuts(reads.survey):
        return Confirmed(reads.plan, ())  # there is nothing to confirm
    profiles = {**evidence.profiles}

    def measured(number: int, plans: Sequence[Plan]) -> tuple[Profiles, list[OnTargets]]:
        found: list[dict[str, MeasuredPlan]] = [{} for _ in plans]
        for board in reads.boards:
            name, (device, variants, file) = board.target, board.open()
            subject = experiments.Subject(device, variants, reads.survey, reads.network.files(output.scratch))
            profiles[name], (own,) = measure(subject, profiles[name], [Round(number, budget, plans)], name)
            file.keep(profiles[name])
            board.release()
            shown = "; ".join(map(_figures, own))
            output.watch.step(number + 1, max(number + 1, LIMITS.confirm_rounds), f"{name}: {shown}" if name else shown)
            for each, one in zip(found, own, strict=True):
                each[name] = one
        return profiles, [*found]

    confirmed = reads.confirmed_ahead.get(digest(reads.plan))
    if confirmed is None:
        confirmed = Loop(reads.survey, evidence.scores, budget, reads.bounds).confirm(profiles, measured, reads.plan)
    widths = {**reads.survey.full(), **confirmed.plan.widths}
    folder = output.events / events.name_of(confirmed.plan, budget)
    for name, profile in profiles.items():
        events.layers(folder / name, reads.survey, draft(reads.survey, profile), widths)
    return confirmed


def describe(confirmed: Confirmed, reads: Reads) -> str:
    """The prediction and the measurement of the confirmed plan, as a share of the budget."""
    found = confirmed.measurement
    if found is None:
        cut = reads.plan.cuts(reads.survey)
        return "no latency has a limit, so none is measured" if cut else "nothing is cut, so nothing is measured"
    rounds = f"{confirmed.rounds} round{'s' * (confirmed.rounds != 1)}"
    if found.target:
        each = ", ".join(f"{one.target} {100 * one.share:.1f}%" for one in confirmed.measurements)
        return f"{each} of the budget, {found.target} binds; in {rounds}"
    return f"{_figures(found)} of the budget, in {rounds}"


STAGE = Stage("confirm", Reads, run, Confirmed, describe, joint=True)


def _figures(one: MeasuredPlan) -> str:
    return (
        f"predicted {one.predicted_ns / 1e6:.3f} ms, measured {one.measured.mid / 1e6:.3f} ms: {100 * one.share:.1f}%"
    )


@dataclass(frozen=True)
class Feedback:
    """The errors of a confirm round's predictions. The next round's plans take them into account.

    Attributes:
        round: the number of the next round, from 0.
        corrections: measured latency over the latency that the model predicts after the round, by target.
        error: the largest relative error of the round's predictions.
    """

    round: int = 0
    corrections: Mapping[str, float] = field(default_factory=dict)
    error: float = 0.0


@dataclass(frozen=True)
class Loop:
    """Makes and measures plans for the limits, until one is confirmed.

    Attributes:
        groups: the channel groups.
        scores: the importance scores.
        budget: of the latency on each target; None if no latency has a limit.
        bounds: the limits of other figures.
        most_plans: of a round.
    """

    groups: Groups
    scores: Scores
    budget: Budget | None
    bounds: tuple[Bound, ...] = ()
    most_plans: int = PLANS

    def plan(self, profiles: Profiles) -> Plan:
        """The first plan of the first round: what `plans` takes as `made`. Args and Raises as there."""
        return allocation.planned(self.groups, self.scores, self._rounds(profiles), _digest(profiles), most=1)[0]

    def plans(self, profiles: Profiles, feedback: Feedback | None = None, made: Plan | None = None) -> list[Plan]:
        """The plans of the next confirm round, exact on the profiles.

        If the latency models have small errors, there is one plan, in the middle of the accepted range. Else several are made,
        `STRIDE` apart, so that one of them is likely to be accepted. The expected error shrinks with every round.

        Args:
            profiles: all measurements so far, by target.
            feedback: of the round before; None for the first round.
            made: the first plan, if it is known already. If the profiles have grown since, it is made again.

        Raises:
            InfeasibleError: no plan is predicted to meet the limits.
        """
        rounds, profile = self._rounds(profiles, feedback), _digest(profiles)
        if made is None or made.profile != profile:
            return allocation.planned(self.groups, self.scores, rounds, profile)
        others = allocation.planned(self.groups, self.scores, rounds[1:], profile) if rounds[1:] else []
        return [made, *(plan for plan in others if plan.widths != made.widths)]

    def _rounds(self, profiles: Profiles, feedback: Feedback | None = None) -> list[list[Bound]]:
        """The limits of each plan of a round. The first plan has the lowest aim."""
        feedback = feedback or Feedback()
        if self.budget is None:
            return [[*self.bounds]]
        models = {name: fit(self.groups, one) for name, one in profiles.items()}
        figures = {name: Latency(model, self._tail(profiles[name])) for name, model in models.items()}
        limits = {name: self.budget.resolve(baseline_ns(one, self.budget)) for name, one in profiles.items()}
        error = max(*(model.error for model in models.values()), feedback.error) / (1 + feedback.round)
        count = min(self.most_plans, max(1, math.ceil(2 * error / STRIDE)))
        aims = [(MOST + LEAST) / 2 * (1 + STRIDE * (i - (count - 1) / 2)) for i in range(count)]
        return [
            [
                *(
                    Bound(own, limits[name], aim / feedback.corrections.get(name, 1.0), name)
                    for name, own in figures.items()
                ),
                *self.bounds,
            ]
            for aim in aims
        ]

    def _tail(self, profile: Profile) -> float:
        return 1.0 if self.budget is None else tail(profile, self.budget.quantile)

    def confirm(self, profiles: Profiles, measure: Measure, first: Plan | None = None) -> Confirmed:
        """The plan of `rounds`, which `measure` measures. Args, Returns and Raises as there."""
        rounds, number = self.rounds(profiles, first), 0
        found = step(rounds)
        while isinstance(found, list):
            found = step(rounds, measure(number, found))
            number += 1
        return found

    def rounds(self, profiles: Profiles, first: Plan | None = None) -> Rounds:
        """The plan that uses most of the budget, of those whose whole intervals are within `MOST` of it on every target.

        If noise leaves no such plan, it is the fastest plan within the budget.

        Args:
            profiles: all measurements so far, by target.
            first: the plan that the plan stage made; None to make it again.

        Yields:
            The plans of a round. What `Measure` returns for them is to be sent.

        Raises:
            InconclusiveError: no plan is within the budget after `LIMITS.confirm_rounds_open` rounds.
            InfeasibleError: no plan is predicted to meet the limits.
        """
        planned = self.plans(profiles, made=first)
        tried: list[tuple[Plan, OnTargets]] = []
        for number in itertools.count():
            profiles, measured = yield planned
            now = list(zip(planned, measured, strict=True))
            tried += now
            safe = [pair for pair in tried if _all(accepted, pair[1])]
            safe = safe or [pair for pair in tried if _all(lambda one: one.safe, pair[1])]
            plan, found = max(safe or tried, key=lambda pair: _share(pair[1]))
            used = max((_share(one) for _, one in tried if _share(one) <= 1), default=0.0)
            latencies = {name: Latency(draft(self.groups, one), self._tail(one)) for name, one in profiles.items()}
            corrections = {name: self._correction(name, own, now, tried) for name, own in latencies.items()}
            full = self._is_full(plan, found, latencies, corrections)
            if _all(accepted, found) and (_share(found) >= LEAST or full):
                break
            if number + 1 >= (LIMITS.confirm_rounds if used >= LEAST else LIMITS.confirm_rounds_open):
                break
            error = max(abs(one.measured.mid / one.predicted_ns - 1) for each in measured for one in each.values())
            planned = self.plans(profiles, Feedback(number + 1, corrections, error))
            known = [plan.widths for plan, _ in tried]
            if used and number + 1 >= LIMITS.confirm_rounds and all(plan.widths in known for plan in planned):
                break
        if not used:
            shares = ", ".join(f"{100 * _share(found):.1f}%" for _, found in tried)
            raise InconclusiveError(
                f"no plan was confirmed in {number + 1} rounds: measured {shares} of the budget; the device may be too busy"
                " to measure: run again when it is quiet, or raise the budget"
            )
        if not safe:  # the fastest plan is the most likely to meet the budget in another measurement
            plan, found = min(tried, key=lambda pair: _share(pair[1]))
        if _share(found) < LEAST and not full:
            log.warning(
                "the confirmed plan uses only %.1f%% of the budget; a plan that uses more may keep more accuracy",
                100 * _share(found),
            )
        return Confirmed(plan, tuple(one for _, found in tried for one in found.values()))

    def _correction(self, target: str, latency: Latency, now: Sequence[Tried], tried: Sequence[Tried]) -> float:
        """Measured latency on a target over the predicted one: the median of the round's plans."""
        ratios = sorted(found[target].measured.mid / latency.of(plan.widths) for plan, found in now)
        correction = ratios[len(ratios) // 2]
        if any(found[target].share <= 1 for _, found in tried):
            return correction
        # An exact planner finds what the model takes for fastest, so its next plans err alike.
        errors = sorted(found[target].measured.mid / found[target].predicted_ns for _, found in now)
        return max(correction, errors[len(errors) // 2])

    def _is_full(
        self, plan: Plan, found: OnTargets, latencies: Mapping[str, Latency], corrections: Mapping[str, float]
    ) -> bool:
        """Whether a plan uses all of some limit: another figure's, or every wider plan exceeds a limit."""
        if any(one.share >= LEAST for one in plan.limits if one.figure != "latency"):
            return True

        def exceeds(widths: Widths) -> bool:
            slow = (own.of(widths) * corrections[name] > found[name].budget_ns for name, own in latencies.items())
            return any(slow) or any(bound.figure.of(widths) > bound.most for bound in self.bounds)

        return all(map(exceeds, allocation.wider(self.groups, plan.widths)))


def step(rounds: Rounds, measured: tuple[Profiles, list[OnTargets]] | None = None) -> list[Plan] | Confirmed:
    """The plans of the next round, given the last one as measured (None before the first), or the confirmed plan."""
    try:
        return next(rounds) if measured is None else rounds.send(measured)
    except StopIteration as end:
        confirmed: Confirmed = end.value
        return confirmed


def _digest(profiles: Profiles) -> str:
    """The digest of what latency models are fitted to; empty if there are none."""
    known = [*profiles.values()]
    return "" if not known else digest(known[0] if len(known) == 1 else known)


def _all(holds: Callable[[MeasuredPlan], bool], found: OnTargets) -> bool:
    return all(map(holds, found.values()))


def _share(found: OnTargets) -> float:
    """The share of the budget that a plan uses on the target where it uses most."""
    return max(one.share for one in found.values())
