"""Labels: which indices of which dimensions can only be removed together. Pure; knows no operator.

Every index of every dimension of every tensor carries a label. `NONE` marks an index that no cut can touch (batch,
space, constants). Labels in one class of the union-find are removed together. A locked label must be kept, and the
lock has a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

NONE = -1

Axis = np.ndarray  # labels of one dimension, int64
Axes = list[Axis]  # labels of one tensor, one entry per dimension


class Labels:
    """Union-find over labels. A class may be locked, with a reason.

    A class may also be a product. A dimension of channels may be viewed as two, such as heads × width. An index is then
    removed when its head is removed, or its position in every head. Only these factors can be cut, not the index itself.
    """

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._locked: dict[int, str] = {}
        self._factors: dict[int, tuple[int, ...]] = {}
        self.locking = True  # off for dead nodes
        self.place = ""  # where the user's code calls the current operator; it begins each reason

    def fresh(self, count: int) -> Axis:
        """`count` new labels, each in a new class."""
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
        """The classes of an axis, `NONE` where an index has no label."""
        return np.array([NONE if label == NONE else self.root(int(label)) for label in axis], dtype=np.int64)

    def factors(self, axis: Axis) -> list[tuple[int, ...]]:
        """For every index the classes whose removal removes it.

        Returns:
            One tuple for each index: its own class, or the factors of its class. Empty for an index without a label.
        """
        return [() if label == NONE else tuple(dict.fromkeys(self._leaves(int(label), ()))) for label in axis]

    def _leaves(self, label: int, above: tuple[int, ...]) -> Iterator[int]:
        root = self.root(label)
        if root in above:  # a product of itself: no cut is sure to be right
            self.lock((root,), "these channels are viewed as a product of themselves")
        elif root in self._factors:
            for factor in self._factors[root]:
                yield from self._leaves(factor, (*above, root))
        else:
            yield root

    def product(self, axis: Axis) -> tuple[Axis, Axis] | None:
        """The outer and the inner axis whose product an axis is, in this order. None if it is no product of two axes."""
        pairs = [self._factors.get(root, ()) for root in self.roots(axis).tolist()]
        if not pairs or any(len(pair) != 2 for pair in pairs):
            return None
        outer, inner = (self.roots(np.array(side, dtype=np.int64)) for side in zip(*pairs, strict=True))
        changes = np.flatnonzero(outer != outer[0])
        width = int(changes[0]) if len(changes) else len(axis)
        if len(axis) % width:
            return None
        outer, inner = outer.reshape(-1, width), inner.reshape(-1, width)
        if (outer != outer[:, :1]).any() or (inner != inner[:1]).any():
            return None
        return outer[:, 0].copy(), inner[0].copy()

    def divide(self, label: int, factors: tuple[int, ...]) -> None:
        """Make a label's class the product of these factors. If it is a product already, unite the factors one by one."""
        self._divide(self.root(label), factors)

    def _divide(self, root: int, factors: tuple[int, ...]) -> None:
        known = self._factors.get(root)
        if known is None:
            self._factors[root] = factors
        elif len(known) == len(factors):
            for a, b in zip(known, factors, strict=True):
                self._merge(self.root(a), self.root(b))
        else:
            self.lock((*known, *factors), "these channels are viewed as products of two kinds")

    def lock_factors(self) -> None:
        """Lock all factors of every locked product. Call this before `reason`."""
        for root in list(self._factors):
            leaves = list(self._leaves(root, ()))
            if len(set(leaves)) < len(leaves):
                self.lock(leaves, "these channels are multiplied with themselves")
            reason = self._locked.get(self.root(root))
            if reason is not None:
                self.lock([leaf for leaves in self.factors(np.array([root])) for leaf in leaves], reason)

    def lock(self, labels: Iterable[int], reason: str) -> None:
        """Lock the classes of these labels. The first reason for a class is kept."""
        reason = f"{self.place}: {reason}" if self.place else reason
        for label in labels:
            if label != NONE and self.locking:
                self._locked.setdefault(self.root(int(label)), reason)

    def reason(self, label: int) -> str | None:
        """The reason why a label's class is locked, or None."""
        return self._locked.get(self.root(label))

    def unite(self, first: Axis, second: Axis, reason: str) -> Axis:
        """Join the classes of aligned indices, which can then only be removed together.

        A label aligned with `NONE` is locked, with `reason`. Returns the labels of the aligned axis.
        """
        if len(first) != len(second):
            raise ValueError(f"cannot align {len(first)} with {len(second)} indices")
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            if a == NONE or b == NONE:
                self.lock((a, b), reason)
            else:
                self._merge(self.root(a), self.root(b))
        return np.where(first == NONE, second, first)

    def tie(self, labels: Iterable[int], reason: str) -> None:
        """Join the classes of all these labels."""
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
    """Whether any index of the axis has a label."""
    return bool((axis != NONE).any())
