"""Operators that a converter lacks or gets wrong, written in others that it knows. NotImplemented keeps an operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def power(x: Tensor, exponent: float) -> Any:
    """Common powers as other operators: TFLite has no power of tensors with more than four dimensions."""
    match exponent:
        case 2:
            return x * x
        case 3:
            return x * x * x
        case 0.5:
            return x.sqrt()
        case -0.5:
            return x.rsqrt()
        case -1:
            return x.reciprocal()
    return NotImplemented


def repeat(x: Tensor, repeats: Sequence[int]) -> Any:
    """Concatenations. Where litert-torch changes the layout of an image, it repeats the dimensions as before."""
    if not x.ndim == len(repeats) == 4 or 0 in repeats:
        return NotImplemented
    for dim, count in enumerate(repeats):
        x = torch.cat([x] * count, dim) if count > 1 else x
    return x


def adaptive_max_pool2d(x: Tensor, size: Sequence[int]) -> Any:
    """The maximum of an image: litert-torch and ExecuTorch have no adaptive pooling of maxima."""
    if tuple(size) != (1, 1):
        return NotImplemented
    largest = x.flatten(-2).argmax(-1).reshape(*x.shape[:-2], 1, 1)
    return x.amax((-2, -1), keepdim=True), largest


def col2im(x: Tensor, size: Sequence[int], kernel: Sequence[int], *others: Sequence[int]) -> Any:
    """An image of patches side by side, which `F.fold` adds up: TFLite has no sum over indices."""
    dilation, padding, stride = map(tuple, others)
    divides = all(pixels % patch == 0 for pixels, patch in zip(size, kernel, strict=True))
    if not divides or (dilation, padding, stride) != ((1, 1), (0, 0), tuple(kernel)):
        return NotImplemented
    (height, width), (rows, columns) = size, kernel
    patches = x.reshape(*x.shape[:-2], -1, rows, columns, height // rows, width // columns)
    return patches.movedim((-2, -1), (-4, -2)).reshape(*x.shape[:-2], -1, height, width)


def amax(x: Tensor, dim: Sequence[int] = (), keepdim: bool = False) -> Any:
    """A maximum that keeps the dimensions, as XNNPACK requires."""
    if keepdim:
        return NotImplemented
    dims = tuple(dim) or tuple(range(x.ndim))
    return x.amax(dims, keepdim=True).squeeze(dims)


def max_dim(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Values and indices apart. ExecuTorch does the same, but in a form that XNNPACK refuses, see `amax`."""
    return x.amax((dim,), keepdim), x.argmax(dim, keepdim)


# Operator -> its decomposition.
Decompositions = Mapping[Any, Callable[..., Any]]
aten = torch.ops.aten
TFLITE: Decompositions = {
    aten.pow.Tensor_Scalar: power,
    aten.repeat.default: repeat,
    aten.adaptive_max_pool2d.default: adaptive_max_pool2d,
    aten.col2im.default: col2im,
}
EXECUTORCH: Decompositions = {
    aten.amax.default: amax,
    aten.max.dim: max_dim,
    aten.adaptive_max_pool2d.default: adaptive_max_pool2d,
}
