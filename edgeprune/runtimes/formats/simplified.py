"""A network's exported graph with less for a converter to get wrong: stored constants, and no needless expansions."""

from __future__ import annotations

import copy
import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from edgeprune.graph.trace import exported

BROADCASTING = {getattr(torch.ops.aten, name).Tensor for name in ("add", "sub", "mul", "div")}


def simplified(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """Export a network, store its constants, and drop expansions before operators that broadcast anyway.

    A constant is a tensor that follows from neither an input nor a stored parameter. Position embeddings are an example.
    They are often computed in double precision. litert-torch confuses the dimensions of images with expansions.

    Raises:
        UsageError: The model cannot be exported.
    """
    program = exported(copy.deepcopy(model), inputs).run_decompositions({})  # so that no operation is in place
    module: Any = program.module(check_guards=False)
    network = fx.GraphModule(module, module.graph)
    _store_constants(network, model.state_dict().keys())
    _drop_expansions(network.graph)
    network.graph.eliminate_dead_code()
    network.recompile()
    return network.eval()


def _store_constants(network: fx.GraphModule, stored: Collection[str]) -> None:
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in network.graph.nodes:
            if node.op == "get_attr" and node.target not in stored:
                values[node] = operator.attrgetter(str(node.target))(network)
            elif _is_computed(node) and all(source in values for source in node.all_input_nodes):
                args, named = (map_arg(given, values.__getitem__) for given in (node.args, node.kwargs))
                values[node] = node.target(*args, **named)
    for number, (node, value) in enumerate(values.items()):
        if node.op == "call_function" and isinstance(value, Tensor) and any(user not in values for user in node.users):
            network.register_buffer(f"stored_constant_{number}", value.clone(), persistent=False)
            with network.graph.inserting_before(node):
                node.replace_all_uses_with(network.graph.get_attr(f"stored_constant_{number}"))


def _drop_expansions(graph: fx.Graph) -> None:
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.expand.default):
        for user in [user for user in node.users if _broadcasts(user, node)]:
            user.replace_input_with(node, node.args[0])


def _broadcasts(user: fx.Node, expanded: fx.Node) -> bool:
    """Whether an operator expands its input itself, since another input has the expanded shape."""
    others = [node for node in user.all_input_nodes if node is not expanded]
    return user.target in BROADCASTING and any(
        node.meta["val"].shape == user.meta["val"].shape for node in others if "val" in node.meta
    )


def _is_computed(node: fx.Node) -> bool:
    """Whether a call gives the same result each time, and changes nothing."""
    if isinstance(node.target, torch._ops.OpOverload):
        return not node.target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in node.target.tags
    return node.op == "call_function" and node.target is operator.getitem
