"""Importance by the loss itself, measured: what every group loses at a few widths."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.errors import UsageError
from edgeprune.graph import groups as graph
from edgeprune.limits import LIMITS
from edgeprune.network import refit as reconstruction
from edgeprune.network import surgery as network
from edgeprune.network.importance.base import Batches, Loss
from edgeprune.network.importance.gradients import taylor
from edgeprune.network.refit import Reference, Sums
from edgeprune.records import Group, Groups, Scores

SHARES = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)  # of a group's units, at which the loss is measured
SAMPLES = 64, 512  # at least, where the network is large, and at most

Sample = list[tuple[tuple[Tensor, ...], Tensor]]


def loss_curves(model: nn.Module, groups: Groups, batches: Batches, loss: Loss) -> Scores:
    """V_g(k), the rise of the loss when group g alone keeps its best k units and the layers that read it are fitted to those
    (`reconstruction`), interpolated; likewise without a block. What such layers miss puts the units in order.

    Scores of single units do not compare well between layers of different scale; losses of whole networks do. Where no layer
    can be fitted, `taylor` ranks the units, and batch-norm normalises by the batch that it sees: a cut shifts its stored
    statistics, and much of the loss measured with those says nothing of what training brings back (Li et al., EagleEye, ECCV
    2020). Raises `UsageError` when a loss is not finite.
    """
    sample = _first(batches, _samples(groups))
    model = network.channels_last(copy.deepcopy(model).eval(), sample[0][0])
    units = dict(taylor(model, groups, batches, loss).units)
    reference = reconstruction.observe(model, batches)
    unfitted = _with_statistics_of_batches(model)
    whole = {probe: _mean_loss(probe, sample, loss) for probe in (model, unfitted)}
    curves = {}
    for group in groups.free:
        sums = {slot.parameter: reference.layers[slot.parameter].sums() for slot in reference.readers(group)}
        if sums:
            units[group.name] = _ascending(reconstruction.order(model, group, reference, sums))
        probe = model if sums else unfitted
        worst_first = np.argsort(units[group.name], kind="stable").tolist()
        widths = sorted({max(1, round(share * group.width)) for share in SHARES} - {group.width})
        rises = []
        for width in widths:
            with _without(probe, group, worst_first[: group.width - width], reference, sums):
                rises.append(_mean_loss(probe, sample, loss) - whole[probe])
        curves[group.name] = _interpolated(group.width, widths, rises)
    fits = bool(reference.layers) and len(groups.blocks) * reference.macs <= LIMITS.curve_macs / 4
    blocks = {}
    for block in groups.blocks:
        recipe = graph.recipe(groups, dict.fromkeys(block.groups, ()))
        small = network.sliced(model, recipe).eval()
        if fits:
            probe, before = reconstruction.reconstruct(model, small, recipe, reference), whole[model]
        else:
            probe, before = _with_statistics_of_batches(small), whole[unfitted]
        blocks[block.name] = max(0.0, _mean_loss(probe, sample, loss) - before)
    return Scores("loss-curves", units, curves, blocks)


def _with_statistics_of_batches(model: nn.Module) -> nn.Module:
    probe = copy.deepcopy(model).eval()
    for module in probe.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    return probe


def _ascending(lost: Mapping[int, float]) -> tuple[float, ...]:
    """Scores of units in the order of `lost`: what goes later is worth as much at least."""
    values = dict(zip(lost, np.maximum.accumulate(np.maximum(list(lost.values()), 0.0)).tolist(), strict=True))
    return tuple(values[unit] for unit in range(len(values)))


def _samples(groups: Groups) -> int:
    work = groups.macs(groups.full()) * len(SHARES) * len(groups.free)
    return max(SAMPLES[0], min(SAMPLES[1], LIMITS.curve_macs // max(1, work)))


def _first(batches: Batches, count: int) -> Sample:
    """The first batches, until they hold `count` samples."""
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
    model: nn.Module, group: Group, gone: Sequence[int], reference: Reference, sums: Mapping[str, Sums]
) -> Iterator[None]:
    """The model with these units of a group at zero, which equals cutting them, and the layers that read the group, whose
    `sums` are given, fitted to the others; put back afterwards."""
    parameters = dict(model.named_parameters())
    touched = {slot.parameter for slot in group.slots} | {reference.layers[name].bias for name in sums}
    before = {name: parameters[name].detach().clone() for name in touched if name in parameters}
    with torch.no_grad():
        for slot in reference.readers(group):
            out = {i for unit in gone for i in slot.indices[unit]}
            kept = [i for i in range(before[slot.parameter].shape[slot.dim]) if i not in out]
            name = reference.layers[slot.parameter].bias
            weight, bias = (
                sums[slot.parameter]
                .of_kept(kept)
                .fitted(before[slot.parameter], slot.dim, before[name] if name else None, kept)
            )
            parameters[slot.parameter].index_copy_(slot.dim, torch.tensor(kept), weight)
            if name and bias is not None:
                parameters[name].copy_(bias)
        for slot in group.slots:  # after that: a layer that reads the group may also write it
            if slot.parameter in before:
                indices = [i for unit in gone for i in slot.indices[unit]]
                parameters[slot.parameter].index_fill_(slot.dim, torch.tensor(indices, dtype=torch.long), 0)
    yield
    with torch.no_grad():
        for name, tensor in before.items():
            parameters[name].copy_(tensor)


def _interpolated(full: int, widths: Sequence[int], rises: Sequence[float]) -> tuple[float, ...]:
    """The loss at widths 1 to `full`: never less when narrower, and nothing at the full one."""
    from_wide = np.maximum.accumulate(np.maximum(rises, 0.0)[::-1])
    curve = np.interp(np.arange(1, full + 1), [*widths, full], [*from_wide[::-1], 0.0])
    return tuple(curve.tolist())
