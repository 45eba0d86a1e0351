"""Importance from the gradient of the loss on training batches.

The model runs in eval mode, so batch-norm keeps its statistics.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from edgeprune.errors import UsageError
from edgeprune.limits import LIMITS
from edgeprune.network.computed import copied
from edgeprune.network.importance.base import Batches, Loss, Step, per_group, scores, unwatched
from edgeprune.records import Groups, Scores


def taylor(model: nn.Module, groups: Groups, batches: Batches, loss: Loss, step: Step = unwatched) -> Scores:
    """I_j = (Σ_{p∈j} g_p·w_p)², averaged over batches (Molchanov et al., CVPR 2019).

    p runs over all parameters that unit j owns. At most `LIMITS.importance_batches` batches are read.

    Raises:
        UsageError: The loss of a batch is not finite.
    """
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    totals = {group.name: torch.zeros(group.width) for group in groups.free}
    count = 0
    most = LIMITS.importance_batches
    for gradients in _gradients(copied(model), islice(batches, most), loss):
        changes = per_group(groups, {name: weights[name] * gradient for name, gradient in gradients.items()})
        for name, change in changes.items():
            totals[name] += change**2
        count += 1
        step(count, most, "gradients of batches")
    return scores("taylor", {name: total / count for name, total in totals.items()})


def fisher(model: nn.Module, groups: Groups, batches: Batches, loss: Loss, step: Step = unwatched) -> Scores:
    """I_j = ½ Σ_{p∈j} E[g_p²]·w_p², the loss by second-order expansion (LeCun et al., OBD, NeurIPS 1989).

    E runs over single samples, at most `LIMITS.fisher_samples`. The gradient of a batch's mean would average out where
    samples disagree.

    Raises:
        UsageError: The loss of a sample is not finite.
    """
    singles = (single for inputs, targets in batches for single in _singles(inputs, targets))
    squares: dict[str, Tensor] = {}
    count = 0
    most = LIMITS.fisher_samples
    for gradients in _gradients(copied(model), islice(singles, most), loss):
        for name, gradient in gradients.items():
            squares[name] = squares.get(name, torch.zeros(())) + gradient**2
        count += 1
        step(count, most, "gradients of samples")
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    values = {name: weights[name] ** 2 * square / (2 * count) for name, square in squares.items()}
    return scores("fisher", per_group(groups, values))


def _singles(inputs: tuple[Tensor, ...], targets: Tensor) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """The samples of a batch; the batch itself if its rows are not its samples."""
    if any(len(tensor) != len(targets) for tensor in inputs):
        yield inputs, targets
        return
    for i in range(len(targets)):
        yield tuple(tensor[i : i + 1] for tensor in inputs), targets[i : i + 1]


def _gradients(
    model: nn.Module, batches: Iterator[tuple[tuple[Tensor, ...], Tensor]], loss: Loss
) -> Iterator[dict[str, Tensor]]:
    """The gradient of every batch's loss, by parameter. Parameters that the loss does not depend on are left out."""
    model.eval()
    parameters = dict(model.named_parameters())
    for number, (inputs, targets) in enumerate(batches):
        value = loss(model(*inputs), targets)
        if not math.isfinite(value.item()):
            raise UsageError(f"the loss of training batch {number} is {value.item()}; check [data] train and loss")
        found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
        yield {name: gradient for name, gradient in zip(parameters, found, strict=True) if gradient is not None}
