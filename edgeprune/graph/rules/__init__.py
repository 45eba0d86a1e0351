"""Propagate labels through operators: one rule for each operator. Pure; knows ATen's operators, not groups.

A rule unites labels that must be removed together. It locks labels that must be kept, such as channels that a statistic
is taken over. Labels that reach an operator without a rule are locked. To support a new operator, add one function to
the module that fits, and a network that uses it to tests/nets.py.
"""

from __future__ import annotations

import operator

import torch

from edgeprune.graph.labels import none
from edgeprune.graph.rules import indexing, layers, pointwise, products, shapes  # each registers its own
from edgeprune.graph.rules.base import RULES, Call, Size, Statistic, TracedLayer, Value, bind, shape_of, unknown

__all__ = ["RULES", "Call", "Size", "Statistic", "TracedLayer", "Value", "apply", "bind", "indexing", "layers", "pointwise",
           "products", "shape_of", "shapes"]  # fmt: skip


def apply(call: Call) -> Value:
    """The labels of what a call returns. In-place operators use the rule of their out-of-place form."""
    if call.node.target is operator.getitem:
        source, index = call.node.args
        return call.values[source][index]  # type: ignore[index, return-value]
    made = call.node.meta.get("val")
    if not isinstance(made, torch.Tensor | tuple | list):  # a number, or an assertion beside a change of type
        return []
    found = RULES.get(call.name) or RULES.get(call.name.removesuffix("_"))
    if found is not None:
        return found(call)
    if not call.node.all_input_nodes:  # a constant
        return [none(size) for size in call.shape]
    return unknown(call)
