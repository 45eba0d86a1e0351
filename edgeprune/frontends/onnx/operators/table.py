"""The table of operators: a function for each, which adds the steps of one node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeprune.frontends.onnx.build import Builder, Made
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


def axes_of(b: Builder, node: Node, given: Value | None, name: str = "axes") -> list[int] | None:
    """Axes from an input, or in earlier opsets from an attribute; None if there are none."""
    if given is not None:
        return b.fixed(given)
    found = node.attributes.get(name)
    return None if found is None else [int(axis) for axis in found]
