"""Are the original network's metric and loss plausible? The metric may be at chance, or in percent. This is never an error."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from statistics import fmean, pstdev

import torch
from torch import Tensor

from edgeprune.errors import UsageError
from edgeprune.frontends.data import Metric
from edgeprune.records import Project

SHUFFLES = 10  # of the outputs, that give the metric by chance
SHUFFLES_S = 2.0
FEWEST = 3
SURE = 2.0  # standard deviations above chance
PERCENT = 100.0  # the largest metric that may be in percent
ROUNDING = 1e-3  # of a sum of probabilities
SMALL = 1e-3  # a smaller share of the metric is hardly a drop


def remarks(
    project: Project, metric: Metric, value: float, outputs: Sequence[Tensor], targets: Tensor
) -> Iterator[str]:
    """Lines for the user on a loss that does not fit the outputs, and on a metric that is at chance, in percent, or out of
    scale with `[budget] max_metric_drop`.

    Args:
        project: names the weights and the limit.
        metric: the project's metric.
        value: the original network's, from these outputs.
        outputs: (samples, ...) each.
        targets: (samples, ...).
    """
    if project.data.loss is None and _are_probabilities(outputs[metric.structure.main]):
        yield (
            f"{project.where('data', 'loss')} is missing, so the loss is cross-entropy of logits, and the model returns"
            " probabilities: training would be weak; give a loss of probabilities, or return logits"
        )
    drop, key = project.budget.max_metric_drop, project.where("budget", "max_metric_drop")
    if 1 < value <= PERCENT and 0 < drop < SMALL * value:
        yield (
            f"{key} = {drop:g} is tiny beside the original network's metric, {value:.4g}. If the metric is in percent, write"
            f" {PERCENT * drop:g} for {drop:.0%}, or divide the metric by 100"
        )
    elif 0 < drop < SMALL * abs(value):
        yield f"{key} = {drop:g} is tiny beside the original network's metric, {value:.4g}: give it in the metric's unit"
    shuffled = by_chance(metric, value, outputs, targets)
    chance = fmean(shuffled) if shuffled else None
    if shuffled and project.data.metric and not metric.is_agreement and value < _below(shuffled):
        yield (
            f"{project.where('data', 'metric')}: the original network's metric is {value:.4g}, and {chance:.4g} if its"
            " outputs are shuffled; larger must be better: return -value if smaller is better, and check the labels"
        )
    elif chance is not None and metric.is_agreement:
        yield (
            f"{project.where('data', 'samples')}: the original network answers nearly the same for all samples, so that any"
            f" network would agree with it ({chance:.4g} if its outputs are shuffled); check the weights, the preprocessing"
            " and whether the samples vary"
        )
    elif chance is not None:
        count = outputs[0].shape[metric.structure.batch_dims[0]]
        yield (
            f"{_weights(project)}: the original network's metric is at chance, {value:.4g} on {count} validation"
            f" samples, and {chance:.4g} if its outputs are shuffled; check the weights, the labels and the preprocessing"
        )
    elif value and drop >= abs(value):
        yield f"{key} = {drop:g} allows any drop of the original network's metric, {value:.4g}; write 0.01 for one percent"


def _are_probabilities(output: Tensor) -> bool:
    """Whether an output is that of a softmax over several classes."""
    if output.ndim != 2 or output.shape[1] < 2 or not output.is_floating_point():
        return False
    return bool((output >= 0).all()) and bool((output.sum(1) - 1).abs().max() < ROUNDING)


def _weights(project: Project) -> str:
    """Where the weights come from, and whether they were forgotten."""
    if project.model.weights is not None:
        return f"{project.where('model', 'weights')} {project.model.weights.name}"
    return project.model.factory.where if project.objects else f"{project.where('model', 'weights')} is missing"


def _below(found: Sequence[float]) -> float:
    """A metric that is surely worse than these."""
    return fmean(found) - SURE * pstdev(found) - ROUNDING * abs(fmean(found))


def by_chance(metric: Metric, value: float, outputs: Sequence[Tensor], targets: Tensor) -> list[float] | None:
    """Metrics of shuffled outputs, if `value` is not surely better; else None.

    A metric that does not depend on the targets cannot be judged. Agreement depends on them.
    """
    random, dims = torch.Generator().manual_seed(0), metric.structure.batch_dims
    found: list[float] = []
    until = time.monotonic() + SHUFFLES_S
    with suppress(UsageError):  # some metrics need samples of all kinds, in their order
        while len(found) < SHUFFLES and (len(found) < FEWEST or time.monotonic() < until):
            order = torch.randperm(outputs[0].shape[dims[0]], generator=random)
            found.append(
                metric([tensor.index_select(dim, order) for tensor, dim in zip(outputs, dims, strict=True)], targets)
            )
    if len(found) < FEWEST or value > fmean(found) + SURE * pstdev(found):
        return None
    with suppress(UsageError):
        if not metric.is_agreement and not pstdev(found) and metric(outputs, targets[:1].expand_as(targets)) == value:
            return None
    return found
