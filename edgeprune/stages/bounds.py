"""What a plan is made for and from: the limits of a project, the scores and the profile, and their keys."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from edgeprune.errors import UsageError
from edgeprune.records import Budget, Check, Limit, Outcome, Profile, Reference, Scores, Widths
from edgeprune.records.budget import ON_DEVICE, amount_text
from edgeprune.stages import profile, reference, scores, survey

if TYPE_CHECKING:
    from edgeprune.pipeline.run import Run
    from edgeprune.stages.planning.figures import Bound

OF_TARGET = ("size", *ON_DEVICE)  # figures that differ between targets
PROCESSES = 3  # that measure a figure of one plan
Settings = Callable[["Run"], Mapping[str, object]]


# ---------------------------------------------------------------------------------------------------- latency


@dataclass(frozen=True)
class Evidence:
    """What a plan is made from: the scores of all channels, and the profile of each target.

    A single target has no name. Without a latency budget there is no profile.
    """

    scores: Scores
    profiles: Mapping[str, Profile]


def targets(run: Run) -> Iterator[tuple[str, Run]]:
    """The targets of a plan, by name. A single one has no name.

    Several targets may be one device, which has one lease. So a device is released before the next target's turn.
    """
    if not run.members:
        yield "", run
    for name, member in run.members.items():
        yield name, member
        member.release_device()


def of_targets(run: Run, part: Settings) -> dict[str, object]:
    """Settings or facts of each target. If there are several, labels begin with the target's name."""
    return {
        f"{name}: {label}" if name else label: value
        for name, member in targets(run)
        for label, value in part(member).items()
    }


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
    if (
        limit is None
        or run.members
        or run.request.project.budget.limits
        or not reference.needed(limit, run.value("chosen_precision"))
    ):
        return None
    found = run.record(reference.STAGE)
    return found if found.outcome is Outcome.PASS else None


def evidence(run: Run) -> Evidence | Reference:
    """The scores and the profile, or the original network's latency if it meets the budget."""
    met = _meets(run)
    if met is not None:
        return met
    timed = targets(run) if latency(run) is not None else ()
    profiles = {name: member.record(profile.STAGE).profile for name, member in timed}
    return Evidence(run.record(scores.STAGE), profiles)


def evidence_settings(run: Run) -> dict[str, object]:
    """The budget, and the settings of the stages that the evidence comes from."""
    found = {**latency_settings(run), "scores": run.settings(scores.STAGE)}
    return found | _profiled(run, lambda member: {"profile": member.settings(profile.STAGE)})


def evidence_made(run: Run) -> dict[str, object]:
    """The keys of the stages that the evidence comes from."""
    if _meets(run) is not None:
        return {"reference": run.key(reference.STAGE)}
    return {"scores": run.key(scores.STAGE)} | _profiled(run, lambda member: {"profile": member.key(profile.STAGE)})


def _profiled(run: Run, part: Settings) -> dict[str, object]:
    return {} if latency(run) is None else of_targets(run, part)


# ---------------------------------------------------------------------------------------------- other figures


def of_run(run: Run) -> tuple[Bound, ...]:
    """A bound for each limit of `[budget]`. A size is of each target's own files."""
    limits = run.request.project.budget.limits
    if not limits:
        return ()
    from edgeprune.graph import counting
    from edgeprune.network import activations
    from edgeprune.network.cut import formed
    from edgeprune.network.folding import fold
    from edgeprune.stages.planning.figures import Counts
    from edgeprune.stages.verdicts import ondevice

    groups, network = run.record(survey.STAGE), run.value("network")

    def model() -> Any:
        return formed(network.module, groups, network.inputs)

    def counts(member: Run) -> Counts:
        def bytes_at(widths: Widths, reference: bool = False) -> int:
            file = member.value("variants").file({**groups.full(), **widths}, reference)
            return sum(one.stat().st_size for one in member.value("runtime").files(file))

        return Counts(
            groups,
            parameters=lambda: counting.parameters(groups, model()),
            stored=lambda: counting.parameters(groups, fold(model(), groups.folds)),
            moments=lambda: activations.live(model(), groups, network.inputs),
            bytes_at=bytes_at,
            original_bytes=lambda: bytes_at(groups.full(), reference=True),
        )

    def bound(limit: Limit, name: str, member: Run) -> Bound:
        if limit.figure not in ON_DEVICE:
            return counts(member).bound(limit, name)

        @functools.cache
        def measured(widths: tuple[tuple[str, int], ...], reference: bool) -> float:
            file = member.value("variants").file(dict(widths), reference)
            size = run.value("valid").size(network.inputs)
            subject = ondevice.Subject(member.value("device"), network.files(run.scratch), size)
            found = ondevice.values(limit, subject, file, PROCESSES)
            if name:
                member.release_device()  # several targets may be one device
            return float(median(found))

        return counts(member).on_device(
            limit, name, lambda widths, original: measured(tuple({**groups.full(), **widths}.items()), original)
        )

    own = [limit for limit in limits if limit.figure in OF_TARGET]
    shared = [counts(run).bound(limit) for limit in limits if limit.figure not in OF_TARGET]
    members = targets(run) if own else ()
    return (*(bound(limit, name, member) for name, member in members for limit in own), *shared)


def settings(run: Run, variants: Settings, device: Settings) -> Mapping[str, object]:
    """The limits that are given. A project without any has the same keys as before there were limits.

    Args:
        run: the run.
        variants: the settings of the files whose size, or what a device does with them, may be limited.
        device: the settings of the device.
    """
    found: dict[str, object] = {f"[budget] {limit.figure}": limit.text for limit in run.request.project.budget.limits}
    return {**found, **machine(run, variants, device)}


def machine(run: Run, variants: Settings, device: Settings) -> Mapping[str, object]:
    """The packages that write the files whose size is limited, and the devices that are asked."""
    asked = {limit.figure for limit in run.request.project.budget.limits}
    found = of_targets(run, variants) if asked.intersection(OF_TARGET) else {}
    return {**found, **(of_targets(run, device) if asked.intersection(ON_DEVICE) else {})}


def checks(limits: Sequence[Limit], original: Mapping[str, float], pruned: Mapping[str, float]) -> list[Check]:
    """A check for each limit that needs no device, from the figures of the original and of the pruned network by name."""
    from edgeprune.stages.verdicts.verdict import at_most

    return [
        at_most(
            f"{limit.figure}_limit",
            pruned[limit.figure],
            limit.resolve(original[limit.figure]),
            f"[budget] {limit}, of {amount_text(limit.figure, original[limit.figure])}",
        )
        for limit in limits
        if limit.figure not in ON_DEVICE
    ]
