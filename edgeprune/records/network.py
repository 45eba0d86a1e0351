"""Channel groups, layers and removable blocks of a network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgeprune.records.answer import Answer

# {group: remaining units}. It is 0 for the inner groups of a removed block.
Widths = Mapping[str, int]
# {parameter: {dimension: remaining indices, ascending}}. The indices are empty if all of the parameter is removed.
# A removed block is an entry without dimensions.
Recipe = Mapping[str, Mapping[int, tuple[int, ...]]]
LayerKind = Literal["conv", "conv_transpose", "linear", "matmul"]


@dataclass(frozen=True)
class Slot:
    """A dimension of a parameter that a group owns. Removing a unit removes the indices `indices[unit]`."""

    parameter: str
    dim: int
    indices: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed together, in `width` interchangeable units.

    Unit `u` owns `slot.indices[u]` of every slot. `locked` is the reason why no unit can be removed; None if units can be.
    `normalised` tells whether a mean or a normalisation is taken over the channels. After a cut it is taken over the others.
    """

    name: str
    width: int
    slots: tuple[Slot, ...]
    locked: str | None = None
    normalised: bool = False


@dataclass(frozen=True)
class Span:
    """The size of a channel dimension as a function of the widths: `fixed + Σ channels·Π width(group)`.

    A term has several groups if the channels are a product, such as heads × width.
    """

    fixed: int
    terms: tuple[tuple[tuple[str, ...], int], ...] = ()

    @property
    def groups(self) -> frozenset[str]:
        """The groups that the size depends on."""
        return frozenset(name for names, _ in self.terms for name in names)

    def size(self, widths: Widths) -> int:
        """Channels at these widths."""
        return self.fixed + sum(channels * math.prod(widths[name] for name in names) for names, channels in self.terms)


def output_dim(kind: LayerKind) -> int:
    """The dimension of a layer's weight that holds its output channels."""
    return 1 if kind in ("conv_transpose", "matmul") else 0


@dataclass(frozen=True)
class Layer:
    """A convolution, a linear layer or a matrix product, as the latency model sees it.

    Attributes:
        name: the layer's name in the model.
        kind: what it computes.
        weight: the name of its weight.
        inputs: its input channels.
        outputs: its output channels.
        positions: output positions of one forward pass, over batch and space.
        kernel: taps that each output position is computed from.
        per_group: input channels of each group of a grouped convolution. None for a dense layer.
        made_per_group: its output channels of each group.
        within: an inner group of the block that holds the layer. None if no block that can be removed holds it.
    """

    name: str
    kind: LayerKind
    weight: str
    inputs: Span
    outputs: Span
    positions: int
    kernel: int
    per_group: Span | None = None
    made_per_group: Span | None = None
    within: str | None = None

    @property
    def fan_in(self) -> Span:
        """The input channels that each output channel is computed from: those of its group in a grouped convolution."""
        return self.inputs if self.per_group is None else self.per_group

    @property
    def loses_whole_groups(self) -> bool:
        """Whether it is a grouped convolution whose groups keep all channels. Its latency depends on its outputs only."""
        return self.per_group is not None and not any(s.terms for s in (self.per_group, self.made_per_group) if s)

    @property
    def sides(self) -> tuple[Span, Span]:
        """The two channel counts that the latency depends on: the fan-in and the outputs.

        If the groups of a grouped convolution lose channels, these are all inputs and the outputs of one group. Runtimes
        compute group after group, and round up the outputs of each.
        """
        if self.made_per_group is None or self.loses_whole_groups:
            return self.fan_in, self.outputs
        return self.inputs, self.made_per_group

    def sizes(self, widths: Widths) -> tuple[int, int]:
        """`sides` at these widths; (0, 0) if the layer is in a removed block."""
        first, second = self.sides
        return (first.size(widths), second.size(widths)) if min(self.channels(widths)) else (0, 0)

    def convolution_groups(self, widths: Widths) -> int:
        """Groups of a convolution at these widths; 1 for a dense layer."""
        return self.inputs.size(widths) // self.fan_in.size(widths)

    def channels(self, widths: Widths) -> tuple[int, int]:
        """Fan-in and output channels at these widths; (0, 0) if the layer is in a removed block."""
        if self.within is not None and not widths[self.within]:
            return 0, 0
        return self.fan_in.size(widths), self.outputs.size(widths)

    def macs(self, widths: Widths) -> int:
        """Multiply-accumulates of one forward pass at these widths."""
        fan_in, outputs = self.channels(widths)
        return self.positions * self.kernel * fan_in * outputs


