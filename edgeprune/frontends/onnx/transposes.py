"""Transposes between channels last and channels first: each is moved behind what follows, until it meets its inverse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from edgeprune.frontends.onnx import functions
from edgeprune.frontends.onnx.build import Builder
from edgeprune.frontends.onnx.graph import Value


def permuted(b: Builder, x: Value, order: Sequence[int]) -> Value:
    """A transposed value. Two transposes become one, or none if they cancel."""
    order = list(order)
    before = x.made_by(functions.permuted)
    if before is not None:
        x, order = before[0], [before[1][dim] for dim in order]
    return x if order == sorted(order) else b.call(functions.permuted, x, order)


def is_channels_last(order: Sequence[int]) -> bool:
    """Whether a transpose moves the channels of an image from the second place to the last: (0, 2, 3, 1)."""
    return len(order) > 3 and list(order) == [0, *range(2, len(order)), 1]


def source(x: Value) -> tuple[Value, list[int]] | None:
    """What a value with channels last was transposed from, and the order; None for other values."""
    made = x.made_by(functions.permuted)
    return (made[0], list(made[1])) if made is not None and is_channels_last(made[1]) else None


def sunk(b: Builder, target: Callable[..., Any], xs: Sequence[Value], *args: Any, **named: Any) -> Value:
    """The result of a function that computes each element on its own.

    If an argument was transposed to channels last, the function is called before the transpose, and its result is transposed.

    Args:
        b: the builder.
        target: takes `xs`, then `args`.
        xs: have shapes that fit each other.
        args: numbers.
        named: likewise.
    """
    found = [source(x) for x in xs]
    order = next((pair[1] for pair in found if pair is not None), None)
    if order is None:
        return b.call(target, *xs, *args, **named)
    before: list[Value] = []
    for x, pair in zip(xs, found, strict=True):
        if pair is not None and pair[1] == order:
            before.append(pair[0])
        elif x.constant is not None and x.rank <= len(order):
            before.append(_first(b, x, order))
        else:
            return b.call(target, *xs, *args, **named)
    return permuted(b, b.call(target, *before, *args, **named), order)


def _first(b: Builder, x: Value, order: Sequence[int]) -> Value:
    """A constant that fits channels last, as it fits channels first."""
    if x.fakes[0].numel() == 1:
        return x
    whole = b.call(functions.reshaped, x, [1] * (len(order) - x.rank) + list(x.shape))
    return b.call(functions.permuted, whole, [order.index(dim) for dim in range(len(order))])
