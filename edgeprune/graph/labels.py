"""Labels: which indices of which dimensions live or die together. Pure, and knows no operator.

Every index of every dimension of every tensor carries a label, or `NONE`, which no cut can touch (batch, space, constants).
Labels in one class of the union-find go together. A label that must be kept is locked, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

NONE = -1

Axis = np.ndarray  # labels of one dimension, int64
Axes = list[Axis]  # labels of one tensor, a dimension an entry


class Labels:
    """Union-find over labels; a class may be locked, with a reason.

    A class may also be a product: where a dimension of channels is seen as two, such as heads × width, an index goes when its
    head goes or its place in every head, and not by itself. Its factors are what can be cut.
    """

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._locked: dict[int, str] = {}
        self._factors: dict[int, tuple[int, ...]] = {}
        self.locking = True  # off while what comes to nothing is walked

    def fresh(self, count: int) -> Axis:
        """`count` new labels, each in a class of its own."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    def root(self, label: int) -> int:
        """The class of a label."""
        while self._parent[label] != label:
            self._parent[label] = self._parent[self._parent[label]]
            label = self._parent[label]
        return label

    def roots(self, axis: Axis) -> Axis:
        """The classes of an axis, `NONE` where it has no label."""
        return np.array([NONE if label == NONE else self.root(int(label)) for label in axis], dtype=np.int64)

    def factors(self, axis: Axis) -> list[tuple[int, ...]]:
        """Of every index the classes that it goes with: its own, or the factors that it is a product of; none where it has no
        label."""
        return [() if label == NONE else tuple(dict.fromkeys(self._leaves(int(label), ()))) for label in axis]

    def _leaves(self, label: int, above: tuple[int, ...]) -> Iterator[int]:
        root = self.root(label)
        if root in above:  # a product of itself: no cut is sure to be right
            self.lock((root,), "these channels are seen as a product of themselves")
        elif root in self._factors:
            for factor in self._factors[root]:
                yield from self._leaves(factor, (*above, root))
        else:
            yield root

    def divide(self, label: int, factors: tuple[int, ...]) -> None:
        """Make a label's class the product of these; where it is one already, the factors unite one by one."""
        self._divide(self.root(label), factors)

    def _divide(self, root: int, factors: tuple[int, ...]) -> None:
        known = self._factors.get(root)
        if known is None:
            self._factors[root] = factors
        elif len(known) == len(factors):
            for a, b in zip(known, factors, strict=True):
                self._merge(self.root(a), self.root(b))
        else:
            self.lock((*known, *factors), "these channels are seen as products of two kinds")

    def settle(self) -> None:
        """What is locked as a product is locked by all its factors. To be called before reasons are asked for."""
        for root in list(self._factors):
            leaves = list(self._leaves(root, ()))
            if len(set(leaves)) < len(leaves):
                self.lock(leaves, "these channels are multiplied with themselves")
            reason = self._locked.get(self.root(root))
            if reason is not None:
                self.lock([leaf for leaves in self.factors(np.array([root])) for leaf in leaves], reason)

    def lock(self, labels: Iterable[int], reason: str) -> None:
        """Nothing in these labels' classes may be cut; the first reason given is the one kept."""
        for label in labels:
            if label != NONE and self.locking:
                self._locked.setdefault(self.root(int(label)), reason)

    def reason(self, label: int) -> str | None:
        """Why a label's class is locked, or None."""
        return self._locked.get(self.root(label))

    def unite(self, first: Axis, second: Axis, reason: str) -> Axis:
        """Aligned indices live or die together; beside an index that cannot be cut, the other is locked."""
        if len(first) != len(second):
            raise ValueError(f"cannot align {len(first)} with {len(second)} indices")
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            if a == NONE or b == NONE:
                self.lock((a, b), reason)
            else:
                self._merge(self.root(a), self.root(b))
        return np.where(first == NONE, second, first)

    def tie(self, labels: Iterable[int], reason: str) -> None:
        """All these labels live or die together."""
        axis = np.fromiter(labels, dtype=np.int64)
        self.unite(axis[:1].repeat(len(axis) - 1), axis[1:], reason)

    def _merge(self, a: int, b: int) -> None:
        if a == b:
            return
        keep, drop = min(a, b), max(a, b)
        self._parent[drop] = keep
        if drop in self._locked:
            self._locked.setdefault(keep, self._locked.pop(drop))
        if drop in self._factors:
            self._divide(keep, self._factors.pop(drop))


def none(size: int) -> Axis:
    """An axis that no cut can touch."""
    return np.full(size, NONE, dtype=np.int64)


def has_labels(axis: Axis) -> bool:
    """Whether any index of the axis can be cut at all."""
    return bool((axis != NONE).any())