@dataclass(frozen=True)
class Block:
    """A module that adds to its input, so that it can be removed. It is removed if its inner groups keep no unit.

    Attributes:
        name: the module's name.
        groups: its inner groups, at least one. Their channels begin and end in the block.
        parameters: all parameters that are removed with it.
    """

    name: str
    groups: tuple[str, ...]
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Groups:
    """All channel groups, layers and removable blocks of a network.

    Attributes:
        network: the digest of the network's structure. Weights do not change it.
        groups: all groups, locked ones too.
        layers: in the order of execution.
        folds: (layer, the batch norm that can be folded into it).
        unknown_operators: operators without a rule. They lock the channels that reach them.
        blocks: the blocks that can be removed.
        operators: how many the traced graph has.
        form: what a cut gives: the user's "module" with smaller parameters, or its exported "graph", whose sizes follow.
    """

    network: str
    groups: tuple[Group, ...]
    layers: tuple[Layer, ...]
    folds: tuple[tuple[str, str], ...] = ()
    unknown_operators: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()
    operators: int = field(kw_only=True)
    form: Literal["module", "graph"] = "module"

    @property
    def block_of(self) -> dict[str, Block]:
        """{inner group: its block}."""
        return {group: block for block in self.blocks for group in block.groups}

    def removed(self, widths: Widths) -> tuple[Block, ...]:
        """The blocks that are removed at these widths."""
        return tuple(block for block in self.blocks if not any(widths[group] for group in block.groups))

    def singles(self, widths: Widths) -> tuple[str, ...]:
        """The groups that keep one unit of several at these widths."""
        return tuple(group.name for group in self.groups if widths[group.name] == 1 < group.width)

    @property
    def free(self) -> tuple[Group, ...]:
        """The groups that can be cut."""
        return tuple(group for group in self.groups if group.locked is None)

    def full(self) -> dict[str, int]:
        """The widths of the original network."""
        return {group.name: group.width for group in self.groups}

    def least(self) -> dict[str, int]:
        """The smallest possible widths: one unit in each free group, and every block removed."""
        inner = self.block_of
        return {g.name: g.width if g.locked else 0 if g.name in inner else 1 for g in self.groups}

    def macs(self, widths: Widths) -> int:
        """Multiply-accumulates of the convolutions and linear layers at these widths."""
        return sum(layer.macs(widths) for layer in self.layers)


@dataclass(frozen=True)
class SurveyedGroup:
    """A channel group in a survey.

    Attributes:
        name: the group.
        width: how many units it has.
        layers: the layers whose weights lose channels if the group is cut.
        macs: multiply-accumulates of these layers.
        locked: why no unit can be removed; None if units can be.
    """

    name: str
    width: int
    layers: tuple[str, ...]
    macs: int
    locked: str | None


@dataclass(frozen=True, repr=False)
class Survey(Answer):
    """The channels and blocks of a model that can be removed.

    Attributes:
        project: its name.
        macs: multiply-accumulates of the model.
        least_macs: multiply-accumulates at the smallest possible widths; see `Groups.least`.
        groups: all groups, locked ones too.
        blocks: the blocks that can be removed.
        unknown_operators: operators without a rule. They lock the channels that reach them.
    """

    project: str
    macs: int
    least_macs: int
    groups: tuple[SurveyedGroup, ...]
    blocks: tuple[str, ...]
    unknown_operators: tuple[str, ...]
