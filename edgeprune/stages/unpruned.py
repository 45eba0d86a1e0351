"""The unpruned stage: the original network in every precision of the runtime, on the samples of verdicts. Sweeps show it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeprune.latency import stats
from edgeprune.pipeline.stage import Output, Stage
from edgeprune.records import Artifact, Groups, Interval, Unpruned, UnprunedNetworks
from edgeprune.records.budget import time_text
from edgeprune.runtimes.base import Runtime

if TYPE_CHECKING:
    from edgeprune.devices.bench import Bench
    from edgeprune.frontends.data import Metric, Split
    from edgeprune.frontends.model import Network
    from edgeprune.stages.inputs import Calibration


@dataclass(frozen=True)
class Reads:
    """The original network, its artifact in fp32, the device, and the samples that verdicts use."""

    network: Network
    groups: Groups
    original: Artifact
    runtime: Runtime
    calibration: Calibration
    device: Bench
    test: Split
    metric: Metric
    finetune_seed: int


def run(reads: Reads, output: Output) -> UnprunedNetworks:
    """Measure the original network in each precision that the device can run, interleaved."""
    from edgeprune.stages import choice, precision
    from edgeprune.stages.verdicts.accuracy import Evaluation, Timer

    timer = Timer(reads.device, reads.network.files(output.scratch))
    evaluation = Evaluation(reads.test, reads.metric, reads.network.inputs, reads.finetune_seed)
    made = precision.candidates(reads, reads.runtime.candidates("auto"), output.scratch / "unpruned")
    found = choice.measure(timer, evaluation, reads.original, made)
    reference = found["fp32"].samples
    return UnprunedNetworks(
        tuple(
            Unpruned(
                name,
                _milliseconds(stats.latency(one.samples)),
                stats.ratio(one.samples, reference),
                one.metric,
                one.artifact.size_bytes,
            )
            for name, one in found.items()
        )
    )


def _milliseconds(ns: Interval) -> Interval:
    return Interval(ns.low / 1e6, ns.mid / 1e6, ns.high / 1e6)


def describe(found: UnprunedNetworks, reads: Reads) -> str:
    """The latency and the metric in each precision."""
    return "; ".join(
        f"{one.precision} {time_text(1e6 * one.latency_ms.mid)}, {reads.metric.name} {one.metric:.4f}"
        for one in found.networks
    )


STAGE = Stage("unpruned", Reads, run, UnprunedNetworks, describe)
