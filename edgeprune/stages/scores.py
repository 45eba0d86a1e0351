"""The scores stage: how much each channel contributes."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeprune.pipeline.stage import Output, Stage
from edgeprune.records import Groups, Scores

if TYPE_CHECKING:
    from edgeprune.frontends.data import Loss, Split
    from edgeprune.frontends.model import Network
    from edgeprune.frontends.trial import Checker


@dataclass(frozen=True)
class Reads:
    """The network, its groups, the training data and the criterion."""

    network: Network
    survey: Groups
    checker: Checker
    train: Split
    loss: Loss
    prune_importance: str
    finetune_seed: int


def run(reads: Reads, output: Output) -> Scores:
    """Compute importance scores of all channels. The project's data is tried first."""
    from edgeprune.network.cut import formed
    from edgeprune.network.importance import CRITERIA, DIFFERENTIATING

    reads.checker.data()
    differentiating = reads.prune_importance in DIFFERENTIATING
    trial = reads.checker.differentiating(training=False) if differentiating else nullcontext()
    with trial, reads.train.repeatable(reads.finetune_seed):
        criterion = CRITERIA[reads.prune_importance]
        model = formed(reads.network.module, reads.survey, reads.network.inputs)
        return criterion(model, reads.survey, reads.train, reads.loss, output.watch.step)


def describe(scores: Scores, reads: Reads) -> str:
    """The criterion."""
    return f"{scores.criterion} on the training data"


STAGE = Stage("scores", Reads, run, Scores, describe)
