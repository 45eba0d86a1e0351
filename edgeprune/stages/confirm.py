"""The loop that closes on a budget: plan, cut, measure; where that is not what was predicted, learn from it and plan again."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from edgeprune.devices.bench import Bench
from edgeprune.errors import InconclusiveError
from edgeprune.latency import model as latency
from edgeprune.latency import stats
from edgeprune.limits import LIMITS
from edgeprune.records import (
    Budget,
    Confirmed,
    Experiment,
    Groups,
    Interval,
    Plan,
    Profile,
    Round,
    Scores,
    Widths,
    digest,
)
from edgeprune.stages import plan as planning
from edgeprune.stages import profile as profiling

LEAST = 0.97  # of the budget: less is accuracy given away
STRIDE = 0.022  # of the budget, between plans that are measured together: less than what is accepted is wide
PROCESSES = 6  # in each of which the anchor, the unpruned and the cut networks take turns
PLANS = 4  # at most, in one turn

log = logging.getLogger("edgeprune")
Measured = Callable[[int, Sequence[Plan]], tuple[Profile, list[Round]]]  # the plans of a turn: what is known after it


def plans(
    groups: Groups,
    scores: Scores,
    budget: Budget,
    profile: Profile,
    turn: int = 0,
    correction: float = 1.0,
    surprise: float = 0.0,
) -> list[Plan]:
    """Exact plans on the profile as it stands, for a turn of the loop.

    As many as it takes for one of them to land where it is accepted: a model that is sure of itself holds the budget with
    the upper edge of its prediction, another has several measured, `STRIDE` apart. Every turn knows better. `correction`
    is measured over predicted latency, as the model sees it after the last turn; `surprise` is how far that turn was off.
    Raises `InfeasibleError` where nothing meets the budget.
    """
    model = latency.fit(groups, profile)
    budget_ns = budget.resolve(latency.baseline(profile))
    error = max(model.error, surprise) / (1 + turn)
    count = min(PLANS, max(1, math.ceil(2 * error / STRIDE)))
    aims = [(1 + LEAST) / 2 * (1 + STRIDE * (i - (count - 1) / 2)) for i in range(count)]
    if count == 1:
        aims = [1 / (1 + error)]
    return planning.plans(groups, model, scores, budget_ns, digest(profile), [aim / correction for aim in aims])


def confirm(groups: Groups, scores: Scores, budget: Budget, profile: Profile, measured: Measured) -> Confirmed:
    """The plan whose measured latency uses most of the budget and is safely within it, and all that were measured on the way.

    Where noise leaves none that is safe, the fastest within the budget. Raises `InconclusiveError` where none is after
    `LIMITS.confirm_rounds` turns, `InfeasibleError` where no plan is predicted to be.
    """
    planned = plans(groups, scores, budget, profile)
    tried: list[tuple[Plan, Round]] = []
    for turn in range(LIMITS.confirm_rounds):
        profile, rounds = measured(turn, planned)
        now = list(zip(planned, rounds, strict=True))
        tried += now
        safe = [(plan, found) for plan, found in tried if found.safe]
        plan, found = max(safe or tried, key=lambda pair: pair[1].share)
        model = latency.draft(groups, profile)
        ratios = sorted(found.measured.mid / model.ns(plan.widths) for plan, found in now)
        correction = ratios[len(ratios) // 2]
        wider = planning.wider(groups, plan.widths)
        full_up = all(model.ns(widths) * correction > found.budget_ns for widths in wider)
        if found.safe and (found.share >= LEAST or full_up):
            break
        if turn + 1 < LIMITS.confirm_rounds:
            surprise = max(abs(found.measured.mid / found.predicted_ns - 1) for found in rounds)
            planned = plans(groups, scores, budget, profile, turn + 1, correction, surprise)
    met = [(plan, found) for plan, found in tried if found.share <= 1]
    if not met:
        shares = ", ".join(f"{100 * found.share:.1f}%" for _, found in tried)
        raise InconclusiveError(
            f"no plan was confirmed in {turn + 1} rounds: measured {shares} of the budget; the device may be too busy"
            " to measure: run again when it is quiet, or raise the budget"
        )
    if not safe:  # on a machine too noisy for any to be, the fastest is the one most likely to hold
        plan, found = min(met, key=lambda pair: pair[1].share)
    if found.share < LEAST and not full_up:
        log.warning("the confirmed plan uses only %.1f%% of the budget: accuracy is given away", 100 * found.share)
    return Confirmed(plan, tuple(found for _, found in tried))


def measure(
    bench: Bench,
    variant: Callable[[Widths, bool], Path],
    inputs: Sequence[Path],
    groups: Groups,
    profile: Profile,
    budget: Budget,
    turn: int,
    planned: Sequence[Plan],
) -> tuple[Profile, list[Round]]:
    """Measure the networks of plans, taking turns with the anchor and the unpruned one: the profile with them, and each.

    `variant` gives the file of a network of some widths, in fp32 where it is the reference.
    """
    full = groups.full()
    asked = [("anchor", profiling.anchor(groups)), (profile.unpruned_role, full)]
    asked += [("confirm", {**full, **plan.widths}) for plan in planned]
    models = [variant(widths, role == "reference") for role, widths in asked]
    samples = bench.compare(models, inputs, PROCESSES)
    baseline_ns = latency.baseline(profile)
    rounds = []
    for plan, taken in zip(planned, samples[2:], strict=True):
        # The ratio of runs in turns is free of the machine's drift; the profile's baseline gives it its size.
        ratio = stats.ratio(taken, samples[1], latency.QUIET)
        shared = Interval(ratio.low * baseline_ns, ratio.mid * baseline_ns, ratio.high * baseline_ns)
        measured = shared if budget.ns is None else stats.latency(taken)
        rounds.append(Round(turn, plan.widths, plan.predicted.mid, measured, plan.budget_ns))
    new = (
        Experiment(role, profile.next_batch, widths, taken)
        for (role, widths), taken in zip(asked, samples, strict=True)
    )
    return profile.with_experiments(new), rounds
