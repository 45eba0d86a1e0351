"""Importance by measured loss: the loss of every group at several widths."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.errors import UsageError
from edgeprune.graph.groups import make_recipe
from edgeprune.limits import LIMITS
from edgeprune.network.cut import sliced
from edgeprune.network.importance.base import Batches, Loss
from edgeprune.network.importance.gradients import taylor
from edgeprune.network.layout import channels_last
from edgeprune.network.moments import Moments
from edgeprune.network.observe import Reference, observe
from edgeprune.network.refit import refit_sequentially, removal_losses
from edgeprune.records import Group, Groups, Scores

SHARES = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)  # of a group's units, at which the loss is measured
SAMPLES = 64, 512  # fewest, for a large network, and most

Sample = list[tuple[tuple[Tensor, ...], Tensor]]


def loss_curves(model: nn.Module, groups: Groups, batches: Batches, loss: Loss) -> Scores:
    """Measure V_g(k), the rise of the loss if only group g is pruned, to its best k units.

    The layers that read the group are refitted (`network.refit`). The curve is interpolated between measured widths. The
    loss without each block is measured in the same way. `removal_losses` ranks the units of a group.

    Scores of single units do not compare well between layers of different scale. Losses of entire networks do.

    If no layer can be refitted, `taylor` ranks the units, and batch-norm uses the statistics of each batch. A cut shifts the
    stored statistics, so the loss with those predicts little of the loss after training (Li et al., EagleEye, ECCV 2020).

    Raises:
        UsageError: A loss is not finite.
    """
    sample = _first(batches, _samples(groups))
    model = channels_last(copy.deepcopy(model).eval(), sample[0][0])
    units = dict(taylor(model, groups, batches, loss).units)
    reference = observe(model, batches)
    unfitted = _with_batch_statistics(model)
    original = {probe: _mean_loss(probe, sample, loss) for probe in (model, unfitted)}
    curves = {}
    for group in groups.free:
        moments = {slot.parameter: reference.layers[slot.parameter].moments() for slot in reference.readers(group)}
        if moments:
            units[group.name] = _ascending(removal_losses(model, group, reference, moments))
        probe = model if moments else unfitted
        worst_first = np.argsort(units[group.name], kind="stable").tolist()
        widths = sorted({max(1, round(share * group.width)) for share in SHARES} - {group.width})
        rises = []
        for width in widths:
            with _without(probe, group, worst_first[: group.width - width], reference, moments):
                rises.append(_mean_loss(probe, sample, loss) - original[probe])
        curves[group.name] = _interpolated(group.width, widths, rises)
    refits = bool(reference.layers) and len(groups.blocks) * reference.macs <= LIMITS.curve_macs / 4
    blocks = {}
    for block in groups.blocks:
        kept = make_recipe(groups, dict.fromkeys(block.groups, ()))
        pruned = sliced(model, kept).eval()
        if refits:
            probe, before = refit_sequentially(model, pruned, kept, reference), original[model]
        else:
            probe, before = _with_batch_statistics(pruned), original[unfitted]
        blocks[block.name] = max(0.0, _mean_loss(probe, sample, loss) - before)
    return Scores("loss-curves", units, curves, blocks)


def _with_batch_statistics(model: nn.Module) -> nn.Module:
    """A copy in eval mode, but with batch-norm in training mode."""
    probe = copy.deepcopy(model).eval()
    for module in probe.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    return probe


def _ascending(losses: Mapping[int, float]) -> tuple[float, ...]:
    """Scores in unit order. A unit that is removed later scores at least as high."""
    values = dict(zip(losses, np.maximum.accumulate(np.maximum(list(losses.values()), 0.0)).tolist(), strict=True))
    return tuple(values[unit] for unit in range(len(values)))


def _samples(groups: Groups) -> int:
    work = groups.macs(groups.full()) * len(SHARES) * len(groups.free)
    return max(SAMPLES[0], min(SAMPLES[1], LIMITS.curve_macs // max(1, work)))


def _first(batches: Batches, count: int) -> Sample:
    """The first batches that together hold `count` samples."""
    found: Sample = []
    for inputs, targets in batches:
        found.append((inputs, targets))
        if sum(len(t) for _, t in found) >= count:
            break
    return found


def _mean_loss(model: nn.Module, sample: Sample, loss: Loss) -> float:
    with torch.no_grad():
        values = [loss(model(*inputs), targets).item() for inputs, targets in sample]
    mean = float(np.average(values, weights=[len(targets) for _, targets in sample]))
    if not math.isfinite(mean):
        raise UsageError(f"the loss of the training data is {mean} once channels are cut; check [data] loss")
    return mean


@contextmanager
def _without(
    model: nn.Module, group: Group, removed: Sequence[int], reference: Reference, moments: Mapping[str, Moments]
) -> Iterator[None]:
    """Set these units of a group to zero, which equals cutting them, and refit the layers that read the group.

    On exit the parameters are restored.
    """
    parameters = dict(model.named_parameters())
    touched = {slot.parameter for slot in group.slots} | {reference.layers[name].bias for name in moments}
    before = {name: parameters[name].detach().clone() for name in touched if name in parameters}
    with torch.no_grad():
        for slot in reference.readers(group):
            out = {i for unit in removed for i in slot.indices[unit]}
            kept = [i for i in range(before[slot.parameter].shape[slot.dim]) if i not in out]
            name = reference.layers[slot.parameter].bias
            weight, bias = (
                moments[slot.parameter]
                .of_kept(kept)
                .refitted(before[slot.parameter], slot.dim, before[name] if name else None, kept)
            )
            parameters[slot.parameter].index_copy_(slot.dim, torch.tensor(kept), weight)
            if name and bias is not None:
                parameters[name].copy_(bias)
        for slot in group.slots:  # after the refit, since a layer that reads the group may also write it
            if slot.parameter in before:
                indices = [i for unit in removed for i in slot.indices[unit]]
                parameters[slot.parameter].index_fill_(slot.dim, torch.tensor(indices, dtype=torch.long), 0)
    yield
    with torch.no_grad():
        for name, tensor in before.items():
            parameters[name].copy_(tensor)


def _interpolated(full: int, widths: Sequence[int], rises: Sequence[float]) -> tuple[float, ...]:
    """The loss at widths 1 to `full`: never lower at a smaller width, and zero at the full one."""
    from_wide = np.maximum.accumulate(np.maximum(rises, 0.0)[::-1])
    curve = np.interp(np.arange(1, full + 1), [*widths, full], [*from_wide[::-1], 0.0])
    return tuple(curve.tolist())
