"""Rules of operators that take, move, order or replace elements by their number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from edgeprune.graph.labels import Axes, Axis, none
from edgeprune.graph.rules.base import Call, Value, broadcast, rule, unknown

TAKEN = "it takes or moves channels by number"
REPLACED = "it replaces channels by number"


@rule("index_select", "roll", "flip")
def _rearranged(call: Call) -> Value:
    """Dimensions that are indexed, shifted or flipped stay whole. The others pass."""
    source = list(call.axes("self"))
    dims: Any = call.args.get("dims", call.args.get("dim"))
    given = [dim % len(source) for dim in (dims if isinstance(dims, list | tuple) else [dims])] or range(len(source))
    call.lock([source[dim] for dim in given], TAKEN)
    for dim in given:
        source[dim] = none(call.shape[dim])
    return source


@rule("index")
def _index(call: Call) -> Value:
    """Dimensions that are indexed stay whole. The others pass, and so do those of the indices."""
    source, given = call.axes("self"), _given(call)
    call.lock([source[dim] for dim in given], TAKEN)
    return _indexed(call, source, given)


@rule("index_put")
def _index_put(call: Call) -> Value:
    """The other dimensions are cut in both tensors alike. Channels that are replaced by number are locked.

    A mask of booleans that selects what becomes one number is aligned with its channels.
    """
    source, given = call.axes("self"), _given(call)
    mask = call.args["indices"][given[0]]
    if mask.meta["val"].dtype != torch.bool:
        call.lock([source[dim] for dim in given], REPLACED)
        broadcast(call, [_indexed(call, source, given), call.axes("values")])
        return source
    if len(given) > 1 or call.args["values"].meta["val"].numel() > 1:
        return unknown(call)
    first, own = given[0], call.values[mask]
    chosen = broadcast(call, [source[first : first + len(own)], own])  # type: ignore[list-item]
    return [*source[:first], *chosen, *source[first + len(own) :]]


def _given(call: Call) -> list[int]:
    """The dimensions that are indexed."""
    return [dim for dim, index in enumerate(call.args["indices"]) if index is not None]


def _indexed(call: Call, source: Axes, given: Sequence[int]) -> Axes:
    """The labels of what indices take. Those of neighbouring dimensions are replaced in place, others come first."""
    places = broadcast(call, [call.values[call.args["indices"][dim]] for dim in given])  # type: ignore[misc]
    rest = [axis for dim, axis in enumerate(source) if dim not in given]
    at = given[0] if given[-1] - given[0] < len(given) else 0
    return [*rest[:at], *places, *rest[at:]]


@rule("gather")
def _gather(call: Call) -> Value:
    """The dimension along which elements are taken stays whole. The others are cut in both tensors alike."""
    source, index = call.axes("self"), call.axes("index")
    along = call.dim("dim", len(source))
    call.lock([source[along]], TAKEN)
    return [
        chosen if dim == along else _together(call, own, chosen)
        for dim, (own, chosen) in enumerate(zip(source, index, strict=True))
    ]


@rule("scatter", "scatter_add", "scatter_reduce")
def _scattered(call: Call) -> Value:
    """The dimension along which elements are replaced stays whole. The others are cut in all tensors alike."""
    source = list(call.axes("self"))
    along = call.dim("dim", len(source))
    for name in ("index", "src"):
        if isinstance(call.args.get(name), fx.Node):
            part = call.axes(name)
            call.lock([source[along], part[along]], REPLACED)
            source = [own if dim == along else _together(call, part[dim], own) for dim, own in enumerate(source)]
    return source


def _together(call: Call, first: Axis, second: Axis) -> Axis:
    """The second axis, joined with the first. Of the longer one only the beginning is used, so both stay whole then."""
    if len(first) == len(second):
        return call.labels.unite(first, second, call.reason)
    call.lock([first, second], TAKEN)
    return second


@rule("slice_scatter", "select_scatter")
def _scatter(call: Call) -> Value:
    """The other dimensions are cut in both tensors alike. Channels that are replaced by number are locked."""
    source, given = list(call.axes("self")), list(call.axes("src"))
    dim = call.dim("dim", len(source))
    if call.name == "select_scatter":
        given.insert(dim, none(1))
    if len(given[dim]) < len(source[dim]):
        call.lock([source[dim], given[dim]], REPLACED)
        given[dim] = none(len(source[dim]))
    return broadcast(call, [source, given])


@rule("sort", "argsort", "topk", "diff", "cumprod", "cummax", "cummin", "logcumsumexp")
def _along(call: Call) -> Value:
    """Along channels it locks them. Along other dimensions they pass."""
    source = list(call.axes("self"))
    dim = call.dim("dim", len(source))
    call.lock([source[dim]], "it orders or compares these channels")
    made = call.node.meta["val"]
    several = not isinstance(made, torch.Tensor)
    source[dim] = none((made[0] if several else made).shape[dim])
    return [source, source] if several else source


@rule("unfold")
def _windows(call: Call) -> Value:
    """Windows along channels lock them. Along other dimensions they pass."""
    source = list(call.axes("self"))
    dim = call.dim("dimension", len(source))
    call.lock([source[dim]], TAKEN)
    source[dim] = none(call.shape[dim])
    return [*source, none(call.shape[-1])]


@rule("tril", "triu")
def _triangle(call: Call) -> Value:
    """Channels pass, unless they are rows or columns of the triangle."""
    source = call.axes("self")
    call.lock(source[-2:], TAKEN)
    return source
