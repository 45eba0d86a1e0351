"""The trial stage: model, data, loss, metric and a backward pass are tried before a device is used.

All targets share it. A device is opened only after it passed (see `stages.inputs`).
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeprune.limits import LIMITS
from edgeprune.pipeline.stage import Output, Stage
from edgeprune.records import Function, Tried

if TYPE_CHECKING:
    from torch import Tensor

    from edgeprune.frontends.data import Loss, Metric, Split
    from edgeprune.frontends.model import Network
    from edgeprune.frontends.trial import Checker

log = logging.getLogger("edgeprune")


@dataclass(frozen=True)
class Reads:
    """The network, all data, what is computed from them, and what needs gradients."""

    network: Network
    checker: Checker
    train: Split
    augmented: Split
    valid: Split
    test: Split
    loss: Loss
    metric: Metric
    is_pruned: bool
    prune_importance: str
    finetune_epochs: int
    finetune_trainer: Function | None
    finetune_seed: int
    budget_max_metric_drop: float


def run(reads: Reads, output: Output) -> Tried:
    """Try first batches, compute the metric of some samples, and read all data once.

    Raises:
        UsageError: something fails that a later stage would need.
    """
    from edgeprune.network.importance import DIFFERENTIATING

    scored = reads.is_pruned and reads.prune_importance in DIFFERENTIATING
    trained = reads.is_pruned and reads.finetune_epochs > 0 and reads.finetune_trainer is None
    if reads.finetune_trainer is not None:
        reads.finetune_trainer.load()
    reads.checker.first(scored, trained)
    names = reads.metric.structure.names
    tried = Tried(names, None, 0)
    if not reads.metric.in_closed_loop:
        outputs, targets = _outputs(reads)
        value = reads.metric(outputs, targets)
        tried = Tried(names, value, targets.shape[reads.valid.target_dim])
        for remark in reads.checker.remarks(reads.metric, value, outputs, targets):
            log.warning("%s", remark)
    reads.checker.data(output.watch.step)
    return tried


def describe(tried: Tried, reads: Reads) -> str:
    """The metric, and the outputs if there are several."""
    outputs = f"; outputs {', '.join(tried.outputs)}" if len(tried.outputs) > 1 else ""
    metric = (
        ""
        if tried.metric is None
        else f"; {reads.metric.name} {tried.metric:.4g} on {tried.samples} validation samples"
    )
    return f"first batches pass{outputs}{metric}"


STAGE = Stage("trial", Reads, run, Tried, describe)


def _outputs(reads: Reads) -> tuple[list[Tensor], Tensor]:
    """The network's outputs for the first validation samples, and their targets."""
    import torch

    from edgeprune.network.outputs import tensors

    outputs, targets, read, until = [], [], 0, time.monotonic() + LIMITS.trial_metric_s
    with reads.valid.repeatable(reads.finetune_seed), torch.no_grad():
        for inputs, target in reads.valid:
            outputs.append(tensors(reads.network.module.eval()(*inputs)))
            targets.append(target)
            read += target.shape[reads.valid.target_dim]
            if read >= LIMITS.trial_samples or time.monotonic() > until:
                break
    dims = reads.metric.structure.batch_dims
    found = [torch.cat(column, dim) for column, dim in zip(zip(*outputs, strict=True), dims, strict=True)]
    return found, torch.cat(targets, reads.valid.target_dim)
