"""What the cells of a profile measure together, before each goes on alone. So the original network is measured once.

A stage of a cell finds what was measured here, and takes it as its own. Without it, the stage measures itself. So each cell
can still be resumed and repeated alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeprune.errors import EdgepruneError
from edgeprune.limits import LIMITS
from edgeprune.pipeline.request import Watch
from edgeprune.pipeline.run import Run
from edgeprune.records import Artifact, Budget, Confirmed, Plan, Reference, digest
from edgeprune.stages import compile as compiling
from edgeprune.stages import confirm, experiments, plan, survey, verify
from edgeprune.stages.measuring import Round, measure

if TYPE_CHECKING:
    from edgeprune.stages.inputs import Variants
    from edgeprune.storage.profiles import ProfileFile


@dataclass(frozen=True)
class Planned:
    """The plan of a cell that has not been confirmed, its budget, and what makes its next plans."""

    plan: Plan
    budget: Budget
    loop: confirm.Loop


def planned(run: Run) -> Planned | None:
    """Plan a cell; None if it has been confirmed, if nothing is cut, or if it has other limits than a latency."""
    if run.keeps(confirm.STAGE):
        return None
    made, groups, budget = run.record(plan.STAGE), run.record(survey.STAGE), run.request.project.budget
    evidence = run.value("evidence")
    if isinstance(evidence, Reference) or not made.cuts(groups) or budget.latency is None or budget.limits:
        return None
    return Planned(made, budget.latency, confirm.Loop(groups, evidence.scores, budget.latency, most_plans=1))


def confirm_plans(run: Run, cells: Sequence[Planned]) -> None:
    """Confirm the plans of several budgets, in rounds of one plan of each budget. All measurements go into the profile.

    A budget whose rounds end with an error is left to its own confirm stage.

    Args:
        run: of one of the cells.
        cells: those that share the profile.
    """
    variants: Variants = run.value("variants")
    inputs, watch = run.value("network").files(run.scratch), run.request.watch
    subject = experiments.Subject(run.value("device"), variants, run.record(survey.STAGE), inputs)
    known = run.value("confirmed_ahead")
    for start in range(0, len(cells), experiments.TOGETHER):
        own = cells[start : start + experiments.TOGETHER]
        watch.start("confirm")
        before = len(known)
        rounds = _confirm(subject, run.value("profile_file"), own, watch, known)
        watch.done("confirm", f"{len(known) - before} of {len(own)} plans, in {rounds} round{'s' * (rounds != 1)}")


def _confirm(
    subject: experiments.Subject,
    file: ProfileFile,
    cells: Sequence[Planned],
    watch: Watch,
    known: dict[str, Confirmed],
) -> int:
    """Add the confirmed plan of each cell to `known`, by the digest of its first one. Returns the number of rounds."""
    profile = file.read()
    started = [(cell, cell.loop.rounds({"": profile})) for cell in cells]
    steps = [(cell, rounds, _step(rounds, None)) for cell, rounds in started]
    for number in itertools.count():
        asked = [(cell, rounds, step) for cell, rounds, step in steps if isinstance(step, list)]
        if not asked:
            return number
        watch.step(number, LIMITS.confirm_rounds, f"{len(asked)} plans are measured")
        profile, measured = measure(subject, profile, [Round(number, cell.budget, plans) for cell, _, plans in asked])
        file.keep(profile)
        steps = [
            (cell, rounds, _step(rounds, ({"": profile}, [{"": one} for one in own])))
            for (cell, rounds, _), own in zip(asked, measured, strict=True)
        ]
        known |= {digest(cell.plan): step for cell, _, step in steps if isinstance(step, Confirmed)}
    raise AssertionError  # there is no last number


def _step(rounds: confirm.Rounds, measured: Any) -> list[Plan] | Confirmed | None:
    """The plans of the next round, or the confirmed one. None after an error."""
    try:
        return rounds.send(measured)
    except StopIteration as end:
        confirmed: Confirmed = end.value
        return confirmed
    except EdgepruneError:
        return None


@dataclass(frozen=True)
class Compiled:
    """Both artifacts of a cell that has no verdict yet, and its budget."""

    original: Artifact
    pruned: Artifact
    budget: Budget | None


def compiled(run: Run) -> Compiled | None:
    """The artifacts of a cell; None if it has a verdict already. Runs every stage that is missing."""
    if run.keeps(verify.STAGE):
        return None
    latency = run.request.project.budget.latency
    return Compiled(run.record(compiling.ORIGINAL), run.record(compiling.STAGE), latency)


def time_artifacts(run: Run, cells: Sequence[Compiled]) -> None:
    """Time the artifacts of several cells, interleaved with the original one. Their verify stages begin with these times.

    Args:
        run: of one of the cells.
        cells: of one target and precision, so that their original artifact is the same.
    """
    from edgeprune.stages.verdicts.accuracy import Timer
    from edgeprune.stages.verdicts.verdict import POLICY
    from edgeprune.stages.verdicts.verification import timed_s

    device = run.value("device")
    timer = Timer(device, run.value("network").files(run.scratch))
    models = [cells[0].original.files[0], *(cell.pruned.files[0] for cell in cells)]
    longest_s, before = max(timed_s(cell.budget) for cell in cells), len(device.lost)
    run.request.watch.start("verify")
    original, *pruned = timer.time(models, POLICY.verify.processes, timed_s=longest_s)
    known = run.value("timed_ahead")
    for cell, samples in zip(cells, pruned, strict=True):
        known[verify.pair(cell.original, cell.pruned)] = [verify.Times(original, samples, device.lost[before:])]
    run.request.watch.done("verify", f"{len(cells)} artifacts timed in {len(original.runs)} processes each")
