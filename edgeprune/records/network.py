"""Channel groups, layers and removable blocks of a network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

Widths = Mapping[str, int]  # group name -> units kept; none in the inner groups of a block that is removed


Recipe = Mapping[
    str, Mapping[int, tuple[int, ...]]
]  # parameter -> dim -> indices kept, ascending; none of what is removed


@dataclass(frozen=True)
class Slot:
    """One dimension of one parameter that a group owns: `indices[unit]` are the indices that go with the unit."""

    parameter: str
    dim: int
    indices: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Group:
    """Channels that live or die together, in `width` interchangeable units.

    Unit `u` owns `slot.indices[u]` of every slot. `locked` says why nothing may be removed, or is None.
    """

    name: str
    width: int
    slots: tuple[Slot, ...]
    locked: str | None = None


@dataclass(frozen=True)
class Span:
    """The size of a channel dimension as a function of the widths: `fixed + Σ channels·Π width(group)`.

    A term has one group, or several where the channels are seen as a product, such as heads × width.
    """

    fixed: int
    terms: tuple[tuple[tuple[str, ...], int], ...] = ()

    @property
    def groups(self) -> frozenset[str]:
        """The groups that the size depends on."""
        return frozenset(name for names, _ in self.terms for name in names)

    def size(self, widths: Widths) -> int:
        """Channels at these widths (units kept a group)."""
        return self.fixed + sum(channels * math.prod(widths[name] for name in names) for names, channels in self.terms)


def output_dim(kind: str) -> int:
    """The dimension of a layer's weight in which its outputs are."""
    return 1 if kind in ("conv_transpose", "matmul") else 0


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer as the latency model sees it.

    One forward pass computes `positions` output positions (batch and space), each from `kernel` taps. `per_group` is
    None for a dense layer; for a grouped convolution it is the constant number of input channels a convolution group
    reads, and inputs and outputs shrink together. `within` is an inner group of the block that the layer goes with.
    """

    name: str
    kind: str
    weight: str
    inputs: Span
    outputs: Span
    positions: int
    kernel: int
    per_group: int | None = None
    within: str | None = None

    def channels(self, widths: Widths) -> tuple[int, int]:
        """Input and output channels at these widths; none where the layer is gone with its block."""
        if self.within is not None and not widths[self.within]:
            return 0, 0
        return self.inputs.size(widths), self.outputs.size(widths)

    def macs(self, widths: Widths) -> int:
        """Multiply-accumulates of one forward pass at these widths."""
        inputs, outputs = self.channels(widths)
        return self.positions * self.kernel * (self.per_group if self.per_group is not None else inputs) * outputs


@dataclass(frozen=True)
class Block:
    """A module that hands its input through and adds to it: it may be removed, which is to keep no unit of its inner groups.

    `groups` are those whose channels begin and end in it, at least one; `parameters` are all that go with it.
    """

    name: str
    groups: tuple[str, ...]
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Groups:
    """All channel groups, layers and removable blocks of a network. `network` is the digest of its structure (not of its
    weights), `operators` how many its traced graph has."""

    network: str
    groups: tuple[Group, ...]
    layers: tuple[Layer, ...]
    folds: tuple[tuple[str, str], ...] = ()  # (convolution or linear, the batch-norm that folds into it)
    unknown_operators: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()
    operators: int = field(kw_only=True)

    @property
    def block_of(self) -> dict[str, Block]:
        """The inner groups of blocks: {group: its block}."""
        return {group: block for block in self.blocks for group in block.groups}

    def removed(self, widths: Widths) -> tuple[Block, ...]:
        """The blocks of which nothing is left at these widths."""
        return tuple(block for block in self.blocks if not any(widths[group] for group in block.groups))

    @property
    def free(self) -> tuple[Group, ...]:
        """The groups that may be cut."""
        return tuple(group for group in self.groups if group.locked is None)

    def full(self) -> dict[str, int]:
        """The unpruned widths of all groups."""
        return {group.name: group.width for group in self.groups}

    def least(self) -> dict[str, int]:
        """The smallest widths there are: a unit a group, no block."""
        inner = self.block_of
        return {g.name: g.width if g.locked else 0 if g.name in inner else 1 for g in self.groups}

    def macs(self, widths: Widths) -> int:
        """Multiply-accumulates of the convolutions and linear layers at these widths."""
        return sum(layer.macs(widths) for layer in self.layers)


@dataclass(frozen=True)
class SurveyedGroup:
    """A channel group: its units, the layers whose weights it cuts, their multiply-accumulates, and the reason of its lock."""

    name: str
    width: int
    layers: tuple[str, ...]
    macs: int
    locked: str | None


@dataclass(frozen=True)
class Survey:
    """What of a model can be cut: `macs` are all of its multiply-accumulates, `least_macs` those that a unit a group and no
    block would leave; `blocks` can be removed; `unknown_operators` have no rule, and lock what reaches them."""

    project: str
    macs: int
    least_macs: int
    groups: tuple[SurveyedGroup, ...]
    blocks: tuple[str, ...]
    unknown_operators: tuple[str, ...]
