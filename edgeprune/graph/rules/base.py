"""Shared by all rules: an operator call as a rule sees it, the registry of rules, and traced layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import fx

from edgeprune.errors import UsageError
from edgeprune.graph import places
from edgeprune.graph.labels import Axes, Axis, Labels, has_labels, none
from edgeprune.records import LayerKind

Value = Axes | list[Axes]


@dataclass(frozen=True)
class Geometry:
    """The work of a layer for one pair of an input and an output channel.

    `positions` counts output positions (batch and space), each computed from `kernel` taps. `per_group` and `made_per_group`
    hold the labels of the input and output channels of one convolution group, or None for a dense layer. `rows` are labels
    of positions: if they can be cut, a product mixes positions, and is no layer.
    """

    positions: int
    kernel: int = 1
    per_group: Axis | None = None
    made_per_group: Axis | None = None
    rows: Axes = field(default_factory=list)


@dataclass(frozen=True)
class TracedLayer:
    """A layer of the graph, with the labels of its channels. `weight` is the canonical name of its weight."""

    name: str
    kind: LayerKind
    weight: str
    inputs: Axis
    outputs: Axis
    geometry: Geometry


@dataclass(frozen=True)
class Size:
    """A constant of the graph that counts channels: an argument of a call, or one number of it, and the labels it counts."""

    node: str
    argument: str
    place: int | None
    counted: Axis


@dataclass(frozen=True)
class Statistic:
    """A reduction over channels: the call, its argument that is reduced, and the labels of each dimension that it reduces.

    It is `rescaled` if its result depends on the number of channels, as a mean does and a sum of zeros does not.
    """

    node: str
    argument: str
    axes: Mapping[int, Axis]
    rescaled: bool


@dataclass
class Call:
    """One operator call as a rule sees it.

    `args` are the arguments by name, `values` the labels of all tensors so far, `parameters` the names of parameter nodes.
    `fed` holds the nodes that depend on an input. Rules add to `layers`, to `statistics` and to `unknown`, the operators
    without a rule.
    """

    labels: Labels
    node: fx.Node
    args: dict[str, Any]
    values: dict[fx.Node, Value]
    parameters: dict[fx.Node, str]
    layers: list[TracedLayer]
    unknown: dict[str, None]
    sizes: list[Size] | None = None
    fed: Set[fx.Node] = frozenset()
    statistics: list[Statistic] = field(default_factory=list)

    def reduces(self, argument: str, dims: Iterable[int], rescaled: bool) -> None:
        """Note that the call takes a statistic over these dimensions. After a cut it is taken over what remains.

        A mean of a weight locks them instead: in the graph, the weight is a parameter (see `graph.constants`).
        """
        axes = {dim: axis for dim in dims if has_labels(axis := self.axes(argument)[dim])}
        if axes and self.node not in self.fed and rescaled:
            self.lock([*axes.values()], "a weight is normalised over these channels")
        elif axes and self.node in self.fed:
            self.statistics.append(Statistic(self.node.name, argument, axes, rescaled))

    @property
    def editable(self) -> bool:
        """Whether constants that are sizes follow a cut. If not, they are in the user's code."""
        return self.sizes is not None

    def sized(self, argument: str, place: int | None, counted: Axis) -> None:
        """Note that an argument, or the number at `place` of it, counts the channels with these labels."""
        if self.sizes is None or not has_labels(counted):
            return
        given = self.args[argument] if place is None else self.args[argument][place]
        if isinstance(given, fx.Node):
            self.lock([counted], "the model computes this size from the size of the batch")
        elif given != -1:
            self.sizes.append(Size(self.node.name, argument, place, counted))

    @property
    def name(self) -> str:
        """The operator's name without its overload: `conv2d`, `add_`."""
        return getattr(self.node.target, "_opname", str(self.node.target))

    @property
    def reason(self) -> str:
        """The reason of a lock, where a rule gives no other."""
        return "it aligns these channels with a tensor of fixed size; make that tensor a parameter to cut both"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the result."""
        return shape_of(self.node)

    def shape_at(self, place: int) -> tuple[int, ...]:
        """The shape of one of several results."""
        return tuple(self.node.meta["val"][place].shape)

    def axes(self, name: str) -> Axes:
        """The labels of a tensor argument, one axis per dimension."""
        value = self.values[self.args[name]]
        return value  # type: ignore[return-value]

    def dim(self, name: str, rank: int) -> int:
        """A dimension argument, counted from the first of `rank`."""
        return int(self.args[name]) % rank

    def lock(self, axes: Axes, reason: str | None = None) -> None:
        """Lock all labels of these axes."""
        for axis in axes:
            self.labels.lock(axis.tolist(), reason or self.reason)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's tensor. Raises `UsageError` for a dynamic one."""
    shape = node.meta["val"].shape
    if not all(isinstance(size, int) for size in shape):
        place = places.of_call(node) or node.name
        raise UsageError(
            f"{place}: the result of {node.name} has a dynamic shape, {tuple(shape)}: it depends on the values of a tensor;"
            " use torch.where or a fixed number of elements, and give fixed-size example inputs"
        )
    return tuple(shape)


