"""Importance from the weights. `batches`, `loss` and `step` are not used."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeprune.errors import UsageError
from edgeprune.network.importance.base import Batches, Loss, Step, per_group, scores, unwatched
from edgeprune.records import Groups, Scores, Slot


def magnitude_l1(model: nn.Module, groups: Groups, batches: Batches, loss: Loss, step: Step = unwatched) -> Scores:
    """I_j = Σ_l Σ|w_l[j]| over all weights that unit j owns (Li et al., ICLR 2017).

    Biases, batch-norm scales and statistics do not count.
    """
    return scores("magnitude-l1", per_group(groups, {name: w.abs() for name, w in _weights(model).items()}))


def magnitude_l2(model: nn.Module, groups: Groups, batches: Batches, loss: Loss, step: Step = unwatched) -> Scores:
    """I_j = Σ_l ‖w_l[j]‖² over all weights that unit j owns (Fang et al., DepGraph, CVPR 2023).

    Biases, batch-norm scales and statistics do not count.
    """
    return scores("magnitude-l2", per_group(groups, {name: w**2 for name, w in _weights(model).items()}))


def norm_scale(model: nn.Module, groups: Groups, batches: Batches, loss: Loss, step: Step = unwatched) -> Scores:
    """I_j = Σ|γ_j| over the batch-norms that unit j passes (Liu et al., Network Slimming, ICCV 2017).

    It is most useful after training that made the scales sparse.

    Raises:
        UsageError: A free group passes no batch-norm with a scale.
    """
    norms = {
        f"{path}.weight": module.weight.detach().abs()
        for path, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine
    }
    for group in groups.free:
        if not any(slot.parameter in norms for slot in group.slots):
            raise UsageError(
                f'[prune] importance = "bn-scale": the channels of {group.name} pass no batch-norm with a scale;'
                ' lock them, or choose another criterion, such as "taylor"'
            )
    return scores("bn-scale", per_group(groups, norms))


def fpgm(model: nn.Module, groups: Groups, batches: Batches, loss: Loss, step: Step = unwatched) -> Scores:
    """I_j = Σ_l Σ_k ‖F_l[j] − F_l[k]‖: filters near the geometric median are redundant (He et al., CVPR 2019).

    F_l[j] is everything that unit j owns of layer l, which writes or reads the channels.
    """
    weights = _weights(model)
    totals = {group.name: torch.zeros(group.width) for group in groups.free}
    for group in groups.free:
        for slot in group.slots:
            if slot.parameter in weights:
                owned = _owned(slot, weights[slot.parameter])
                totals[group.name] += torch.cdist(owned, owned).sum(1)
    return scores("fpgm", totals)


def chance(model: nn.Module, groups: Groups, batches: Batches, loss: Loss, step: Step = unwatched) -> Scores:
    """Random scores, the same on every call. A useful criterion must beat them."""
    random = torch.Generator().manual_seed(0)
    return scores("random", {group.name: torch.rand(group.width, generator=random) for group in groups.free})


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.ndim >= 2}


def _owned(slot: Slot, weight: Tensor) -> Tensor:
    """Everything that each unit owns of a weight: (units, numbers)."""
    index = torch.tensor(slot.indices, dtype=torch.long)
    return weight.movedim(slot.dim, 0)[index].flatten(1)
