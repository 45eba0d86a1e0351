"""What a plan is made for and from: the limits of a project, the scores and the profile, and their keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeprune.errors import UsageError
from edgeprune.pipeline.stage import Stage
from edgeprune.records import Budget, Check, Limit, Outcome, Profile, Reference, Scores, Widths
from edgeprune.records.budget import amount_text
from edgeprune.stages import profile, reference, scores, survey

if TYPE_CHECKING:
    from edgeprune.pipeline.run import Run
    from edgeprune.stages.figures import Bound

Settings = Callable[["Run"], Mapping[str, object]]


# ---------------------------------------------------------------------------------------------------- latency


@dataclass(frozen=True)
class Evidence:
    """What a plan is made from: the scores of all channels, and the profile. Without a latency budget there is none."""

    scores: Scores
    profile: Profile | None


def latency(run: Run) -> Budget | None:
    """The latency budget; None if only other figures have limits. Raises `UsageError` if nothing has one."""
    project = run.request.project
    if not project.budget.prunes:
        where = project.where("budget", "latency")
        raise UsageError(f'{where} is missing, so nothing is pruned; give a budget, such as "50%"')
    return project.budget.latency


def latency_settings(run: Run) -> dict[str, object]:
    """The latency budget as a setting."""
    limit = latency(run)
    return {"[budget] latency": None if limit is None else str(limit)}


def _meets(run: Run) -> Reference | None:
    """The measurement of the original network, if it surely meets the budget. Then nothing is profiled and scored."""
    limit = latency(run)
    if limit is None or run.request.project.budget.limits or not reference.needed(limit, run.value("chosen_precision")):
        return None
    found = run.record(reference.STAGE)
    return found if found.outcome is Outcome.PASS else None


def evidence(run: Run) -> Evidence | Reference:
    """The scores and the profile, or the original network's latency if it meets the budget."""
    met = _meets(run)
    if met is not None:
        return met
    measured = None if latency(run) is None else run.record(profile.STAGE).profile
    return Evidence(run.record(scores.STAGE), measured)


def evidence_settings(run: Run) -> dict[str, object]:
    """The budget, and the settings of the stages that the evidence comes from."""
    return {**latency_settings(run), **{stage.name: run.settings(stage) for stage in _stages(run)}}


def evidence_made(run: Run) -> dict[str, object]:
    """The keys of the stages that the evidence comes from."""
    if _meets(run) is not None:
        return {"reference": run.key(reference.STAGE)}
    return {stage.name: run.key(stage) for stage in _stages(run)}


def _stages(run: Run) -> tuple[Stage[Any, Any], ...]:
    return (scores.STAGE,) if latency(run) is None else (scores.STAGE, profile.STAGE)


# ---------------------------------------------------------------------------------------------- other figures


def of_run(run: Run) -> tuple[Bound, ...]:
    """A bound for each limit of `[budget]`. Sizes are of the target's own files."""
    limits = run.request.project.budget.limits
    if not limits:
        return ()
    from edgeprune.graph import counting
    from edgeprune.network import activations
    from edgeprune.network.cut import formed
    from edgeprune.network.folding import fold
    from edgeprune.stages.figures import Counts

    groups, network = run.record(survey.STAGE), run.value("network")

    def model() -> Any:
        return formed(network.module, groups, network.inputs)

    def bytes_at(widths: Widths, reference: bool = False) -> int:
        file = run.value("variants").file({**groups.full(), **widths}, reference)
        return sum(one.stat().st_size for one in run.value("runtime").files(file))

    counts = Counts(
        groups,
        parameters=lambda: counting.parameters(groups, model()),
        stored=lambda: counting.parameters(groups, fold(model(), groups.folds)),
        moments=lambda: activations.live(model(), groups, network.inputs),
        bytes_at=bytes_at,
        original_bytes=lambda: bytes_at(groups.full(), reference=True),
    )
    return tuple(map(counts.bound, limits))


def settings(run: Run, variants: Settings) -> Mapping[str, object]:
    """The limits that are given. A project without any has the same keys as before there were limits.

    Args:
        run: the run.
        variants: the settings of the files whose size may be limited.
    """
    limits = run.request.project.budget.limits
    found: dict[str, object] = {f"[budget] {limit.figure}": limit.text for limit in limits}
    return {**found, **(variants(run) if _sized(limits) else {})}


def machine(run: Run, variants: Settings) -> Mapping[str, object]:
    """The packages that write the files whose size is limited."""
    return variants(run) if _sized(run.request.project.budget.limits) else {}


def checks(limits: Sequence[Limit], original: Mapping[str, float], pruned: Mapping[str, float]) -> list[Check]:
    """A check for each limit, from the figures of the original and of the pruned network by name."""
    from edgeprune.stages.verdict import at_most

    return [
        at_most(
            f"{limit.figure}_limit",
            pruned[limit.figure],
            limit.resolve(original[limit.figure]),
            f"[budget] {limit}, of {amount_text(limit.figure, original[limit.figure])}",
        )
        for limit in limits
    ]


def _sized(limits: tuple[Limit, ...]) -> bool:
    return any(limit.figure == "size" for limit in limits)
