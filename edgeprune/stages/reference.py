"""The reference stage: does the original network meet the budget? Then nothing is profiled, scored or pruned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeprune.latency import stats
from edgeprune.pipeline.stage import Output, Stage
from edgeprune.records import Budget, Groups, Interval, Outcome, Precision, Reference, Samples
from edgeprune.records.budget import time_text

if TYPE_CHECKING:
    from edgeprune.devices.bench import Bench
    from edgeprune.frontends.model import Network
    from edgeprune.stages.inputs import Variants

PROCESSES, ROUNDS = 6, 3


@dataclass(frozen=True)
class Reads:
    """The original network, the device and the latency budget."""

    network: Network
    survey: Groups
    variants: Variants
    device: Bench
    budget_latency: Budget


def needed(budget: Budget, precision: Precision) -> bool:
    """Whether a measurement must decide. A network in fp32 never meets a share of its own latency below 100 %."""
    return budget.fraction is None or budget.fraction >= 1 or precision != "fp32"


def run(reads: Reads, output: Output) -> Reference:
    """Measure the original network in the target's precision beside itself in fp32, until its budget is decided."""
    from edgeprune.devices.rounds import until

    full, budget = reads.survey.full(), reads.budget_latency
    files = [reads.variants.file(full, reference=True), reads.variants.file(full)]
    models = files if files[0] != files[1] else files[:1]
    inputs = reads.network.files(output.scratch)
    taken = until(
        lambda _: reads.device.compare(models, inputs, PROCESSES),
        lambda samples: _decide(budget, samples) is not Outcome.INCONCLUSIVE,
        ROUNDS,
    )
    before_ns = stats.latency(taken[0], budget.quantile)
    latency_ns = stats.latency(taken[-1], budget.quantile)
    return Reference(_decide(budget, taken), latency_ns, before_ns, budget.resolve(before_ns.mid))


def _decide(budget: Budget, samples: Sequence[Samples]) -> Outcome:
    if budget.ns is not None:
        return stats.decide(stats.latency(samples[-1], budget.quantile), budget.ns)
    share = stats.ratio(samples[-1], samples[0], budget.quantile) if len(samples) > 1 else Interval(1.0, 1.0, 1.0)
    return stats.decide(share, budget.resolve(1.0))


def describe(reference: Reference, reads: Reads) -> str:
    """The latency, and whether it meets the budget."""
    decided = {Outcome.PASS: "meets", Outcome.FAIL: "does not meet", Outcome.INCONCLUSIVE: "may not meet"}
    text = f"the original network takes {time_text(reference.latency.mid)}"
    return f"{text}: it {decided[reference.outcome]} {reads.budget_latency}"


STAGE = Stage("reference", Reads, run, Reference, describe)
