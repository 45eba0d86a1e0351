"""The prune verb: cut the network to a plan, proved, and fit what is left."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from edgeprune.graph import groups as graph
from edgeprune.network import refit as reconstruction
from edgeprune.network import surgery as network
from edgeprune.network.refit import Reference
from edgeprune.records import Groups, Plan, Recipe


@dataclass(frozen=True)
class Pruned:
    """A cut network, twice: as good as it gets without training, and as training starts from."""

    untrained: nn.Module
    start: nn.Module
    recipe: Recipe
    fitted: bool  # to what is left, where that helps


def prune(
    model: nn.Module,
    groups: Groups,
    plan: Plan,
    inputs: tuple[Tensor, ...],
    batches: Iterable[tuple[tuple[Tensor, ...], Tensor]],
) -> Pruned:
    """The network that `plan` describes, fitted to training `batches` (`reconstruction`).

    The cut is proved against the masked original on `inputs` before; raises `CutError` where they disagree.
    """
    recipe = graph.recipe(groups, plan.keep)
    small = network.cut(model, recipe, inputs)
    if not recipe:
        return Pruned(small, small, recipe, False)
    return fitted(model, small, recipe, reconstruction.observe(model, batches))


def fitted(model: nn.Module, small: nn.Module, recipe: Recipe, reference: Reference) -> Pruned:
    """`small`, the network that `recipe` cuts from `model`, fitted to what the layers of that read, both ways."""
    untrained = reconstruction.reconstruct(model, small, recipe, reference)
    start = reconstruction.compensate(model, small, recipe, reference)
    return Pruned(untrained, start, recipe, untrained is not small)
