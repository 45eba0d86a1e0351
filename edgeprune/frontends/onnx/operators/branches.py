"""Control flow: a branch whose condition is a constant is part of the network. Nothing else can be cut."""

from __future__ import annotations

from collections.abc import Sequence

from edgeprune.frontends.onnx.build import Builder
from edgeprune.frontends.onnx.file import Node
from edgeprune.frontends.onnx.graph import Value
from edgeprune.frontends.onnx.operators.table import operator


@operator("If")
def branch(b: Builder, node: Node, condition: Value) -> Sequence[Value]:
    """The branch that is taken."""
    if condition.constant is None:
        raise b.error("chooses by values of the inputs; export the network without control flow")
    return b.inlined(node, node.attributes["then_branch" if b.scalar(condition) else "else_branch"])


@operator("Loop", "Scan", "SequenceAt", "SequenceConstruct", "ConcatFromSequence", "SplitToSequence", "Optional")
def refused(b: Builder, node: Node, *inputs: Value) -> Value:
    """Loops and sequences."""
    raise b.error("is control flow; export the network with its loops written out, and for fixed shapes")
