"""The interface of importance criteria, and sums over what a unit owns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from edgeprune.records import Groups, Scores, Slot

Batches = Iterable[tuple[tuple[Tensor, ...], Tensor]]  # (inputs, targets)
Loss = Callable[[Tensor, Tensor], Tensor]
Step = Callable[[int, int, str], None]  # of (done, total, note)


def unwatched(done: int, total: int, note: str) -> None:
    """Ignore progress."""


class Importance(Protocol):
    """An importance criterion: score every unit by the loss expected from its removal.

    Args:
        model: The trained network. It must be left unchanged.
        groups: Its channel groups.
        batches: Training batches of (inputs, targets).
        loss: The training loss of (outputs, targets).
        step: Is called as the criterion proceeds, with (done, total, note).

    Returns:
        Finite, non-negative scores for every unit of every free group. A higher score is more important.
    """

    def __call__(
        self, model: nn.Module, groups: Groups, batches: Batches, loss: Loss, step: Step = unwatched
    ) -> Scores: ...


def per_unit(slot: Slot, values: Tensor) -> Tensor:
    """Sum `values`, shaped like the slot's parameter, over everything that each unit owns: (units,)."""
    index = torch.tensor(slot.indices, dtype=torch.long)
    others = [dim for dim in range(values.ndim) if dim != slot.dim]
    summed = values.sum(dim=others) if others else values
    return summed[index].sum(dim=1)


def per_group(groups: Groups, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sum values over everything that each unit owns.

    Args:
        groups: The channel groups.
        values: One tensor per parameter, of the parameter's shape. A parameter without one counts as zero.

    Returns:
        For each free group the sums, (units,).
    """
    totals = {group.name: torch.zeros(group.width) for group in groups.free}
    for group in groups.free:
        for slot in group.slots:
            if slot.parameter in values:
                totals[group.name] += per_unit(slot, values[slot.parameter])
    return totals


def scores(criterion: str, totals: Mapping[str, Tensor]) -> Scores:
    """Make `Scores` from one tensor (units,) per group."""
    return Scores(criterion, {name: tuple(values.tolist()) for name, values in totals.items()})
