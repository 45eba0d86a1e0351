"""Importance by the loss itself, measured: what every group loses at a few widths."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.errors import UsageError
from edgeprune.importance.base import Batches, Loss
from edgeprune.importance.gradients import taylor
from edgeprune.limits import LIMITS
from edgeprune.types import Groups, Scores

SHARES = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)  # of a group's units, at which the loss is measured
SAMPLES = 64, 512  # at least, where the network is large, and at most

Sample = list[tuple[tuple[Tensor, ...], Tensor]]


def loss_curves(model: nn.Module, groups: Groups, batches: Batches, loss: Loss) -> Scores:
    """V_g(k), the rise of the loss when group g alone keeps its best k units (`taylor` ranks them), interpolated.

    Scores of single units do not compare well between layers of different scale; losses of whole networks do. Batch-norm
    normalises by the batch that it sees, as it would after a few steps of training: a cut shifts its stored statistics, and
    much of the loss measured with those says nothing of what training brings back (Li et al., EagleEye, ECCV 2020).
    Raises `UsageError` when a loss is not finite.
    """
    ranked = taylor(model, groups, batches, loss)
    probe = copy.deepcopy(model).eval()
    for module in probe.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    sample = _first(batches, _samples(groups))
    whole = _mean_loss(probe, sample, loss)
    curves, blocks = {}, {}
    for group in groups.free:
        worst_first = np.argsort(ranked.units[group.name], kind="stable").tolist()
        widths = sorted({max(1, round(share * group.width)) for share in SHARES} - {group.width})
        rises = []
        for width in widths:
            gone = worst_first[: group.width - width]
            with _zeroed(probe, [(s.parameter, s.dim, [i for u in gone for i in s.indices[u]]) for s in group.slots]):
                rises.append(_mean_loss(probe, sample, loss) - whole)
        curves[group.name] = _interpolated(group.width, widths, rises)
    sizes = {name: len(parameter) for name, parameter in probe.named_parameters() if parameter.ndim}
    for block in groups.blocks:
        with _zeroed(probe, [(name, 0, range(sizes[name])) for name in block.parameters]):
            blocks[block.name] = max(0.0, _mean_loss(probe, sample, loss) - whole)
    return Scores("loss-curves", ranked.units, curves, blocks)


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
def _zeroed(model: nn.Module, gone: Sequence[tuple[str, int, Sequence[int]]]) -> Iterator[None]:
    """The model with these indices, (parameter, dim, indices), at zero, which equals cutting them; put back afterwards."""
    parameters = dict(model.named_parameters())
    touched = {name: parameters[name] for name, *_ in gone if name in parameters}
    before = {name: parameter.detach().clone() for name, parameter in touched.items()}
    with torch.no_grad():
        for name, dim, indices in gone:
            if name in touched:
                touched[name].index_fill_(dim, torch.tensor(indices, dtype=torch.long), 0)
    yield
    with torch.no_grad():
        for name, parameter in touched.items():
            parameter.copy_(before[name])


def _interpolated(full: int, widths: Sequence[int], rises: Sequence[float]) -> tuple[float, ...]:
    """The loss at widths 1 to `full`: never less when narrower, and nothing at the full one."""
    from_wide = np.maximum.accumulate(np.maximum(rises, 0.0)[::-1])
    curve = np.interp(np.arange(1, full + 1), [*widths, full], [*from_wide[::-1], 0.0])
    return tuple(curve.tolist())
