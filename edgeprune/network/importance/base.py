"""The port of importance criteria: one call, scores out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from edgeprune.records import Groups, Scores, Slot

Batches = Iterable[tuple[tuple[Tensor, ...], Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]


class Importance(Protocol):
    """What a unit is worth: the loss that is expected when it goes.

    Called with the trained model, its groups, training batches of (inputs, targets) and the loss. Returns finite scores,
    not negative, for every unit of every free group; larger is worth more. Must leave the model as it was.
    """

    def __call__(self, model: nn.Module, groups: Groups, batches: Batches, loss: Loss) -> Scores: ...


def per_unit(slot: Slot, values: Tensor) -> Tensor:
    """Sum `values`, shaped as the slot's parameter, over everything each unit owns: (units,)."""
    index = torch.tensor(slot.indices, dtype=torch.long)
    others = [dim for dim in range(values.ndim) if dim != slot.dim]
    summed = values.sum(dim=others) if others else values
    return summed[index].sum(dim=1)


def per_group(groups: Groups, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sum `values`, given a parameter and shaped as it, over all that each unit touches: (units,) a free group.

    A parameter that is not in `values` counts as zero.
    """
    totals = {group.name: torch.zeros(group.width) for group in groups.free}
    for group in groups.free:
        for slot in group.slots:
            if slot.parameter in values:
                totals[group.name] += per_unit(slot, values[slot.parameter])
    return totals


def scores(criterion: str, totals: Mapping[str, Tensor]) -> Scores:
    """Totals (units,) a group, as scores."""
    return Scores(criterion, {name: tuple(values.tolist()) for name, values in totals.items()})
