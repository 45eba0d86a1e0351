"""The verify stage: does the artifact compute what the network computes, within the budget, on the device?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeprune.pipeline.stage import Output, Stage
from edgeprune.records import Artifact, Budget, Confirmed, Groups, Outcome, Tuned, Verdict
from edgeprune.stages import events

if TYPE_CHECKING:
    from edgeprune.devices.bench import Bench
    from edgeprune.frontends.data import Metric, Split
    from edgeprune.frontends.model import Network


@dataclass(frozen=True)
class Reads:
    """Both networks, their artifacts, the device, the test data, and the limits."""

    network: Network
    survey: Groups
    original: Artifact
    confirm: Confirmed
    finetune: Tuned
    compile: Artifact
    device: Bench
    test: Split
    metric: Metric
    budget_latency: Budget
    budget_max_metric_drop: float
    finetune_seed: int


def run(reads: Reads, output: Output) -> Verdict:
    """All checks of the pruned artifact, with the original network's beside it."""
    from edgeprune.network import weights
    from edgeprune.stages.accuracy import Evaluation, Timer
    from edgeprune.stages.verification import Version, verify

    groups, network = reads.survey, reads.network
    widths = {**groups.full(), **reads.confirm.plan.widths}
    timer = Timer(reads.device, network.files(output.scratch))
    evaluation = Evaluation(reads.test, reads.metric, network.inputs, reads.finetune_seed)
    original = Version(network.module, reads.original, groups.macs(groups.full()))
    pruned = Version(weights.load(reads.finetune.network, network.module), reads.compile, groups.macs(widths))
    found = verify(timer, evaluation, original, pruned, reads.budget_latency, reads.budget_max_metric_drop)
    events.front(output.events, found.pruned)
    return found


def describe(verdict: Verdict, reads: Reads) -> str:
    """The outcome, and how many checks pass."""
    passed = sum(check.outcome is Outcome.PASS for check in verdict.checks)
    return f"{verdict.outcome}: {passed} of {len(verdict.checks)} checks pass"


def settled(verdict: Verdict) -> bool:
    """An inconclusive verdict is measured again."""
    return verdict.outcome is not Outcome.INCONCLUSIVE


STAGE = Stage("verify", Reads, run, Verdict, describe, settled=settled)
