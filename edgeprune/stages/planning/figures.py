"""Figures of a network that have limits, as functions of the widths: sums over layers, added up exactly; pure.

Parameters, multiply-accumulates and bytes are products of two channel counts of a layer, so they are rows of the program as
the latency is. Every figure is also computed by plain arithmetic, which decides whether a plan meets its limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from edgeprune.latency.model import LatencyModel
from edgeprune.records import Groups, Interval, Layer, Limit, Widths
from edgeprune.stages.planning.program import Cost, Row

# Of a figure that a device measures: a plan stays so far below its limit that noise leaves it within; see `Bound.slack`.
SLACK = {"memory": 0.003, "throughput": 0.015, "energy": 0.03}


class Figure(Protocol):
    """A figure that is a function of the widths. It must be at most a limit."""

    @property
    def name(self) -> str:
        """What it is: "latency", "size"."""

    def of(self, widths: Widths) -> float:
        """Its value, by plain arithmetic."""

    def rows(self, most: float) -> list[Row]:
        """The rows that hold exactly if the figure is at most `most`."""


@dataclass(frozen=True)
class Latency:
    """The latency that a model predicts, in nanoseconds. `tail` is a quantile of it over its median."""

    model: LatencyModel
    tail: float = 1.0
    name: str = "latency"

    def of(self, widths: Widths) -> float:
        """See `Figure.of`."""
        return self.tail * self.model.ns(widths)

    def rows(self, most: float) -> list[Row]:
        """One row. The latency is a power of a sum."""
        return [Row(self.model.layers, self.model.overhead_ns, self.model.sum_ns(most / self.tail))]

    def predict(self, widths: Widths) -> Interval:
        """The latency, with the interval that should cover a measurement."""
        found = self.model.predict(widths)
        return Interval(self.tail * found.low, self.tail * found.mid, self.tail * found.high)


@dataclass(frozen=True, eq=False)
class Product:
    """A layer's part of a figure: its multiply-accumulates times a factor. See `program.Cost`."""

    layer: Layer
    factor: float = 1.0

    @property
    def surface(self) -> object:
        """Costs of other layers are other objects."""
        return self

    def ns(self, inputs: Sequence[int] | np.ndarray, outputs: Sequence[int] | np.ndarray) -> np.ndarray:
        """See `program.Cost.ns`."""
        each = self.factor * self.layer.positions * self.layer.kernel
        found: np.ndarray = each * np.asarray(inputs, float) * np.asarray(outputs, float)
        return found


@dataclass(frozen=True)
class Counted:
    """A figure that is the largest of several sums of products of channel counts, each plus a constant.

    Only the first `tight` sums can exceed the limit.
    """

    name: str
    sums: tuple[tuple[Layer, ...], ...]
    factor: float = 1.0
    constant: float = 0.0
    tight: int | None = None

    def of(self, widths: Widths) -> float:
        """See `Figure.of`."""
        totals = (sum(layer.macs(widths) for layer in layers) for layers in self.sums)
        return self.factor * max(totals, default=0) + self.constant

    def within(self, most: float, full: Widths) -> Counted:
        """The figure with rows only for sums above `most` in the original network: no widths exceed it in others."""
        ordered = sorted(self.sums, key=lambda layers: -sum(layer.macs(full) for layer in layers))
        totals = [self.factor * sum(layer.macs(full) for layer in layers) + self.constant for layers in ordered]
        return replace(self, sums=tuple(ordered), tight=max(1, sum(total > most for total in totals)))

    def rows(self, most: float) -> list[Row]:
        """A row for each sum."""
        costs: list[list[Cost]] = [[Product(layer, self.factor) for layer in layers] for layers in self.sums]
        return [Row(own, self.constant, most) for own in costs[: self.tight]]


