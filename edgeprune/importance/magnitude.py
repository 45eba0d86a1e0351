"""Importance by magnitude."""

from __future__ import annotations

import torch
from torch import nn

from edgeprune.importance.base import Batches, Loss, per_unit
from edgeprune.types import Groups, Scores


def magnitude(model: nn.Module, groups: Groups, batches: Batches, loss: Loss) -> Scores:
    """I_j = Σ_l ‖w_l[j]‖² over all weights that group's unit j touches (Fang et al., DepGraph, CVPR 2023).

    Biases, batch-norm scales and statistics do not count. Needs no data: `batches` and `loss` are not read.
    """
    weights = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.ndim >= 2}
    units = {}
    for group in groups.free:
        total = torch.zeros(group.width)
        for slot in group.slots:
            if slot.parameter in weights:
                total += per_unit(slot, weights[slot.parameter] ** 2)
        units[group.name] = tuple(total.tolist())
    return Scores("magnitude", units)
