"""Rules of torch's ONNX exporter for operators that it lacks, or that it writes wrongly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.onnx import symbolic_helper

FIRST = 17  # the opset from which on they hold


@contextmanager
def registered() -> Iterator[None]:
    """A context in which torch's exporter uses these rules."""
    for name, rule in RULES.items():
        torch.onnx.utils.register_custom_op_symbolic(f"aten::{name}", rule, FIRST)
    try:
        yield
    finally:
        for name in RULES:
            torch.onnx.utils.unregister_custom_op_symbolic(f"aten::{name}", FIRST)


@symbolic_helper.parse_args("v", "i", "i", "i")
def _unfold(g: Any, x: Any, dimension: int, size: int, step: int) -> Any:
    """Windows of `size` indices along a dimension: one gather, with the windows' indices last.

    Torch's own rule is wrong for a negative dimension.
    """
    shape = x.type().sizes()
    dim = dimension % len(shape)
    windows = torch.arange(0, shape[dim] - size + 1, step)[:, None] + torch.arange(size)
    taken = g.op("Gather", x, g.op("Constant", value_t=windows), axis_i=dim)
    order = [*range(dim + 1), *range(dim + 2, len(shape) + 1), dim + 1]
    return taken if order == sorted(order) else g.op("Transpose", taken, perm_i=order)


@symbolic_helper.parse_args("v", "t", "t")
def _movedim(g: Any, x: Any, source: torch.Tensor, destination: torch.Tensor) -> Any:
    """A transposition. Torch's own rule is wrong for a negative dimension."""
    rank = len(x.type().sizes())
    moved = {
        to % rank: own % rank for own, to in zip(source.view(-1).tolist(), destination.view(-1).tolist(), strict=True)
    }
    rest = iter(dim for dim in range(rank) if dim not in moved.values())
    return g.op("Transpose", x, perm_i=[moved[dim] if dim in moved else next(rest) for dim in range(rank)])


def _transposed(g: Any, x: Any) -> Any:
    """The last two dimensions are swapped."""
    *batch, rows, columns = range(len(x.type().sizes()))
    return g.op("Transpose", x, perm_i=[*batch, columns, rows])


def _copy(g: Any, x: Any, source: Any, *_: Any) -> Any:
    """The source in the shape and the type of the tensor that it is copied to."""
    sizes = x.type().sizes()
    shape = g.op("Shape", x) if sizes is None else g.op("Constant", value_t=torch.tensor(sizes))
    cast = source if source.type().scalarType() == x.type().scalarType() else g.op("CastLike", source, x)
    return cast if sizes is not None and cast.type().sizes() == sizes else g.op("Expand", cast, shape)


def _constant(g: Any, x: Any) -> Any:
    """A constant of the code, as it is."""
    return g.op("Identity", x)


def _slice_scatter(g: Any, x: Any, source: Any, dim: Any, start: Any, end: Any, step: Any) -> Any:
    """The tensor with a part along a dimension replaced."""
    sizes = x.type().sizes()
    along = _number(dim, 0) % len(sizes)
    first, stop, every = slice(_number(start, 0), _number(end, sizes[along]), _number(step, 1)).indices(sizes[along])
    if every == 1:
        return _with_part(g, x, source, along, first, max(first, stop))
    places = torch.arange(first, stop, every).view([-1 if own == along else 1 for own in range(len(sizes))])
    indices = places.expand([len(places.view(-1)) if own == along else size for own, size in enumerate(sizes)])
    return g.op("ScatterElements", x, g.op("Constant", value_t=indices.contiguous()), source, axis_i=along)


def _select_scatter(g: Any, x: Any, source: Any, dim: Any, index: Any) -> Any:
    """As above, with one index."""
    sizes = x.type().sizes()
    along = _number(dim, 0) % len(sizes)
    first = _number(index, 0) % sizes[along]
    part = g.op("Unsqueeze", source, g.op("Constant", value_t=torch.tensor([along])))
    return _with_part(g, x, part, along, first, first + 1)


def _with_part(g: Any, x: Any, part: Any, dim: int, start: int, end: int) -> Any:
    """The tensor with `part` in place of the indices from `start` to `end` of a dimension."""
    before, after = _part(g, x, dim, 0, start), _part(g, x, dim, end, x.type().sizes()[dim])
    parts = [one for one in (before, part, after) if one is not None]
    return g.op("Concat", *parts, axis_i=dim) if len(parts) > 1 else part


def _part(g: Any, x: Any, dim: int, start: int, end: int) -> Any:
    """The indices from `start` to `end` of a dimension, or None if there are none."""
    if start >= end:
        return None
    return g.op("Slice", x, *(g.op("Constant", value_t=torch.tensor([number])) for number in (start, end, dim)))


def _number(value: Any, default: int) -> int:
    if value.node().mustBeNone():
        return default
    return int(symbolic_helper._get_const(value, "i", "number"))  # type: ignore[no-untyped-call]


RULES: dict[str, Callable[..., Any]] = {
    "unfold": _unfold,
    "movedim": _movedim,
    "mT": _transposed,
    "copy": _copy,
    "lift_fresh_copy": _constant,
    "slice_scatter": _slice_scatter,
    "select_scatter": _select_scatter,
}