Rule = Callable[[Call], Value]
R = TypeVar("R", bound=Rule)
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[R], R]:
    """Register the rule of the ATen operators with these names, and of their in-place forms."""

    def register(function: R) -> R:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def bind(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by their name in the operator's schema, with defaults."""
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
    """Handle an operator without a rule: lock all labels that reach it. If there are any, report the operator."""
    for node in call.node.all_input_nodes:
        value = call.values.get(node, [])
        for axes in value if value and isinstance(value[0], list) else [value]:
            call.lock(axes, "the operator has no rule; replace it by one of docs/operators.md")  # type: ignore[arg-type]
            if any(has_labels(axis) for axis in axes):  # type: ignore[arg-type]
                call.unknown[str(call.node.target)] = None
    result = call.node.meta["val"]
    if isinstance(result, torch.Tensor):
        return [none(size) for size in result.shape]
    return [[none(size) for size in part.shape] if isinstance(part, torch.Tensor) else [] for part in result]


def broadcast(call: Call, tensors: Sequence[Axes]) -> Axes:
    """Align dimensions from the last. A dimension of size one is repeated."""
    rank = max(map(len, tensors))
    result = []
    for place in range(-rank, 0):
        axes = [axes[place] for axes in tensors if len(axes) >= -place]
        size = max(map(len, axes))
        first, *others = [axis for axis in axes if len(axis) == size]
        for other in others:
            first = call.labels.unite(first, other, call.reason)
        result.append(first)
    return result


def add_layer(call: Call, kind: LayerKind, inputs: Axis, outputs: Axis, geometry: Geometry, weight: Any = None) -> None:
    """Add a layer of the graph. Its weight is the argument of that name, or the node `weight`.

    A weight that is computed from parameters has the name of the largest one. With a weight that depends on an input, it is
    no layer.
    """
    name = _name_of(call, call.args["weight"] if weight is None else weight)
    if name is not None:
        path = name.rpartition(".")[0] or name
        call.layers.append(TracedLayer(path, kind, name, inputs, outputs, geometry))


def _name_of(call: Call, weight: fx.Node) -> str | None:
    """The name of a weight, or of the largest parameter behind it. None if it depends on an input or on no parameter."""
    if weight in call.fed:
        return None
    behind, found = [weight], set[fx.Node]()
    while behind:
        node = behind.pop()
        if node not in found:
            found.add(node)
            behind += node.all_input_nodes if node not in call.parameters else []
    named = {call.parameters[node]: node.meta["val"].numel() for node in found if node in call.parameters}
    return largest(named)


def largest(elements: Mapping[str, int]) -> str | None:
    """The name of the parameter with most elements, which a computed weight is named after. None if there are none."""
    return max(elements, key=lambda name: (elements[name], name), default=None)
