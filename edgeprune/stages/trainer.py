"""Training by the user's own function: `[finetune] trainer`."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.errors import UsageError
from edgeprune.frontends.data import Metric, Split
from edgeprune.frontends.fitting import fitted
from edgeprune.frontends.model import finite, kind
from edgeprune.network.adapter import with_own_outputs
from edgeprune.records import Epoch, Function
from edgeprune.stages import training

log = logging.getLogger("edgeprune")


class Batches:
    """A split as a trainer reads it: (inputs, targets) pairs, where `inputs` is a tuple of tensors, (batch, ...) each.

    Every iteration reads the data again. The length is counted at its first use.
    """

    def __init__(self, split: Split) -> None:
        self._split = split

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        return iter(self._split)

    def __len__(self) -> int:
        return self._count

    @cached_property
    def _count(self) -> int:
        return sum(1 for _ in self._split)


@dataclass(frozen=True)
class Data:
    """The third argument of a trainer.

    Attributes:
        train: the training batches, cleaned and augmented.
        valid: the validation batches.
        loss: the project's loss: (outputs, targets) to a scalar tensor. The outputs are the model's in training mode.
        metric: the project's metric: (outputs, targets) to a number; larger is better. The outputs are the model's in eval
            mode.
        seed: `[finetune] seed`. Global random generators are seeded with it before the trainer is called.
        folder: stays if training is killed, and is empty at first. A trainer that saves its state here can resume.
        progress: see `report`.
    """

    train: Batches
    valid: Batches
    loss: Callable[[Any, Tensor], Tensor]
    metric: Metric
    seed: int
    folder: Path
    progress: Callable[[int, int, str], None]

    def report(self, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` steps are done."""
        self.progress(done, total, note)

    def evaluate(self, model: nn.Module) -> float:
        """The project's metric of a model on the validation batches. The model keeps its mode."""
        mode = model.training
        try:
            return training.evaluate(model, self.metric, self.valid._split)
        finally:
            model.train(mode)


def train(trainer: Function, networks: training.Networks, data: Data) -> tuple[nn.Module, tuple[Epoch, ...]]:
    """Let the user's function train a network.

    Args:
        trainer: (model, original, data) to the trained model. `model` is in training mode. `original` is a frozen copy.
        networks: the network to train, the original one, and the untrained one that the result is compared with.
        data: what the function trains on.

    Returns:
        The better network on the validation metric, trained or untrained, and the history: epoch 0 is the untrained network,
        epoch 1 the trained one.

    Raises:
        UsageError: the function fails, or does not return a model with the tensors of the given one.
    """
    untrained = networks.untrained
    assert untrained is not None
    found = copy.deepcopy(networks.start)  # so that only tensors are taken over
    with data.train._split.repeatable(data.seed), trainer.guarded():
        original = with_own_outputs(copy.deepcopy(networks.original)).requires_grad_(False).eval()
        trained = trainer.load()(with_own_outputs(networks.start).train(), original, data)
    take_over(
        found, _state(trainer, trained), f"{trainer.where}: the returned model", "return the model that was given"
    )
    before, after = (training.evaluate(one, data.metric, data.valid._split) for one in (untrained, found))
    history = (Epoch(0, None, before), Epoch(1, None, after))
    if after > before:
        return found.eval(), history
    if after < before:
        log.warning(
            "%s: the validation %s is %.4f after training and was %.4f before; the untrained network is kept",
            trainer.where,
            data.metric.name,
            after,
            before,
        )
    return untrained.eval(), history


def _state(trainer: Function, trained: object) -> Mapping[str, Tensor]:
    if not isinstance(trained, nn.Module):
        raise UsageError(f"{trainer.where} returns {kind(trained)}; return the trained model")
    return trained.state_dict()


def take_over(model: nn.Module, stored: Mapping[str, Tensor], where: str, fix: str) -> tuple[str, ...]:
    """Give the pruned network other weights, in place. They may have the names of wrappers; see `frontends.fitting`.

    Args:
        model: the pruned network.
        stored: the tensors.
        where: names them in messages.
        fix: what to do if they do not fit.

    Returns:
        How they were adapted.

    Raises:
        UsageError: the names or the shapes differ, or a tensor is not finite.
    """
    try:
        found = fitted(where, model, stored)
    except UsageError as error:
        raise UsageError(f"{error}; {fix}") from error
    parameters = {name for name, _ in model.named_parameters()}
    for name, tensor in found.state.items():
        if bool(tensor.isnan().any()) or (name in parameters and not finite(tensor)):
            raise UsageError(f"{where}: tensor {name} holds NaN or infinity; lower the learning rate")
    with torch.no_grad():
        model.load_state_dict(found.state)
    return found.notes
