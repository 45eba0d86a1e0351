"""The plan stage: which channels each group keeps. The plan is exact on the profile, and not yet confirmed on the device."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.pipeline.stage import Output, Stage
from edgeprune.records import Budget, Groups, Plan, Scores
from edgeprune.stages.profile import Profiled


@dataclass(frozen=True)
class Reads:
    """The groups, their scores, the profile and the latency budget."""

    survey: Groups
    scores: Scores
    profile: Profiled
    budget_latency: Budget


def run(reads: Reads, output: Output) -> Plan:
    """Plan the channels to keep with the least expected loss within the budget, with a proof."""
    from edgeprune.stages import confirm

    loop = confirm.Loop(reads.survey, reads.scores, reads.budget_latency)
    return loop.plans(reads.profile.profile)[0]


def describe(plan: Plan, reads: Reads) -> str:
    """The channels that remain, the blocks that are removed, and the predicted latency."""
    groups = reads.survey
    if not plan.cuts(groups):
        return f"the original network meets {reads.budget_latency}: nothing to prune"
    removed = ", ".join(block.name for block in groups.removed({**groups.full(), **plan.widths}))
    kept, total = sum(plan.widths.values()), sum(group.width for group in groups.free)
    channels = f"keeps {kept} of {total} channels" + (f", removes {removed}" if removed else "")
    return f"{channels}, predicted {plan.predicted.mid / 1e6:.3f} ms, gap {plan.gap:.1e}"


STAGE = Stage("plan", Reads, run, Plan, describe)
