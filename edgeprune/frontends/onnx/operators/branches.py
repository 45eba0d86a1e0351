"""Control flow: what does not depend on the values of the inputs is part of the network. A loop is written out."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import torch

from edgeprune.frontends.onnx import functions
from edgeprune.frontends.onnx.build import Builder, FixedBatchError
from edgeprune.frontends.onnx.file import Node
from edgeprune.frontends.onnx.graph import Items, Value
from edgeprune.frontends.onnx.operators.table import operator

State = Value | Items


@operator("If")
def branch(b: Builder, node: Node, condition: Value) -> Sequence[State]:
    """The branch that is taken."""
    if condition.constant is None:
        raise b.error("chooses by values of the inputs; export the network without control flow")
    return b.inlined(node, node.attributes["then_branch" if b.scalar(condition) else "else_branch"])


@operator("Loop")
def loop(
    b: Builder, node: Node, count: Value | None = None, condition: Value | None = None, *state: State
) -> Sequence[State]:
    """As many passes as the file says. As in ONNX Runtime, the body may end it earlier."""
    body: onnx.GraphProto = node.attributes["body"]
    kept, passes = list(state), 0
    collected: list[list[State]] = [[] for _ in body.output[1 + len(kept) :]]
    going: State = condition or b.constant(torch.tensor(True))
    while (count is None or passes < _known(b, count)) and _known(b, going):
        going, *made = b.inlined(node, body, [b.constant(torch.tensor(passes)), going, *kept])
        kept, passes = made[: len(kept)], passes + 1
        for one, value in zip(collected, made[len(kept) :], strict=True):
            one.append(value)
    return [*kept, *_stacked(b, collected, [0] * len(collected))]


@operator("Scan")
def scan(b: Builder, node: Node, *given: Value) -> Sequence[State]:
    """A pass for each slice of the inputs."""
    body: onnx.GraphProto = node.attributes["body"]
    count = int(node.attributes["num_scan_inputs"])
    kept: list[State] = [*given[: len(given) - count]]
    scanned, outputs = given[len(given) - count :], len(body.output) - len(kept)
    axes, backwards = _each(node, "scan_input_axes", count), _each(node, "scan_input_directions", count)
    reversed_outputs = _each(node, "scan_output_directions", outputs)
    passes = scanned[0].shape[axes[0]]
    if any(fake.shape[axes[0]] != passes for fake in scanned[0].fakes):
        raise FixedBatchError(f"{node} goes through the samples")
    collected: list[list[State]] = [[] for _ in range(outputs)]
    for place in range(passes):
        slices = [
            b.call(functions.selected, x, axis % x.rank, passes - 1 - place if back else place)
            for x, axis, back in zip(scanned, axes, backwards, strict=True)
        ]
        found = b.inlined(node, body, [*kept, *slices])
        kept = found[: len(kept)]
        for one, value, back in zip(collected, found[len(kept) :], reversed_outputs, strict=True):
            one.insert(0 if back else len(one), value)
    return [*kept, *_stacked(b, collected, _each(node, "scan_output_axes", outputs))]


def _each(node: Node, name: str, count: int) -> list[int]:
    """An attribute with a number for each input or output; all are 0 if it is left out."""
    return [int(number) for number in node.attributes.get(name) or [0] * count]


def _known(b: Builder, value: State) -> int:
    """A number that decides how long a loop is, or which tensor of a sequence is taken."""
    if not isinstance(value, Value) or value.constant is None:
        raise b.error("depends on the values of the inputs; export the network with its loops written out")
    return int(b.scalar(value))


def _stacked(b: Builder, collected: Sequence[Sequence[State]], axes: Sequence[int]) -> list[Value]:
    """What the passes of a loop gave, as one tensor each."""
    if any(not each for each in collected):
        raise b.error("is a loop of no passes; export the network without it")
    return [b.call(torch.stack, list(each), axis) for each, axis in zip(collected, axes, strict=True)]


# ------------------------------------------------------------------------------------------------------ sequences


@operator("SequenceConstruct", "SequenceEmpty")
def construct(b: Builder, node: Node, *values: Value) -> Items:
    """A sequence of these tensors."""
    return Items(values)


@operator("SequenceInsert")
def insert(b: Builder, node: Node, items: Items, value: Value, place: Value | None = None) -> Items:
    """One more tensor, at the end if no place is given."""
    at = len(items.values) if place is None else _known(b, place)
    at += len(items.values) if at < 0 else 0
    return Items((*items.values[:at], value, *items.values[at:]))


@operator("SequenceErase")
def erase(b: Builder, node: Node, items: Items, place: Value | None = None) -> Items:
    """One tensor less, the last if no place is given."""
    at = (-1 if place is None else _known(b, place)) % len(items.values)
    return Items((*items.values[:at], *items.values[at + 1 :]))


@operator("SequenceAt")
def element(b: Builder, node: Node, items: Items, place: Value) -> Value:
    """One of the tensors."""
    return items.values[_known(b, place)]


@operator("SequenceLength")
def length(b: Builder, node: Node, items: Items) -> Value:
    """How many tensors there are."""
    return b.constant(torch.tensor(len(items.values)))


@operator("SplitToSequence")
def split(b: Builder, node: Node, x: Value, sizes: Value | None = None) -> Items:
    """Slices of one, or parts of these sizes."""
    axis = int(node.attributes.get("axis", 0)) % x.rank
    if sizes is None and not node.attributes.get("keepdims", 1):
        return Items(tuple(b.calls(torch.unbind, x, axis)))
    given = b.fixed(sizes) if sizes is not None else [1]
    return Items(tuple(b.calls(torch.split, x, given[0] if sizes is None or sizes.rank == 0 else given, axis)))


@operator("ConcatFromSequence")
def concatenate(b: Builder, node: Node, items: Items) -> Value:
    """The tensors as one."""
    target = torch.stack if node.attributes.get("new_axis", 0) else torch.cat
    return b.call(target, list(items.values), int(node.attributes["axis"]))


# ------------------------------------------------------------------------------------------------------ refused


@operator("Optional", "OptionalGetElement", "OptionalHasElement", "SequenceMap")
def refused(b: Builder, node: Node, *inputs: Value) -> Value:
    """What is no tensor."""
    raise b.error("is no operator on tensors; export the network for fixed shapes, without optional inputs")


@operator("NonMaxSuppression", "RoiAlign", "MaxRoiPool", "Unique")
def chosen(b: Builder, node: Node, *inputs: Value) -> Value:
    """What follows from a choice of boxes or values."""
    raise b.error("chooses by values of the inputs; export the network without it, such as without its post-processing")


@operator("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")
def drawn(b: Builder, node: Node, *inputs: Value) -> Value:
    """Random numbers."""
    raise b.error("is random; export the network in eval mode, or with the random numbers as an input")
