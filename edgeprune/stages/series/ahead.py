"""What the cells of a profile measure together, before each goes on alone. So the original network is measured once.

A stage of a cell finds what was measured here, and takes it as its own. Without it, the stage measures itself. So each cell
can still be resumed and repeated alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from edgeprune.errors import EdgepruneError
from edgeprune.frontends import functions
from edgeprune.limits import LIMITS
from edgeprune.pipeline.request import Watch
from edgeprune.pipeline.run import Run
from edgeprune.records import Artifact, Budget, Confirmed, Plan, Reference, digest
from edgeprune.stages import compile as compiling
from edgeprune.stages import confirm, experiments, plan, survey, verify
from edgeprune.stages.measuring import Round, measure

if TYPE_CHECKING:
    from edgeprune.devices.bench import Bench
    from edgeprune.storage.profiles import ProfileFile

Cell = TypeVar("Cell")


@dataclass(frozen=True)
class Planned:
    """A cell that has not been confirmed.

    Attributes:
        plan: of the plan stage.
        budget: of the latency.
        loop: makes its plans.
        device: the identity of the device that they are for.
    """

    plan: Plan
    budget: Budget
    loop: confirm.Loop
    device: str


def planned(run: Run) -> Planned | None:
    """Plan a cell; None if it has been confirmed, if nothing is cut, or if it has other limits than a latency."""
    if run.keeps(confirm.STAGE):
        return None
    made, groups, budget = run.record(plan.STAGE), run.record(survey.STAGE), run.request.project.budget
    evidence = run.value("evidence")
    if isinstance(evidence, Reference) or not made.cuts(groups) or budget.latency is None or budget.limits:
        return None
    loop = confirm.Loop(groups, evidence.scores, budget.latency, most_plans=1)
    return Planned(made, budget.latency, loop, _identity(run))


def _identity(run: Run) -> str:
    """The device that a run of the target has now. Another one may answer to its name the next time."""
    bench: Bench = run.value("device")
    return bench.device.identity


def confirm_plans(run: Run, cells: Sequence[Planned]) -> None:
    """Confirm the plans of several budgets, in rounds of one plan of each budget. All measurements go into the profile.

    A budget whose rounds end with an error is left to its own confirm stage.

    Args:
        run: of one of the cells.
        cells: those that share the profile.
    """
    device, variants, file = (run.value(name) for name in ("device", "variants", "profile_file"))
    inputs, watch = run.value("network").files(run.scratch), run.request.watch
    subject = experiments.Subject(device, variants, run.record(survey.STAGE), inputs)
    known: dict[str, Confirmed] = run.value("confirmed_ahead")
    for own in _batched([one for one in cells if one.device == _identity(run)]):
        watch.start("confirm")
        before = len(known)
        with functions.of_user(run.request.project, "confirm"):
            rounds = _confirm(subject, file, own, watch, known)
        watch.done("confirm", f"{len(known) - before} of {len(own)} plans, in {rounds} round{'s' * (rounds != 1)}")


def _batched(cells: Sequence[Cell]) -> Iterator[Sequence[Cell]]:
    """The cells in parts of `experiments.TOGETHER`, so that nothing is measured far from the original network."""
    for start in range(0, len(cells), experiments.TOGETHER):
        yield cells[start : start + experiments.TOGETHER]


def _confirm(
    subject: experiments.Subject,
    file: ProfileFile,
    cells: Sequence[Planned],
    watch: Watch,
    known: dict[str, Confirmed],
) -> int:
    """Add the confirmed plan of each cell to `known`, by the digest of its first one. Returns the number of rounds."""
    profile, number = file.read(), 0
    started = [(cell, cell.loop.rounds({"": profile})) for cell in cells]
    steps = [(cell, rounds, _step(rounds)) for cell, rounds in started]
    while True:
        asked = [(cell, rounds, step) for cell, rounds, step in steps if isinstance(step, list)]
        if not asked:
            return number
        watch.step(number, max(number + 1, LIMITS.confirm_rounds), f"{len(asked)} plans are measured")
        profile, measured = measure(subject, profile, [Round(number, cell.budget, plans) for cell, _, plans in asked])
        file.keep(profile)
        steps = [
            (cell, rounds, _step(rounds, ({"": profile}, [{"": one} for one in own])))
            for (cell, rounds, _), own in zip(asked, measured, strict=True)
        ]
        known |= {digest(cell.plan): step for cell, _, step in steps if isinstance(step, Confirmed)}
        number += 1


def _step(rounds: confirm.Rounds, *measured: Any) -> list[Plan] | Confirmed | None:
    """As `confirm.step`. None after an error."""
    try:
        return confirm.step(rounds, *measured)
    except EdgepruneError:
        return None


@dataclass(frozen=True)
class Compiled:
    """Both artifacts of a cell that has no verdict yet, its budget, and the identity of the device that they are for."""

    original: Artifact
    pruned: Artifact
    budget: Budget | None
    device: str


def compiled(run: Run) -> Compiled | None:
    """The artifacts of a cell; None if it has a verdict already. Runs every stage that is missing."""
    if run.keeps(verify.STAGE):
        return None
    latency = run.request.project.budget.latency
    return Compiled(run.record(compiling.ORIGINAL), run.record(compiling.STAGE), latency, _identity(run))


def time_artifacts(run: Run, cells: Sequence[Compiled]) -> None:
    """Time the artifacts of several cells, interleaved with the original one. Their verify stages begin with these times.

    Args:
        run: of one of the cells.
        cells: of one target and precision, so that their original artifact is the same.
    """
    from edgeprune.stages.verdicts.accuracy import Timer
    from edgeprune.stages.verdicts.verdict import POLICY
    from edgeprune.stages.verdicts.verification import timed_s

    device, known, watch = run.value("device"), run.value("timed_ahead"), run.request.watch
    timer = Timer(device, run.value("network").files(run.scratch))
    for own in _batched([one for one in cells if one.device == _identity(run)]):
        models = [own[0].original.files[0], *(cell.pruned.files[0] for cell in own)]
        longest_s, before = max(timed_s(cell.budget) for cell in own), len(device.lost)
        watch.start("verify")
        original, *pruned = timer.time(models, POLICY.verify.processes, timed_s=longest_s)
        for cell, samples in zip(own, pruned, strict=True):
            times = verify.Times(original, samples, device.lost[before:])
            known[verify.pair(cell.original, cell.pruned)] = times
        watch.done("verify", f"{len(own)} artifacts timed in {len(original.runs)} processes each")
