"""Numbers in a graph that the user's code computes from the batch size.

After `len(x)` or `int(x.shape[0])`, torch.export fixes the batch size. Exports with two batch sizes show which numbers follow
from it, since each is slope · batch + offset. These numbers become nodes, so the graph takes any batch size.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import cache
from itertools import zip_longest
from typing import Any

import torch
from torch import fx

from edgeprune.errors import CutError
from edgeprune.graph import places
from edgeprune.graph.regions import constants_of


def is_fixed(graph: fx.Graph) -> bool:
    """Whether the exporter fixed the batch size of an input."""
    sizes = [node.meta["val"].shape[0] for node in _inputs(graph)]
    return any(isinstance(size, int) or size.node.expr.is_number for size in sizes)


def generalise(module: fx.GraphModule, other: fx.GraphModule) -> None:
    """Make all numbers that follow from the batch size do so, in place.

    Args:
        module: A graph of the model. It has a fixed batch size.
        other: The graph of the same model for another batch size.

    Raises:
        CutError: The graphs differ in more than such numbers, as after a loop over the samples.
    """
    graph, pairs = module.graph, list(zip_longest(module.graph.nodes, other.graph.nodes))
    for node, twin in pairs:
        if node is None or twin is None or (node.op, node.target) != (twin.op, twin.target):
            raise _unlike(twin or node)
    twins = dict(pairs)
    theirs = constants_of(other)
    for name, value in constants_of(module).items():
        if name not in theirs or value.shape != theirs[name].shape or not torch.equal(value, theirs[name]):
            raise _unlike(next(node for node in graph.nodes if node.name == name))
    number = _numbers(graph, *(int(_inputs(each)[0].meta["val"].shape[0]) for each in (graph, other.graph)))
    for node, twin in pairs:
        try:
            node.args, node.kwargs = _merged((node.args, node.kwargs), (twin.args, twin.kwargs), twins, number)
        except ValueError:
            raise _unlike(node) from None


def _inputs(graph: fx.Graph) -> list[fx.Node]:
    return [n for n in graph.nodes if n.op == "placeholder" and isinstance(n.meta.get("val"), torch.Tensor)]


def _unlike(node: fx.Node) -> CutError:
    place = places.of_call(node)
    user = next((found for found in map(places.of_call, node.users) if found), "")  # a constant has no line
    return CutError(
        f"{place or user or node.name}: what the code computes depends on the batch size as a Python number;"
        " write it for all samples at once, and take sizes from x.shape"
    )


def _numbers(graph: fx.Graph, first: int, second: int) -> Callable[[int, int], fx.Node]:
    """A function of the two numbers at these batch sizes: the node that computes them from the batch size."""
    start, source = next(node for node in graph.nodes if node.op == "call_function"), _inputs(graph)[0]

    @cache
    def number(one: int, two: int) -> fx.Node:
        slope, rest = divmod(two - one, second - first)
        if rest:
            raise ValueError
        with graph.inserting_before(start):
            made = graph.call_function(torch.ops.aten.sym_size.int, (source, 0))
            made = made if slope == 1 else graph.call_function(operator.mul, (made, slope))
            offset = one - slope * first
            return graph.call_function(operator.add, (made, offset)) if offset else made

    return number


def _merged(one: Any, two: Any, twins: dict[fx.Node, fx.Node], number: Callable[[int, int], fx.Node]) -> Any:
    """The arguments of a node, with the numbers in which its twin differs computed. Raises `ValueError` for others."""
    if isinstance(one, fx.Node):
        if twins[one] is not two:
            raise ValueError
        return one
    if isinstance(one, tuple | list):
        parts = [_merged(a, b, twins, number) for a, b in zip(one, two, strict=True)]
        return tuple(parts) if isinstance(one, tuple) else parts
    if isinstance(one, dict):
        return {name: _merged(value, two[name], twins, number) for name, value in one.items()}
    if type(one) is type(two) is int and one != two:
        return number(one, two)
    if one != two:
        raise ValueError
    return one
