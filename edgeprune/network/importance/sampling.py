"""How much of the training data an importance criterion reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from edgeprune.limits import LIMITS
from edgeprune.network.importance.base import Batches
from edgeprune.records import Groups

CURVE_SAMPLES = 64, 256  # fewest, for a large network, and most; a ResNet-20 plan from 128 is clearly worse
REFIT_SAMPLES = 512, 1024
GRADIENT_SAMPLES = 256, 2048
BACKWARD = 3  # work of a forward and a backward pass, relative to a forward pass

Sample = list[tuple[tuple[torch.Tensor, ...], torch.Tensor]]


@dataclass(frozen=True)
class Counts:
    """Numbers of samples: for the loss of a cut network, for a refit, and for gradients of the original network."""

    curve: int
    refit: int
    gradient: int


def counts(groups: Groups, widths: int) -> Counts:
    """As many samples as `LIMITS.curve_macs` allow, if each group is cut to `widths` widths.

    A cut group executes the layers from its first one on. So does a removed block.
    """
    full = groups.full()
    macs = [layer.macs(full) for layer in groups.layers]
    first = {}
    for place, layer in reversed(list(enumerate(groups.layers))):
        first[layer.weight] = place

    def rest(parameters: Iterator[str]) -> int:
        """Multiply-accumulates of one forward pass from the first of these layers on."""
        return sum(macs[min((first[name] for name in parameters if name in first), default=0) :])

    cut = widths * sum(rest(slot.parameter for slot in group.slots) for group in groups.free)
    without = sum(rest(iter(block.parameters)) for block in groups.blocks)
    return Counts(
        _within(CURVE_SAMPLES, cut + without),
        _within(REFIT_SAMPLES, 4 * (sum(macs) + without)),  # a quarter of the work
        _within(GRADIENT_SAMPLES, BACKWARD * sum(macs)),
    )


def _within(most: tuple[int, int], work: int) -> int:
    return max(most[0], min(most[1], LIMITS.curve_macs // max(1, work)))


def first(model: nn.Module, batches: Batches, count: int) -> Sample:
    """The first batches, with `count` samples as nearly as whole batches allow.

    If the first one is too large, only a part of it is taken, unless the model accepts only whole batches.
    """
    found: Sample = []
    missing = count
    for inputs, targets in batches:
        if not found and len(targets) > count:
            return [_part(model, inputs, targets, count)]
        found.append((inputs, targets))
        missing -= len(targets)
        if missing < len(targets) / 2:
            break
    return found


def _part(
    model: nn.Module, inputs: tuple[torch.Tensor, ...], targets: torch.Tensor, count: int
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    if any(len(tensor) != len(targets) for tensor in inputs):
        return inputs, targets
    part = tuple(tensor[:count] for tensor in inputs)
    try:
        with torch.no_grad():
            model(*part)
    except (RuntimeError, ValueError, IndexError, AssertionError):
        return inputs, targets
    return part, targets[:count]


def up_to(batches: Batches, count: int) -> Iterator[tuple[tuple[torch.Tensor, ...], torch.Tensor]]:
    """The first batches, up to the one that completes `count` samples."""
    for inputs, targets in batches:
        yield inputs, targets
        count -= len(targets)
        if count <= 0:
            return
