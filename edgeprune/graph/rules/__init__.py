"""Where labels go: one rule an operator. Pure; knows ATen's operators and nothing of groups.

A rule unites labels that must go together and locks those that must stay: outputs of the model, statistics over channels,
whatever reaches an operator without a rule. A new operator is one function in the room that it belongs to, and a network in
tests/nets.py that uses it.
"""

from __future__ import annotations

import operator

import torch

from edgeprune.graph.labels import none
from edgeprune.graph.rules import layers, pointwise, products, shapes  # each registers its own
from edgeprune.graph.rules.base import RULES, Call, Site, Value, bind, shape_of, unknown

__all__ = ["RULES", "Call", "Site", "Value", "apply", "bind", "layers", "pointwise", "products", "shape_of", "shapes"]


def apply(call: Call) -> Value:
    """The labels of what a call returns. In-place forms follow the rule of their operator."""
    if call.node.target is operator.getitem:
        source, index = call.node.args
        return call.values[source][index]  # type: ignore[index, return-value]
    made = call.node.meta.get("val")
    if not isinstance(made, torch.Tensor | tuple | list):  # a number, or an assertion beside a change of type
        return []
    found = RULES.get(call.name) or RULES.get(call.name.removesuffix("_"))
    if found is not None:
        return found(call)
    if not call.node.all_input_nodes:  # made on the spot: a constant
        return [none(size) for size in call.shape]
    return unknown(call)
