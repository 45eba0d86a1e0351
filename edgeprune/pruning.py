"""The prune verb: cut the network to a plan, proved, and fit what is left."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from edgeprune import graph, network, reconstruction
from edgeprune.types import Groups, Plan, Recipe


def prune(
    model: nn.Module,
    groups: Groups,
    plan: Plan,
    inputs: tuple[Tensor, ...],
    batches: Iterable[tuple[tuple[Tensor, ...], Tensor]],
) -> tuple[nn.Module, Recipe, bool]:
    """The network that `plan` describes, its recipe, and whether it was fitted to training `batches` (`reconstruction`).

    The cut is proved against the masked original on `inputs` before; raises `CutError` where they disagree.
    """
    recipe = graph.recipe(groups, plan.keep)
    small = network.cut(model, recipe, inputs)
    if not recipe:
        return small, recipe, False
    fitted = reconstruction.reconstruct(model, small, recipe, reconstruction.observe(model, batches))
    return fitted, recipe, fitted is not small
