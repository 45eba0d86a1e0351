"""The table of operators: a function for each, which adds the steps of one node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from edgeprune.frontends.onnx.build import Builder, FixedBatchError, Made
from edgeprune.frontends.onnx.file import Node
from edgeprune.frontends.onnx.graph import Value

Operator = Callable[..., Made]  # (builder, node, *inputs); an input that is left out is None
OPERATORS: dict[str, Operator] = {}


def operator(*names: str) -> Callable[[Operator], Operator]:
    """Enter a function in the table under these names of operators."""

    def entered(function: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return entered


def text(node: Node, name: str, default: str = "") -> str:
    """An attribute that is a text."""
    value: Any = node.attributes.get(name, default)
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


def axis_of(node: Node, value: Value, default: int) -> int:
    """The attribute `axis`, counted from the first dimension."""
    return int(node.attributes.get("axis", default)) % max(value.rank, 1)


def numbers_of(b: Builder, node: Node, value: Value | None, name: str) -> Value:
    """Numbers from an input, or in earlier opsets from an attribute of this name."""
    return value if value is not None else b.constant(torch.tensor(node.attributes[name]))


def axes_of(b: Builder, node: Node, given: Value | None, name: str = "axes") -> list[int] | None:
    """Axes from an input, or in earlier opsets from an attribute; None if there are none."""
    if given is not None:
        return b.fixed(given)
    found = node.attributes.get(name)
    return None if found is None else [int(axis) for axis in found]


def require_whole(b: Builder, lengths: Value, steps: Sequence[int]) -> None:
    """Raises an error unless all sequences have all steps, for each batch size."""
    whole = [set(each) == {most} for each, most in zip(b.ints(lengths), steps, strict=True)]
    if not whole[0]:
        raise b.error("has sequences of unequal length, which has no converter")
    if not all(whole):
        raise FixedBatchError(f"{b.node} fixes the number of steps")
