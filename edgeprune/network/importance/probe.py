"""Measure how far the loss of a network rises when a part of it changes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from edgeprune.errors import UsageError
from edgeprune.limits import LIMITS
from edgeprune.network.importance.base import Loss
from edgeprune.network.importance.sampling import Sample
from edgeprune.network.observe import Extent, Inputs, Reference, observe
from edgeprune.network.replay import Tape, advance


class Probe:
    """A network and a sample of the training data. Only operations from the changed parameters on are executed.

    Args:
        model: The network. Its parameters may be changed between `advance` and `rise`.
        sample: Batches of (inputs, targets).
        loss: The training loss.

    Raises:
        UsageError: The loss is not finite. `rise` raises it, too.
    """

    def __init__(self, model: nn.Module, sample: Sample, loss: Loss) -> None:
        self.model, self._loss = model, loss
        self._targets = [targets for _, targets in sample]
        self._tapes = []
        losses = []
        for inputs, targets in sample:
            tape, outputs = Tape.recorded(model, inputs)
            self._tapes.append(tape)
            losses.append(self._loss_of(outputs, targets))
        self._losses = losses
        self._mean(losses)  # refuses one that is not finite

    def first_use(self, parameters: Iterable[str]) -> int:
        """The first operation that reads one of these parameters."""
        return self._tapes[0].first_use(parameters)

    def advance(self, parameters: Iterable[str]) -> None:
        """Prepare for changes of these parameters, and of parameters that are used later."""
        advance(self._tapes, self.model, parameters, LIMITS.curve_bytes)

    def rise(self, changed: nn.Module, share: float = 1.0) -> float:
        """The mean loss of a changed network, less that of the unchanged one, on this share of the batches."""
        few = max(1, round(share * len(self._tapes)))
        outputs = (tape.run(changed) for tape in self._tapes[:few])
        losses = [self._loss_of(o, t) for o, t in zip(outputs, self._targets[:few], strict=True)]
        return self._mean(losses) - self._mean(self._losses[:few])

    def _loss_of(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        with torch.no_grad():
            return self._loss(outputs, targets).item()

    def _mean(self, losses: list[float]) -> float:
        mean = float(np.average(losses, weights=[len(targets) for targets in self._targets[: len(losses)]]))
        if not math.isfinite(mean):
            raise UsageError(f"the loss of the training data is {mean} once channels are cut; check [data] loss")
        return mean


@dataclass(frozen=True)
class Resuming:
    """A reference whose calls execute only operations from the changed parameters on.

    `tapes` are those of its inputs, by the identity of the tuple.
    """

    model: nn.Module
    reference: Reference
    tapes: Mapping[int, Tape]

    @staticmethod
    def of(model: nn.Module, batches: Sample, extent: Extent) -> Resuming:
        """Observe a network, and record it in the same passes."""
        tapes: dict[int, Tape] = {}

        def recorded(model: nn.Module, inputs: Inputs) -> object:
            tapes[id(inputs)], outputs = Tape.recorded(model, inputs)
            return outputs

        return Resuming(model, observe(model, batches, extent, recorded), tapes)

    def at(self, parameters: Iterable[str]) -> Reference:
        """The reference for changes of these parameters. Its layers are the executed ones."""
        names, tape = tuple(parameters), self.tapes[id(self.reference.inputs)]
        advance(self.tapes.values(), self.model, names, LIMITS.curve_bytes)
        start = tape.first_use(names)
        later = {name: layer for name, layer in self.reference.layers.items() if tape.first_use([name]) >= start}
        return replace(self.reference, layers=later, call=self._call)

    def _call(self, model: nn.Module, inputs: Inputs) -> object:
        return self.tapes[id(inputs)].run(model)
