"""The prune verb: cut the network to a plan, proved, and judge a confirmed latency against the budget."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from edgeprune import graph, network
from edgeprune.types import Groups, Plan


def prune(
    model: nn.Module, groups: Groups, plan: Plan, inputs: tuple[Tensor, ...]
) -> tuple[nn.Module, Mapping[str, Mapping[int, tuple[int, ...]]]]:
    """The network that `plan` describes, with its recipe; proved against the masked original on `inputs`.

    Raises `CutError` when the cut network and the masked original disagree.
    """
    recipe = graph.recipe(groups, plan.keep)
    return network.cut(model, recipe, inputs), recipe
