"""Importance by first-order Taylor expansion of the loss."""

from __future__ import annotations

import math

import torch
from torch import nn

from edgeprune.errors import UsageError
from edgeprune.importance.base import Batches, Loss, per_unit
from edgeprune.limits import LIMITS
from edgeprune.types import Groups, Scores


def taylor(model: nn.Module, groups: Groups, batches: Batches, loss: Loss) -> Scores:
    """I_j = (Σ_{p∈j} g_p·w_p)², averaged over batches (Molchanov et al., CVPR 2019).

    p runs over all parameters that unit j touches. The model runs in eval mode, so that batch-norm keeps its statistics;
    at most `LIMITS.importance_batches` batches are read. Raises `UsageError` when a batch's loss is not finite.
    """
    model.eval()
    parameters = dict(model.named_parameters())
    totals = {group.name: torch.zeros(group.width) for group in groups.free}
    count = 0
    for inputs, targets in batches:
        value = loss(model(*inputs), targets)
        if not math.isfinite(value.item()):
            raise UsageError(f"the loss of training batch {count} is {value.item()}; check [data] train and loss")
        gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
        products = {
            name: parameter.detach() * gradient
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
            if gradient is not None
        }
        for group in groups.free:
            change = torch.zeros(group.width)
            for slot in group.slots:
                if slot.parameter in products:
                    change += per_unit(slot, products[slot.parameter])
            totals[group.name] += change**2
        count += 1
        if count == LIMITS.importance_batches:
            break
    return Scores("taylor", {name: tuple((total / count).tolist()) for name, total in totals.items()})
