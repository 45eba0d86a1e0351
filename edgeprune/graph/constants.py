"""Weights that a graph computes from parameters only. They become parameters, so that their layers can be cut."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from edgeprune.graph.rules import bind
from edgeprune.graph.rules.base import largest

_LAYERS = {f"{kind}{n}d" for kind in ("conv", "conv_transpose") for n in (1, 2, 3)} | {"linear"}


def bake(network: fx.GraphModule) -> None:
    """Replace the computed weights of layers by their values, in place.

    A value takes the place of the largest parameter behind it, which must have no other use. Other parameters without
    another use are removed. A weight that is only a view of one parameter is not replaced.
    """
    graph, fed = network.graph, set[fx.Node]()
    for node in graph.nodes:
        if node.op == "placeholder" or not fed.isdisjoint(node.all_input_nodes):
            fed.add(node)
    for layer in [node for node in graph.nodes if node in fed and getattr(node.target, "_opname", "") in _LAYERS]:
        weight = bind(layer)["weight"]
        if weight.op == "call_function" and weight not in fed:
            _bake(network, weight, fed)


def _bake(network: fx.GraphModule, weight: fx.Node, fed: set[fx.Node]) -> None:
    behind = _behind(weight)
    parameters = {
        str(node.target): value for node in behind if isinstance(value := _value(network, node), nn.Parameter)
    }
    name = largest({name: parameter.numel() for name, parameter in parameters.items()})
    if name is None or (len(parameters) == 1 and parameters[name].shape != weight.meta["val"].shape):
        return
    unused = {str(node.target) for node in behind if node.op == "get_attr" and _reached(node, fed) == {weight}}
    if name not in unused:
        return
    with torch.no_grad():
        value = _computed(network, weight)
    trained = any(parameter.requires_grad for parameter in parameters.values())
    for each in unused & parameters.keys():
        path, _, own = each.rpartition(".")
        owner = network.get_submodule(path)
        if each == name:
            owner._parameters[own] = nn.Parameter(value.detach().clone(), requires_grad=trained)
        else:
            del owner._parameters[own]
    with network.graph.inserting_before(weight):
        made = network.graph.get_attr(name)
    made.meta = {"val": weight.meta["val"]}
    weight.replace_all_uses_with(made)
    for node in [node for node in reversed(network.graph.nodes) if node in behind]:
        if not node.users:
            network.graph.erase_node(node)


def _behind(node: fx.Node) -> dict[fx.Node, None]:
    """A node and all that it is computed from."""
    found, todo = dict[fx.Node, None](), [node]
    while todo:
        one = todo.pop()
        if one not in found:
            found[one] = None
            todo += one.all_input_nodes
    return found


def _reached(source: fx.Node, fed: set[fx.Node]) -> set[fx.Node]:
    """The constants that are computed from a parameter, itself too, and that a node which depends on an input reads."""
    found, todo = set[fx.Node](), [source]
    while todo:
        node = todo.pop()
        if any(user in fed or user.op == "output" for user in node.users):
            found.add(node)
        todo += [user for user in node.users if user not in fed and user.op != "output"]
    return found


def _computed(network: fx.GraphModule, node: fx.Node) -> Tensor:
    if node.op == "get_attr":
        return _value(network, node)  # type: ignore[no-any-return]
    args, kwargs = map_arg((node.args, node.kwargs), lambda one: _computed(network, one))
    found: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
    return found


def _value(network: fx.GraphModule, node: fx.Node) -> Any:
    return operator.attrgetter(str(node.target))(network) if node.op == "get_attr" else None
