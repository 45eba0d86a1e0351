"""The precision stage: choose the fastest of the target's precisions that keeps the metric."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgeprune.errors import UsageError
from edgeprune.pipeline.stage import Output, Stage
from edgeprune.records import Artifact, Choice, Groups, Precision
from edgeprune.records.budget import time_text
from edgeprune.runtimes.base import Runtime

if TYPE_CHECKING:
    from edgeprune.devices.bench import Bench
    from edgeprune.frontends.data import Metric, Split
    from edgeprune.frontends.model import Network
    from edgeprune.stages.inputs import Calibration

log = logging.getLogger("edgeprune")


@dataclass(frozen=True)
class Reads:
    """The original network, its artifact in fp32, the precisions to choose from, and the data that decides."""

    network: Network
    groups: Groups
    original: Artifact
    runtime: Runtime
    allowed: tuple[Precision, ...]
    calibration: Calibration
    device: Bench
    valid: Split
    metric: Metric
    budget_max_metric_drop: float
    finetune_seed: int


def run(reads: Reads, output: Output) -> Choice:
    """Measure the original network in each precision, and choose the fastest one that keeps the metric."""
    from edgeprune.stages import choice
    from edgeprune.stages.verdicts.accuracy import Evaluation, Timer

    timer = Timer(reads.device, reads.network.files(output.scratch))
    evaluation = Evaluation(reads.valid, reads.metric, reads.network.inputs, reads.finetune_seed)
    made = candidates(reads, reads.allowed, output.scratch / "candidates")
    return choice.fastest(timer, evaluation, reads.original, made, reads.budget_max_metric_drop)


class Whole(Protocol):
    """The original network, and what compiles it."""

    @property
    def network(self) -> Network: ...
    @property
    def groups(self) -> Groups: ...
    @property
    def original(self) -> Artifact: ...
    @property
    def runtime(self) -> Runtime: ...
    @property
    def calibration(self) -> Calibration: ...


def candidates(reads: Whole, allowed: Sequence[Precision], scratch: Path) -> dict[Precision, Artifact]:
    """The original network in each precision. If one of several cannot be compiled, it is left out with a warning."""
    from edgeprune.stages.compile import Compiler

    made: dict[Precision, Artifact] = {}
    refused: UsageError | None = None
    for name in allowed:
        if name == reads.original.precision:
            made[name] = reads.original
            continue
        folder = scratch / name
        folder.mkdir(parents=True)
        try:
            samples = reads.calibration.samples if name.startswith("int8") else []
            compiler, network = Compiler(reads.runtime, name, samples), reads.network
            made[name] = compiler.compile(
                network.module, network.inputs, reads.groups.folds, folder, reads.groups.network
            )
        except UsageError as error:
            log.warning("%s is left out: %s", name, error)
            refused = error
    if refused is not None and not made:
        raise refused
    return made


def describe(choice: Choice, reads: Reads) -> str:
    """The precision, and the latency and metric of each candidate."""
    measured = (
        f"{c.precision} {time_text(c.latency.mid)}, {reads.metric.name} {c.metric:.4f}" for c in choice.candidates
    )
    return f"{choice.precision} ({'; '.join(measured)})"


STAGE = Stage("precision", Reads, run, Choice, describe)
