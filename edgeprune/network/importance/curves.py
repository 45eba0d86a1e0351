"""Importance by measured loss: the loss of every group at several widths."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain

import numpy as np
import torch
from torch import nn

from edgeprune.graph.groups import make_recipe
from edgeprune.limits import LIMITS
from edgeprune.network.attention import opened
from edgeprune.network.cut import sliced
from edgeprune.network.importance.base import Batches, Loss, Step, unwatched
from edgeprune.network.importance.gradients import taylor
from edgeprune.network.importance.probe import Probe, Resuming
from edgeprune.network.importance.sampling import Sample, counts, first, up_to
from edgeprune.network.layout import channels_last
from edgeprune.network.moments import Moments
from edgeprune.network.observe import Extent, Reference
from edgeprune.network.refit import refit_sequentially, removal_losses
from edgeprune.records import Block, Group, Groups, Scores

SHARES = (1 / 16, 1 / 4, 1 / 2, 3 / 4, 7 / 8)  # of a group's units, at which the loss is measured
NARROW = 1 / 4  # of a group's units: here the loss rises so far that half of the sample tells it

Curve = tuple[float, ...]


def loss_curves(model: nn.Module, groups: Groups, batches: Batches, loss: Loss, step: Step = unwatched) -> Scores:
    """Measure V_g(k), the rise of the loss if only group g is pruned, to its best k units.

    The layers that read the group are refitted (`network.refit`), on other samples than the loss is measured on, if there are
    enough. The curve is interpolated between measured widths. The loss without each block is measured in the same way.
    `removal_losses` ranks the units of a group.

    Scores of single units do not compare well between layers of different scale. Losses of entire networks do.

    If no layer can be refitted, `taylor` ranks the units, and batch-norm uses the statistics of each batch. A cut shifts the
    stored statistics, so the loss with those predicts little of the loss after training (Li et al., EagleEye, ECCV 2020).

    Raises:
        UsageError: A loss is not finite.
    """
    samples, unread = counts(groups, len(SHARES)), iter(batches)
    refitted_on = list(up_to(unread, samples.refit))
    few = tuple(tensor[:2] for tensor in refitted_on[0][0])  # the trial differentiates, which takes memory
    model = channels_last(copy.deepcopy(opened(model)).eval(), few)
    extent = Extent(samples.refit, LIMITS.curve_rows, LIMITS.curve_bytes, 2 * LIMITS.curve_bytes)
    resuming = Resuming.of(model, refitted_on, extent)
    reference = resuming.reference
    sample = first(model, chain(unread, batches), samples.curve)
    refits = bool(reference.layers) and len(groups.blocks) * reference.macs <= LIMITS.curve_macs
    fitted: list[Group | Block] = [group for group in groups.free if reference.readers(group)]
    others: list[Group | Block] = [group for group in groups.free if not reference.readers(group)]
    (fitted if refits else others).extend(groups.blocks)
    ranked = any(isinstance(part, Group) for part in others)
    units = taylor(model, groups, up_to(batches, samples.gradient), loss).units if ranked else {}
    curves, blocks = dict[str, Curve](), dict[str, float]()
    total = len(fitted) + len(others)

    def measure(subject: _Subject, parts: Sequence[Group | Block]) -> None:
        for part in sorted(parts, key=subject.first_use):
            step(len(curves) + len(blocks), total, part.name)
            if isinstance(part, Block):
                blocks[part.name] = subject.without(part)
            else:
                units[part.name], curves[part.name] = subject.curve(part, units.get(part.name))

    if fitted:
        measure(_Subject(model, groups, resuming, sample, loss), fitted)
    if others:
        unfitted = replace(resuming, reference=replace(reference, layers={}))
        measure(_Subject(_with_batch_statistics(model), groups, unfitted, sample, loss), others)
    step(total, total, "")
    return Scores("loss-curves", {name: units[name] for name in curves}, curves, blocks)


class _Subject:
    """A network whose groups are cut and whose blocks are removed, one at a time, to measure the loss.

    Args:
        model: The original network. If nothing is refitted, its batch-norm uses the statistics of each batch.
        groups: Its channel groups.
        resuming: The original network at work, with the layers that are refitted.
        sample: The data on which the loss is measured.
        loss: The training loss.
    """

    def __init__(self, model: nn.Module, groups: Groups, resuming: Resuming, sample: Sample, loss: Loss) -> None:
        self._model, self._groups, self._resuming, self._reference = model, groups, resuming, resuming.reference
        self._parameters = {name for name, _ in model.named_parameters()}
        self._probe = Probe(model, sample, loss)

    def first_use(self, part: Group | Block) -> int:
        """The first operation that differs if a group is cut or a block removed."""
        return self._probe.first_use(self._touched(part))

    def curve(self, group: Group, units: Curve | None) -> tuple[Curve, Curve]:
        """The scores of a group's units and its loss curve. `units` are its scores if no layer that reads it is refitted."""
        layers = self._reference.layers
        moments = {slot.parameter: layers[slot.parameter].moments() for slot in self._reference.readers(group)}
        if units is None:
            units = _ascending(removal_losses(self._model, group, self._reference, moments))
        worst_first = np.argsort(units, kind="stable").tolist()
        widths = sorted({max(1, round(share * group.width)) for share in SHARES} - {group.width})
        if group.normalised:  # a norm over zeros is no norm over what remains
            keep = (sorted(worst_first[group.width - width :]) for width in widths)
            rises = [self._rise({group.name: kept}, self._touched(group)) for kept in keep]
            return units, _interpolated(group.width, widths, rises)
        self._probe.advance(self._touched(group))
        rises = []
        for width in widths:
            with _without(self._model, group, worst_first[: group.width - width], self._reference, moments):
                rises.append(self._probe.rise(self._model, 0.5 if width <= NARROW * group.width else 1.0))
        return units, _interpolated(group.width, widths, rises)

    def without(self, block: Block) -> float:
        """How far the loss rises if a block is removed."""
        return max(0.0, self._rise(dict.fromkeys(block.groups, ()), block.parameters))

    def _rise(self, keep: Mapping[str, Sequence[int]], parameters: Sequence[str]) -> float:
        """How far the loss rises in a network that keeps these units. The cut changes these parameters."""
        recipe = make_recipe(self._groups, keep)
        pruned = sliced(self._model, recipe).eval()
        if self._reference.layers:
            pruned = refit_sequentially(self._model, pruned, recipe, self._resuming.at(parameters))
        else:
            pruned = _with_batch_statistics(pruned)
        self._probe.advance(parameters)
        return self._probe.rise(pruned)

    def _touched(self, part: Group | Block) -> tuple[str, ...]:
        """The parameters that change if a group is cut or a block removed."""
        if isinstance(part, Block):
            return part.parameters
        biases = {self._reference.layers[slot.parameter].bias for slot in self._reference.readers(part)}
        return tuple(sorted(({slot.parameter for slot in part.slots} | biases) & self._parameters))


def _with_batch_statistics(model: nn.Module) -> nn.Module:
    """A copy in eval mode, but with batch-norm in training mode."""
    probe = copy.deepcopy(model).eval()
    for module in probe.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    return probe


def _ascending(losses: Mapping[int, float]) -> Curve:
    """Scores in unit order. A unit that is removed later scores at least as high."""
    values = dict(zip(losses, np.maximum.accumulate(np.maximum(list(losses.values()), 0.0)).tolist(), strict=True))
    return tuple(values[unit] for unit in range(len(values)))


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
