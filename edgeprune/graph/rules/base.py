"""What rules share: an operator's call as a rule sees it, and the register."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from edgeprune.errors import UsageError
from edgeprune.graph.labels import Axes, Axis, Labels, has_labels, none

Value = Axes | list[Axes]


@dataclass
class Site:
    """A layer as met in the graph, with the labels of its channels."""

    name: str
    kind: str
    weight: str
    inputs: Axis
    outputs: Axis
    positions: int
    kernel: int
    per_group: int | None


@dataclass
class Call:
    """One operator call as a rule sees it: arguments by name, labels of the tensors, shapes."""

    labels: Labels
    node: fx.Node
    args: dict[str, Any]
    values: dict[fx.Node, Value]
    parameters: dict[fx.Node, str]
    sites: list[Site]
    unknown: dict[str, None]

    @property
    def name(self) -> str:
        """The operator's name without its overload: `conv2d`, `add_`."""
        return getattr(self.node.target, "_opname", str(self.node.target))

    @property
    def why(self) -> str:
        return f"{self.node.target} ties it to an input, a constant or space"

    @property
    def shape(self) -> tuple[int, ...]:
        return shape_of(self.node)

    def shape_at(self, place: int) -> tuple[int, ...]:
        """The shape of one of several results."""
        return tuple(self.node.meta["val"][place].shape)

    def axes(self, name: str) -> Axes:
        value = self.values[self.args[name]]
        return value  # type: ignore[return-value]

    def dim(self, name: str, rank: int) -> int:
        return int(self.args[name]) % rank

    def lock(self, axes: Axes, reason: str | None = None) -> None:
        for axis in axes:
            self.labels.lock(axis.tolist(), reason or self.why)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's tensor; a dynamic one is refused."""
    shape = node.meta["val"].shape
    if not all(isinstance(size, int) for size in shape):
        raise UsageError(
            f"the model has a dynamic shape at {node.name}: {tuple(shape)}; give fixed-size example inputs"
        )
    return tuple(shape)


Rule = Callable[[Call], Value]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule of the ATen operators of these names (in-place forms included)."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def bind(node: fx.Node) -> dict[str, Any]:
    """Arguments by their name in the operator's schema, defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {str(i): argument for i, argument in enumerate(node.args)}
    bound: dict[str, Any] = {}
    for i, argument in enumerate(schema.arguments):
        if i < len(node.args):
            bound[argument.name] = node.args[i]
        elif argument.name in node.kwargs:
            bound[argument.name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            bound[argument.name] = argument.default_value
    return bound


def unknown(call: Call) -> Value:
    """An operator without a rule: whatever reaches it is locked, and it is named where that is anything."""
    for node in call.node.all_input_nodes:
        value = call.values.get(node, [])
        for axes in value if value and isinstance(value[0], list) else [value]:
            call.lock(axes, f"{call.node.target} has no rule")  # type: ignore[arg-type]
            if any(has_labels(axis) for axis in axes):  # type: ignore[arg-type]
                call.unknown[str(call.node.target)] = None
    result = call.node.meta["val"]
    if isinstance(result, torch.Tensor):
        return [none(size) for size in result.shape]
    return [[none(size) for size in part.shape] if isinstance(part, torch.Tensor) else [] for part in result]


def broadcast(call: Call, tensors: Sequence[Axes]) -> Axes:
    """Dimensions are aligned from the last; those of size one are repeated."""
    rank = max(map(len, tensors))
    result = []
    for place in range(-rank, 0):
        axes = [axes[place] for axes in tensors if len(axes) >= -place]
        size = max(map(len, axes))
        first, *others = [axis for axis in axes if len(axis) == size]
        for other in others:
            first = call.labels.unite(first, other, call.why)
        result.append(first)
    return result


def site(
    call: Call,
    kind: str,
    inputs: Axis,
    outputs: Axis,
    positions: int,
    kernel: int = 1,
    per_group: int | None = None,
    weight: Any = None,
) -> None:
    """Note a layer: `positions` at which it works, `kernel` taps, inputs `per_group` where not all are read by each output."""
    weight = call.args["weight"] if weight is None else weight
    name = call.parameters.get(weight)
    if name is None:
        return  # a computed weight, such as a normed one, is no layer of ours: it counts for nothing in time and work
    path = name.rpartition(".")[0] or name
    call.sites.append(Site(path, kind, name, inputs, outputs, positions, kernel, per_group))