@dataclass(frozen=True)
class Bound:
    """A figure with its limit.

    Attributes:
        figure: as a function of the widths.
        most: its largest value.
        aim: a factor on `most`; see `allocation.planned`. None if the figure is exact, so that all of the limit is used.
        target: the target of a latency or a size, if there are several.
        original: the original network's, which shares refer to; None if it is the figure at full widths.
        measured: the figure at some widths, if it can be found out. It corrects `figure`.
        slack: how far `measured` may be from the aim, as a share of the limit; 0 if it may be anything below.
    """

    figure: Figure
    most: float
    aim: float | None = None
    target: str = ""
    original: float | None = None
    measured: Callable[[Widths], float] | None = None
    slack: float = 0.0

    @property
    def usable(self) -> float:
        """The largest value that a plan may have: `most`, or less where noise must leave it within."""
        return (1 - self.slack) * self.most

    @property
    def name(self) -> str:
        """The figure, and its target if there are several."""
        return f"{self.figure.name} on {self.target}" if self.target else self.figure.name


@dataclass(frozen=True)
class Counts:
    """What the exact figures of a network are made from; the pieces that a limit needs are made at their first use.

    Attributes:
        groups: the channel groups.
        parameters: each parameter as a layer whose multiply-accumulates are its numbers; see `counting.parameters`.
        stored: likewise, of the numbers in an exported file, with batch norms folded.
        moments: the tensors that live at the same time, as layers whose multiply-accumulates are bytes.
        bytes_at: the bytes of the artifact's files at some widths.
        original_bytes: those of the original network in fp32.
    """

    groups: Groups
    parameters: Callable[[], tuple[Layer, ...]]
    stored: Callable[[], tuple[Layer, ...]]
    moments: Callable[[], tuple[tuple[Layer, ...], ...]]
    bytes_at: Callable[[Widths], int]
    original_bytes: Callable[[], int]

    def bound(self, limit: Limit, target: str = "") -> Bound:
        """A limit as a bound of the program. `target` is the target whose files' size is limited, if there are several."""
        figure, full = self._figure(limit.figure), self.groups.full()
        if limit.figure == "size":
            original = float(self.original_bytes())
            most = limit.resolve(original)
            return Bound(figure, most, None, target, original, lambda widths: float(self.bytes_at(widths)))
        return Bound(figure.within(limit.resolve(figure.of(full)), full), limit.resolve(figure.of(full)))

    def _figure(self, name: str) -> Counted:
        if name == "macs":
            return Counted(name, (self.groups.layers,))
        if name == "parameters":
            return Counted(name, (self.parameters(),))
        if name == "activations":
            return Counted(name, self.moments())
        return self._size()

    def _size(self) -> Counted:
        """The bytes of the files: so many for each stored number, and a constant, from the files at two widths."""
        return line("size", self.stored(), self.groups, self.bytes_at)

    def on_device(self, limit: Limit, target: str, value: Callable[[Widths, bool], float]) -> Bound:
        """A limit that only a measurement can tell. It is a line in the stored numbers or the multiply-accumulates.

        Args:
            limit: the limit.
            target: the target, if there are several.
            value: measures the network at some widths, or the original network in fp32.
        """
        layers = self.stored() if limit.figure == "memory" else self.groups.layers
        original = value(self.groups.full(), True)
        figure = line(limit.figure, layers, self.groups, lambda widths: value(widths, False))
        most = limit.resolve(original)
        slack = SLACK[limit.figure]
        return Bound(figure, most, 1 - 2 * slack, target, original, lambda widths: value(widths, False), slack)


def line(name: str, layers: tuple[Layer, ...], groups: Groups, value: Callable[[Widths], float]) -> Counted:
    """A figure as a constant, and so much for each multiply-accumulate of some layers: from its value at two widths."""
    numbers, ends = Counted(name, (layers,)), (groups.full(), halved(groups))
    counts, values = [numbers.of(widths) for widths in ends], [value(widths) for widths in ends]
    each = max(0.0, (values[0] - values[1]) / (counts[0] - counts[1])) if counts[0] > counts[1] else 0.0
    return Counted(name, numbers.sums, each, values[0] - each * counts[0])


def halved(groups: Groups) -> Mapping[str, int]:
    """Half of the units of each free group."""
    return {**groups.full(), **{group.name: max(1, group.width // 2) for group in groups.free}}
