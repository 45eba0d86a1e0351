"""The tensors between layers: which live at the same time, and how many bytes they take."""

from __future__ import annotations

from torch import Tensor, nn

from edgeprune.graph.counting import moments
from edgeprune.graph.editable import GraphNetwork
from edgeprune.graph.trace import called, traced_program
from edgeprune.network.attention import opened
from edgeprune.records import Groups, Layer


def live(model: nn.Module, groups: Groups, inputs: tuple[Tensor, ...]) -> tuple[tuple[Layer, ...], ...]:
    """The sets of tensors that live at the same time in one call; see `graph.counting.moments`.

    Args:
        model: The network in the form that its groups are cut in.
        groups: Its channel groups.
        inputs: Example inputs of fixed shape.
    """
    if isinstance(model, GraphNetwork):
        return moments(groups, model.graph, model.exported_from.traced)
    program, traced = traced_program(called(opened(model), inputs), inputs)
    return moments(groups, program.graph, traced)


def peak_bytes(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """The most bytes that live at the same time in one call of a network, in torch's types."""
    nothing = Groups("", (), (), operators=0)
    plain = opened(model)
    program, traced = traced_program(called(plain, inputs), inputs)
    return max(sum(layer.macs({}) for layer in layers) for layers in moments(nothing, program.graph, traced))
