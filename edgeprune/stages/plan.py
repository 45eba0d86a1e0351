"""The plan stage: which channels each group keeps. The plan is exact on the profile, and not yet confirmed on the device."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from edgeprune.pipeline.stage import Output, Stage
from edgeprune.records import Budget, Groups, Plan, Reference, digest
from edgeprune.records.budget import amount_text, time_text

if TYPE_CHECKING:
    from edgeprune.stages.bounds import Evidence
    from edgeprune.stages.planning.figures import Bound


@dataclass(frozen=True)
class Reads:
    """The groups, the scores and the profile, or the original network's latency if it meets the budget."""

    survey: Groups
    evidence: Evidence | Reference
    budget_latency: Budget | None
    bounds: tuple[Bound, ...]


def run(reads: Reads, output: Output) -> Plan:
    """Plan the channels to keep with the least expected loss within the budget, with a proof."""
    from edgeprune.stages import confirm

    evidence = reads.evidence
    if isinstance(evidence, Reference):
        return Plan.whole(reads.survey, evidence.latency, evidence.before, evidence.budget_ns, digest(asdict(evidence)))
    return confirm.Loop(reads.survey, evidence.scores, reads.budget_latency, reads.bounds).plan(evidence.profiles)


def describe(plan: Plan, reads: Reads) -> str:
    """The channels that remain, the blocks that are removed, the predicted figures, and the limit that binds."""
    groups = reads.survey
    if not plan.cuts(groups):
        limits = " and ".join(f"{one.name} {amount_text(one.figure, one.limit)}" for one in plan.limits)
        return f"the original network meets {limits or reads.budget_latency}: nothing to prune"
    removed = ", ".join(block.name for block in groups.removed({**groups.full(), **plan.widths}))
    kept, total = sum(plan.widths.values()), sum(group.width for group in groups.free)
    channels = f"keeps {kept} of {total} channels" + (f", removes {removed}" if removed else "")
    if not plan.limits:
        figures = time_text(plan.binding.value)
    else:
        shown = (f"{one.name} {amount_text(one.figure, one.value)}" for one in plan.amounts)
        figures = f"{', '.join(shown)} ({plan.binding.name} binds)"
    return f"{channels}, predicted {figures}, gap {plan.gap:.1e}"


STAGE = Stage("plan", Reads, run, Plan, describe, joint=True)
