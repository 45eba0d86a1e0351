"""Inline the regions of a graph: code under autocast, without gradients, under a checkpoint, or of a condition.

`torch.export` keeps such code as a separate graph, which an operator of higher order calls. Here its operators move into the
graph that calls it, so that their rules apply and their layers count.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import HigherOrderOperator
from torch.fx.node import map_arg

_SAME_VALUE = ("lift_fresh_copy", "detach", "detach_", "clone", "alias", "to", "_to_copy")


def inline(module: fx.GraphModule, constants: Mapping[str, Tensor]) -> None:
    """Replace the calls of regions by their operators, in place.

    Both branches of a condition are computed, and the condition selects. Of a constant condition only one branch remains.

    Args:
        module: The module of the graph.
        constants: Values of nodes of the graph that are constants, by name.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, HigherOrderOperator):
            continue
        names = [str(arg.target) for arg in node.args if isinstance(arg, fx.Node) and arg.op == "get_attr"]
        regions = [region for name in names if isinstance(region := getattr(module, name, None), fx.GraphModule)]
        if len(regions) < len(names):
            continue
        for region in regions:
            inline(region, constants)
        with graph.inserting_before(node):
            if str(node.target) == "cond":
                made = _selected(graph, node, regions, constants)
            elif len(regions) == 1:
                made = _copied(graph, regions[0], _given(node))
            else:
                continue
            if str(node.target) == "wrap_with_set_grad_enabled" and not node.args[0]:
                made = map_arg(made, lambda out: _called(graph, torch.ops.aten.detach.default, out))
        _replace(graph, node, made)


def constants_of(module: fx.GraphModule) -> dict[str, Tensor]:
    """The tensors that the code of a graph module reads and no state dict has, by the name of their node."""
    stored = module.state_dict().keys()
    read = {node.name: str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    found = {name: getattr(module, path, None) for name, path in read.items() if path not in stored}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _given(node: fx.Node) -> list[Any]:
    """The arguments of a region: those after it, but for its name."""
    place = next(i for i, arg in enumerate(node.args) if isinstance(arg, fx.Node) and arg.op == "get_attr")
    return [arg for arg in node.args[place + 1 :] if not isinstance(arg, str)]


def _copied(graph: fx.Graph, region: fx.GraphModule, given: Sequence[Any]) -> Any:
    """Copy the operators of a region into a graph. Returns the region's outputs there."""
    inputs = [node for node in region.graph.nodes if node.op == "placeholder"]
    found: dict[fx.Node, Any] = dict(zip(inputs, given, strict=True))
    for node in region.graph.nodes:
        if node.op == "output":
            return map_arg(node.args[0], found.__getitem__)
        if node.op != "placeholder":
            found[node] = graph.node_copy(node, found.__getitem__)
    raise AssertionError("a graph has an output")


def _selected(
    graph: fx.Graph, node: fx.Node, regions: Sequence[fx.GraphModule], constants: Mapping[str, Tensor]
) -> Any:
    """The outputs of a condition's branches, joined by a selection. Of a constant condition, its branch only."""
    condition, _, _, given = node.args
    known = constants.get(_origin(condition).name) if isinstance(condition, fx.Node) else condition
    if known is not None:
        return _copied(graph, regions[0 if bool(known) else 1], given)  # type: ignore[arg-type]
    first, second = (_copied(graph, region, given) for region in regions)  # type: ignore[arg-type]
    return tuple(
        _called(graph, torch.ops.aten.where.self, condition, one, other)  # type: ignore[arg-type]
        for one, other in zip(first, second, strict=True)
    )


def _origin(node: fx.Node) -> fx.Node:
    """The node that a value comes from, through copies of it."""
    while node.op == "call_function" and getattr(node.target, "_opname", "") in _SAME_VALUE:
        node = node.all_input_nodes[0]
    return node


def _called(graph: fx.Graph, target: Any, *args: fx.Node) -> fx.Node:
    """A call of an operator that returns a tensor like its last argument."""
    made = graph.call_function(target, args)
    made.meta = dict(args[-1].meta)
    return made


def _replace(graph: fx.Graph, node: fx.Node, made: Any) -> None:
    """Put the outputs of a region in place of its call, and erase that."""
    for user in list(node.users):
        if user.target is operator.getitem:
            user.replace_all_uses_with(made[user.args[1]])
            graph.erase_node(user)
    if node.users:
        node.replace_all_uses_with(made)
    regions = [arg for arg in node.all_input_nodes if arg.op == "get_attr"]
    graph.erase_node(node)
    for region in regions:
        if not region.users:
            graph.erase_node(region)
