"""Sizes of channels among the constants of an exported file, such as the target shape of a reshape.

The exporter computes them and writes plain numbers. The export of a pruned network has other numbers in the same places. So
each number that differs is a size, and the pair of numbers tells which channels it counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from edgeprune.records import Groups, Layer, Span, Widths

Place = tuple[int, int]  # the number of a node, and which of its inputs it is
Constants = Mapping[Place, np.ndarray]
GOLDEN = (5**0.5 - 1) / 2  # multiples of it are far apart, modulo 1
MULTIPLES = 3  # of a factor that are tried: packed projections and gates hold a few parts of one size


@dataclass(frozen=True)
class Resized:
    """A constant that changes with the widths.

    Attributes:
        shape: the sizes in its shape, by dimension.
        numbers: the sizes among its numbers, by their index. None: the number is inferred from the others.
    """

    shape: Mapping[int, Span]
    numbers: Mapping[int, Span | None]

    def fits(self, shape: Sequence[int], widths: Widths) -> bool:
        """Whether a constant of this shape, such as a sliced parameter, needs no change."""
        return not self.numbers and all(shape[dim] == span.size(widths) for dim, span in self.shape.items())

    def at(self, value: np.ndarray, widths: Widths) -> np.ndarray:
        """The constant at these widths. If it is too large, its first numbers remain."""
        for dim, span in self.shape.items():
            value = value.take(range(span.size(widths)), axis=dim)
        changed = value.copy()
        for index, number in self.numbers.items():
            changed.flat[index] = -1 if number is None else number.size(widths)
        return changed


Sizes = Mapping[Place, Resized]


def distinct(groups: Groups) -> dict[str, int]:
    """Widths of a trial cut. Each group keeps another share of its units, so that sizes tell groups apart.

    If a group has three or more units, it keeps at least two. An exporter may leave out operators on a dimension of size one.
    """
    shares = (0.4 + 0.4 * (number * GOLDEN % 1) for number in count())  # no group keeps very few units
    return groups.full() | {
        group.name: max(1 + int((group.width - 1) * share), min(2, group.width - 1))
        for group, share in zip(groups.free, shares, strict=False)
    }


def find(full: Constants, cut: Constants, owners: Mapping[int, Layer], groups: Groups, widths: Widths) -> Sizes:
    """The constants that change with the widths, and the channels that their sizes count.

    Args:
        full: the constants of the export of the original network.
        cut: the same of the network at these widths.
        owners: {number of a node: its layer}.
        groups: all channel groups.
        widths: at which groups of one width differ; see `distinct`.
    """
    candidates = _Candidates(groups, widths)
    found: dict[Place, Resized] = {}
    for place, value in full.items():
        other = cut.get(place)
        if other is None or value.ndim != other.ndim:
            continue
        owner = owners.get(place[0])
        pairs = enumerate(zip(value.shape, other.shape, strict=True))
        shape = {dim: candidates.counted(pair, owner) for dim, pair in pairs if pair[0] != pair[1]}
        numbers: dict[int, Span | None] = {}
        if not shape and value.dtype.kind == "i":
            both = enumerate(zip(value.ravel().tolist(), other.ravel().tolist(), strict=True))
            numbers = {index: candidates.counted(pair, owner) for index, pair in both if pair[0] != pair[1]}
        known = {dim: span for dim, span in shape.items() if span is not None}
        inferred = list(numbers.values()).count(None)
        if (shape or numbers) and known == shape and inferred <= (value.size > 1 and -1 not in value):
            found[place] = Resized(known, numbers)
    return found


class _Candidates:
    """The channel counts that a size may be. Those of its own layer come first, and multiples come last."""

    def __init__(self, groups: Groups, widths: Widths) -> None:
        self._full, self._widths = groups.full(), widths
        self._names = {group.name for group in groups.free}
        self._by_layer = {layer.name: self._sizes([layer]) for layer in groups.layers}
        self._all = self._sizes(groups.layers)

    def counted(self, pair: tuple[int, int], owner: Layer | None) -> Span | None:
        """The only channel count that is the first number in the original network, and the second one after the cut."""
        own = self._by_layer[owner.name] if owner else []
        for known in (*own, *self._all):
            fitting = known.get(pair, set())
            if fitting:
                return next(iter(fitting)) if len(fitting) == 1 else None
        return None

    def _sizes(self, layers: Iterable[Layer]) -> list[dict[tuple[int, int], set[Span]]]:
        """The inputs and outputs of layers with their factors, then multiples of these; each by its two sizes."""
        whole = {span for layer in layers for span in (layer.inputs, layer.outputs)}
        factors = {
            (part, channels)
            for span in whole
            for own, channels in span.terms
            for part in (own, *((name,) for name in own))
        }
        multiples = {
            Span(0, ((part, multiple),))
            for part, channels in factors
            for multiple in range(2, min(channels, MULTIPLES) + 1)
        }
        single = {Span(0, ((part, 1),)) for part, _ in factors}
        return [self._by_sizes(whole | single), self._by_sizes(multiples)]

    def _by_sizes(self, spans: Iterable[Span]) -> dict[tuple[int, int], set[Span]]:
        found: dict[tuple[int, int], set[Span]] = {}
        for span in spans:
            if span.groups <= self._names:
                found.setdefault((span.size(self._full), span.size(self._widths)), set()).add(span)
        return found
