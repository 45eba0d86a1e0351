"""Count parameters and live tensors as functions of the widths; no I/O.

Each parameter, and each tensor between layers, becomes a `Layer` whose multiply-accumulates are its numbers or its bytes. So
they are added up, and put into the program of a plan, like the multiply-accumulates of the layers.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from edgeprune.graph.labels import Axis
from edgeprune.graph.trace import Trace, names_of
from edgeprune.records import Groups, Layer, Span, Widths, output_dim


def parameters(groups: Groups, model: nn.Module) -> tuple[Layer, ...]:
    """Each parameter of a network as a layer whose multiply-accumulates are its numbers. Shared ones count once.

    Args:
        groups: The channel groups.
        model: The network in the form that is cut. Batch norms may be folded into its layers.
    """
    spans = _spans(groups)
    inside = {parameter: block.groups[0] for block in groups.blocks for parameter in block.parameters}
    for layer in groups.layers:  # folding adds biases, which are cut like the outputs of their layer
        bias, outputs = layer.weight.removesuffix("weight") + "bias", (layer.weight, output_dim(layer.kind))
        if outputs in spans:
            spans.setdefault((bias, 0), spans[outputs])
        if layer.within is not None:
            inside.setdefault(bias, layer.within)
    full, layers = groups.full(), []
    for name, parameter in model.named_parameters():
        sizes = [spans.get((name, dim), Span(size)) for dim, size in enumerate(parameter.shape)]
        layers.append(replace(_product(name, sizes, full), within=inside.get(name)))
    return tuple(layers)


def _spans(groups: Groups) -> dict[tuple[str, int], Span]:
    """{(parameter, dimension): its size as a function of the widths}. An index of several groups is a product of them."""
    free = {group.name: group.width for group in groups.free}
    owners: dict[tuple[str, int], dict[int, list[str]]] = {}
    for group in groups.groups:
        for slot in group.slots:
            own = owners.setdefault((slot.parameter, slot.dim), {})
            for index in (i for unit in slot.indices for i in unit):
                own.setdefault(index, []).append(group.name)
    return {place: span_of([tuple(names) for names in own.values()], len(own), free) for place, own in owners.items()}


def span_of(owners: Sequence[tuple[str, ...]], size: int, free: Mapping[str, int]) -> Span:
    """The size of a dimension, from the groups that own each index. `free` are the widths of groups that can be cut."""
    counts = Counter(tuple(name for name in names if name in free) for names in owners)
    units = {names: math.prod(free[name] for name in names) for names in counts}
    terms = tuple((names, count // units[names]) for names, count in counts.items() if names)
    return Span(size - sum(count * units[names] for names, count in terms), terms)


def _product(name: str, sizes: Sequence[Span], full: Widths, each: int = 1) -> Layer:
    """A product of sizes as a layer. Two of them may vary; any other one counts as large as it was."""
    varying = [size for size in sizes if size.terms]
    others = [size.size(full) for size in [*(size for size in sizes if not size.terms), *varying[2:]]]
    one, other = [*varying[:2], Span(1), Span(1)][:2]
    return Layer(name, "linear", name, one, other, each * math.prod(others), 1)


# ------------------------------------------------------------------------------------------------ live tensors


@dataclass
class _Buffer:
    """Memory of the tensors that share it: in which calls it lives, and its parts as layers that count bytes."""

    first: int
    last: int
    parts: list[Layer]
    reusable: bool


def moments(groups: Groups, graph: fx.Graph, traced: Trace) -> tuple[tuple[Layer, ...], ...]:
    """The sets of tensors that live at the same time, as layers whose multiply-accumulates are bytes.

    A tensor lives from the call that computes it to the last call that reads it. A view takes no memory. An element-wise
    operator writes over an input that nothing reads later, as runtimes do. Parameters do not count.

    Args:
        groups: The channel groups.
        graph: The network's graph in the form that is cut.
        traced: The labels of its tensors.

    Returns:
        The largest sets: none is part of another one.
    """
    buffers = _buffers(groups, graph, traced)
    ends = sorted({buffer.last for buffer in buffers})
    live = [frozenset(i for i, b in enumerate(buffers) if b.first <= at <= b.last) for at in ends]
    largest = [one for one in dict.fromkeys(live) if not any(one < other for other in live)]
    return tuple(tuple(layer for i in sorted(one) for layer in buffers[i].parts) for one in largest)


def _buffers(groups: Groups, graph: fx.Graph, traced: Trace) -> list[_Buffer]:
    owner_of, free = names_of(traced), {group.name: group.width for group in groups.free}
    full = groups.full()

    def part(node: fx.Node, axes: Sequence[Axis], value: torch.Tensor) -> Layer:
        owners = ([tuple(owner_of.get(r, "") for r in roots) for roots in traced.labels.factors(axis)] for axis in axes)
        sizes = [span_of(own, len(own), free) for own in owners]
        return _product(node.name, sizes, full, value.element_size())

    order = {node: place for place, node in enumerate(graph.nodes)}
    of: dict[fx.Node, _Buffer] = {}
    for node, place in order.items():
        if node not in traced.fed or node not in traced.values or node.op == "output":
            continue
        last = max((order[user] for user in node.users), default=place)
        source = next((of[one] for one in node.all_input_nodes if one in of), None)
        if source is not None and _is_view(node):
            source.last = max(source.last, last)
            of[node] = source
            continue
        value = node.meta["val"]
        values, axes = (
            (value, traced.values[node]) if isinstance(value, tuple | list) else ([value], [traced.values[node]])
        )
        pairs = zip(values, axes, strict=True)
        parts = [part(node, own, one) for one, own in pairs if isinstance(one, torch.Tensor)]  # type: ignore[arg-type]
        of[node] = _Buffer(place, last, parts, node.op == "call_function")
    _overwrite(order, of)
    return list({id(buffer): buffer for buffer in of.values()}.values())


def _overwrite(order: Mapping[fx.Node, int], of: dict[fx.Node, _Buffer]) -> None:
    """Let element-wise operators write over an input that nothing reads later."""
    for node, place in order.items():
        own = of.get(node)
        if own is None or own.first != place or not _is_elementwise(node):
            continue
        sizes = [(p.inputs, p.outputs, p.positions) for p in own.parts]
        for given in node.all_input_nodes:
            other = of.get(given)
            if other is None or not other.reusable or other.last != place:
                continue
            if [(p.inputs, p.outputs, p.positions) for p in other.parts] == sizes:
                other.last = own.last
                of |= {one: other for one, buffer in of.items() if buffer is own}
                break


def _is_view(node: fx.Node) -> bool:
    """Whether the result shares the memory of the first tensor that it reads. An operator in place does."""
    if node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(one.alias_info is not None for one in schema.returns)


def _is_elementwise(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return torch.Tag.pointwise in tags or getattr(node.target, "_opname", "") in ("batch_norm", "dropout")
