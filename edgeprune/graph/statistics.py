"""Means and normalisations over channels that a cut removes: the graph takes them over the channels that remain.

A cut of such channels is compared with this graph. It has the shapes of the original network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from edgeprune.graph.editable import GraphNetwork, set_argument
from edgeprune.graph.groups import remaining_groups
from edgeprune.graph.rules import bind
from edgeprune.records import Recipe

_NORMS = ("layer_norm", "rms_norm", "group_norm")


def take_over_remaining(network: GraphNetwork, recipe: Recipe) -> None:
    """Make statistics over channels leave out channels that a cut removes, in place. The network keeps its shapes.

    A removed channel of a normalised tensor is zero.
    """
    nodes = {node.name: node for node in network.graph.nodes}
    for found, kept in network.exported_from.traced.remaining(recipe):
        node = nodes[found.node]
        given = bind(node)
        source = given[found.argument]
        with network.graph.inserting_before(node):
            for dim, indices in kept.items():
                source = network.graph.call_function(_take, (source, dim, indices))
            set_argument(node, found.argument, source)
            _resize_norm(network.graph, node, kept, given)
        if getattr(node.target, "_opname", "") in _NORMS:
            with network.graph.inserting_after(node):
                _restore_result(network.graph, node, kept)
    network.recompile()


def _resize_norm(graph: fx.Graph, node: fx.Node, kept: Mapping[int, list[int]], given: Mapping[str, Any]) -> None:
    """Set the sizes of a normalisation, and take what remains of its weight and bias."""
    name = getattr(node.target, "_opname", "")
    if name not in _NORMS:
        return
    shape = given["input"].meta["val"].shape
    first = 1 if name == "group_norm" else len(shape) - len(given["normalized_shape"])
    for argument in ("weight", "bias"):
        value = given.get(argument)
        for dim, indices in kept.items() if value is not None else ():
            value = graph.call_function(_take, (value, dim - first, indices))
        if value is not None:
            set_argument(node, argument, value)
    for dim, indices in kept.items():
        if name == "group_norm":
            set_argument(node, "num_groups", remaining_groups(given["num_groups"], shape[1], indices))
        else:
            set_argument(node, "normalized_shape", len(indices), dim - first)


def _restore_result(graph: fx.Graph, node: fx.Node, kept: Mapping[int, list[int]]) -> None:
    users, made = list(node.users), node
    for dim, indices in kept.items():
        size = node.meta["val"].shape[dim]
        made = graph.call_function(_restore, (made, dim, indices, size))
    made.meta["val"] = node.meta["val"]
    for user in users:
        user.replace_input_with(node, made)


def _take(x: Tensor, dim: int, indices: list[int]) -> Tensor:
    """The entries of a tensor at these indices of a dimension."""
    return x.index_select(dim, torch.tensor(indices))


def _restore(x: Tensor, dim: int, indices: list[int], size: int) -> Tensor:
    """The reverse of `_take`: a tensor with zeros at all other indices."""
    shape = [*x.shape[:dim], size, *x.shape[dim + 1 :]]
    return x.new_zeros(shape).index_copy(dim, torch.tensor(indices), x)
