"""Operations that were called as functions of `keras.ops`, or by indexing. The channels are where Keras has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.frontends.keras.modules import Apply
from edgeprune.frontends.keras.table import Built, Call, converts

BY_ELEMENT: dict[str, Callable[..., Tensor]] = {
    "Absolute": torch.abs, "Exp": torch.exp, "Log": torch.log, "Negative": torch.neg, "Sqrt": torch.sqrt, "Rsqrt": torch.rsqrt,
    "Square": torch.square,
}  # fmt: skip
REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "Mean": torch.mean, "Sum": torch.sum, "Max": torch.amax, "Min": torch.amin,
}  # fmt: skip


def _kind(call: Call) -> str:
    return type(call.layer).__name__


@converts(*(f"ops.{name}" for name in BY_ELEMENT))
def by_element(call: Call) -> Built:
    """A function of each element."""
    return Built(Apply(BY_ELEMENT[_kind(call)]), call.first.order, call.first.order)


@converts(*(f"ops.{name}" for name in REDUCTIONS))
def reduction(call: Call) -> Built:
    """A reduction over some dimensions, or all but the batch."""
    axes = call.layer.axis
    dims = tuple(range(call.first.rank)) if axes is None else tuple(axis % call.first.rank for axis in axes)
    if 0 in dims or getattr(call.layer, "initial", None) is not None:
        raise call.missing("a reduction over the batch, or with a first value, is not supported")
    return Built(Apply(REDUCTIONS[_kind(call)], dim=dims, keepdim=call.layer.keepdims))


@converts("ops.NotEqual")
def not_equal(call: Call) -> Built:
    """A mask: 1 where an element is not the number, else 0. The runtimes compute with numbers only."""
    number = call.keywords.get("x2", call.arguments[-1])
    if not isinstance(number, int | float):
        raise call.missing("a comparison of two tensors is not supported")
    return Built(Apply(_differs, other=number))  # TFLite compares no integer with a float


@converts("ops.Any")
def any_of(call: Call) -> Built:
    """A mask: 1 where another mask is 1 anywhere along a dimension."""
    axes = call.layer.axis
    if axes is None or 0 in (dims := tuple(axis % call.first.rank for axis in axes)):
        raise call.missing("a reduction over the batch is not supported")
    return Built(Apply(torch.amax, dim=dims, keepdim=call.layer.keepdims))


@converts("ops.LogicalAnd", "ops.LogicalOr")
def both_or_any(call: Call) -> Built:
    """A mask of two masks."""
    return Built(Apply(torch.mul if _kind(call) == "LogicalAnd" else torch.maximum))


@converts("ops.Gelu")
def gelu(call: Call) -> Built:
    """A GELU, by default the approximate one."""
    made = nn.GELU("tanh" if call.layer.approximate else "none")
    return Built(made, call.first.order, call.first.order)


@converts("ops.Softmax")
def softmax(call: Call) -> Built:
    """A softmax over one axis."""
    return Built(nn.Softmax(call.dim(call.layer.axis, call.first.order)), call.first.order, call.first.order)


@converts("ops.Matmul")
def matmul(call: Call) -> Built:
    """A product of two tensors."""
    if len(call.given) != 2:
        raise call.missing("a constant tensor is not supported")
    return Built(Apply(torch.matmul))


@converts("ops.Concatenate")
def concatenate(call: Call) -> Built:
    """Inputs side by side."""
    return Built(Apply(_joined, dim=call.layer.axis))


@converts("ops.Stack")
def stack(call: Call) -> Built:
    """Inputs along a new dimension."""
    return Built(Apply(_stacked, dim=call.layer.axis))


@converts("ops.Split")
def split(call: Call) -> Built:
    """Parts along one dimension."""
    layer = call.layer
    parts = layer.indices_or_sections
    if layer.axis % call.first.rank == 0:
        raise call.missing("a split of the batch is not supported")
    return Built(Apply(_parts, parts=parts, dim=layer.axis))


@converts("ops.Clip")
def clip(call: Call) -> Built:
    """Numbers within limits."""
    limits = call.layer.x_min, call.layer.x_max
    if not all(isinstance(limit, int | float) for limit in limits):
        raise call.missing("limits that are tensors are not supported")
    return Built(Apply(torch.clamp, min=limits[0], max=limits[1]), call.first.order, call.first.order)


@converts("ops.Reshape")
def reshape(call: Call) -> Built:
    """Another shape, with the batch."""
    return Built(Apply(torch.reshape, shape=tuple(call.layer.newshape)))


@converts("ops.Transpose")
def transpose(call: Call) -> Built:
    """Another order of the dimensions."""
    return Built(Apply(torch.permute, dims=tuple(call.layer.axes or reversed(range(call.first.rank)))))


@converts("ops.ExpandDims", "ops.Squeeze")
def dimension(call: Call) -> Built:
    """One dimension of one position more, or less."""
    axis = call.layer.axis
    axes = [axis] if isinstance(axis, int) else list(axis or ())
    if len(axes) != 1:
        raise call.missing(f"axis {axis} is not supported")
    return Built(Apply(torch.unsqueeze if _kind(call) == "ExpandDims" else torch.squeeze, dim=axes[0]))


@converts("ops.GetItem")
def item(call: Call) -> Built:
    """An index, such as x[:, 0]."""
    key = call.keywords.get("key", call.arguments[-1])
    keys = tuple(key) if isinstance(key, tuple | list) else (key,)
    steps = [one.step for one in keys if isinstance(one, slice) and one.step is not None]
    if any(step < 0 for step in steps):
        raise call.missing("an index with a negative step is not supported")
    return Built(Apply(_indexed, key=keys))


def _differs(given: Tensor, other: int | float) -> Tensor:
    return (given != other).float()


def _joined(*given: Tensor, dim: int) -> Tensor:
    return torch.cat(given, dim)


def _stacked(*given: Tensor, dim: int) -> Tensor:
    return torch.stack(given, dim)


def _parts(given: Tensor, parts: int | tuple[int, ...], dim: int) -> Any:
    """Equal parts, or parts that end at these places."""
    return given.chunk(parts, dim) if isinstance(parts, int) else torch.tensor_split(given, parts, dim)


def _indexed(given: Tensor, key: tuple[Any, ...]) -> Tensor:
    return given[key]
