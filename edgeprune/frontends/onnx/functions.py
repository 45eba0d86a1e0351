"""The functions of torch that steps call and that torch has no name for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def repeated(x: Tensor, like: Tensor, batch_dim: int, dim: int, per_sample: int) -> Tensor:
    """One slice of a constant, repeated for each sample of `like`."""
    sizes = [-1] * x.ndim
    sizes[dim] = like.shape[batch_dim] * per_sample
    return x.expand(sizes)


def permuted(x: Tensor, order: Sequence[int]) -> Tensor:
    """`torch.permute`."""
    return x.permute(tuple(order))


def reshaped(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """`torch.reshape`."""
    return x.reshape(tuple(sizes))


def sliced(x: Tensor, dim: int, start: int | None, stop: int | None, step: int) -> Tensor:
    """A slice of one dimension; with a negative step from its end."""
    if step < 0:  # the same slice of the reversed dimension
        size = x.shape[dim]
        x, step = x.flip(dim), -step
        start, stop = (
            None if end is None else max(size - 1 - (end + size if end < 0 else end), 0) for end in (start, stop)
        )
    return x[(slice(None),) * dim + (slice(start, stop, step),)]


def selected(x: Tensor, dim: int, index: int) -> Tensor:
    """`torch.select`."""
    return x.select(dim, index)


def gathered(x: Tensor, dim: int, indices: Tensor) -> Tensor:
    """Slices of one dimension by integers of any shape; negative ones count from the end."""
    indices = from_start(indices, x.shape[dim])
    found = x.index_select(dim, indices.flatten())
    return found.reshape(x.shape[:dim] + indices.shape + x.shape[dim + 1 :])


def from_start(indices: Tensor, size: int) -> Tensor:
    """Indices of a dimension, where negative ones counted from its end."""
    return torch.where(indices < 0, indices + size, indices)


def mixed(x: Tensor, dim: int, weights: Tensor) -> Tensor:
    """Weighted sums along one dimension; the weights are (before, after)."""
    return torch.matmul(x.transpose(dim, -1), weights).transpose(dim, -1)


def concatenated(xs: Sequence[Tensor], dim: int) -> Tensor:
    """`torch.cat`. A constant that the file holds for one sample is repeated for the batch."""
    samples = max(x.shape[0] for x in xs)
    return torch.cat([x if dim == 0 or x.shape[0] == samples else x.expand(samples, *x.shape[1:]) for x in xs], dim)


def padded(x: Tensor, pads: Sequence[int], mode: str, value: float) -> Tensor:
    """`F.pad` for any number of dimensions; `pads` begins with the last dimension."""
    if mode == "constant":
        return F.pad(x, tuple(pads), mode, value)
    count = len(pads) // 2
    while count > 1 and not any(pads[2 * count - 2 : 2 * count]):
        count -= 1
    extra = count + 2 - x.ndim  # torch pads the last dimensions of (batch, channels, ...) only
    y = x.reshape((1,) * extra + tuple(x.shape)) if extra > 0 else x
    return F.pad(y, tuple(pads[: 2 * count]), mode).reshape(
        [s + sum(pads[2 * i : 2 * i + 2]) for i, s in zip(reversed(range(x.ndim)), x.shape, strict=True)]
    )


def divided(x: Tensor, y: Tensor) -> Tensor:
    """ONNX's division: of integers towards zero."""
    real = any(isinstance(each, float) or (isinstance(each, Tensor) and each.is_floating_point()) for each in (x, y))
    return x / y if real else torch.div(x, y, rounding_mode="trunc")


def remainder(x: Tensor, y: Tensor, truncated: bool) -> Tensor:
    """ONNX's Mod."""
    return torch.fmod(x, y) if truncated else torch.remainder(x, y)


def largest(xs: Sequence[Tensor]) -> Tensor:
    """The largest of several tensors at each place."""
    found = xs[0]
    for x in xs[1:]:
        found = torch.maximum(found, x)
    return found


def smallest(xs: Sequence[Tensor]) -> Tensor:
    """The smallest of several tensors at each place."""
    found = xs[0]
    for x in xs[1:]:
        found = torch.minimum(found, x)
    return found


def total(xs: Sequence[Tensor]) -> Tensor:
    """The sum of several tensors at each place."""
    found = xs[0]
    for x in xs[1:]:
        found = found + x
    return found


def mean_of(xs: Sequence[Tensor]) -> Tensor:
    """The mean of several tensors at each place."""
    return total(xs) / len(xs)


def hardmax(x: Tensor, dim: int) -> Tensor:
    """One at the largest element, else zero."""
    return torch.zeros_like(x).scatter(dim, x.argmax(dim, keepdim=True), 1.0)


def space_to_depth(x: Tensor, block: int) -> Tensor:
    """Blocks of pixels become channels: the place in the block first, then the channel."""
    n, c, h, w = x.shape
    y = x.reshape(n, c, h // block, block, w // block, block)
    return y.permute(0, 3, 5, 1, 2, 4).reshape(n, c * block * block, h // block, w // block)


def depth_to_space(x: Tensor, block: int) -> Tensor:
    """The inverse of `space_to_depth`."""
    n, c, h, w = x.shape
    y = x.reshape(n, block, block, c // block**2, h, w)
    return y.permute(0, 3, 4, 1, 5, 2).reshape(n, c // block**2, h * block, w * block)


def scattered_nd(x: Tensor, indices: Tensor, updates: Tensor, reduction: str) -> Tensor:
    """ONNX's ScatterND."""
    places = tuple(indices.movedim(-1, 0))
    if reduction == "none":
        return x.index_put(places, updates)
    return x.index_put(places, updates, accumulate=True)


def gathered_nd(x: Tensor, indices: Tensor, batch_dims: int) -> Tensor:
    """ONNX's GatherND."""
    ahead = [
        torch.arange(x.shape[dim], device=x.device).reshape((-1,) + (1,) * (indices.ndim - 2 - dim))
        for dim in range(batch_dims)
    ]
    return x[(*ahead, *indices.movedim(-1, 0))]


def eye(rows: int, columns: int, offset: int, dtype: torch.dtype) -> Tensor:
    """Ones on a diagonal."""
    return (torch.arange(columns) - torch.arange(rows)[:, None] == offset).to(dtype)


def cumulated(x: Tensor, dim: int, exclusive: bool, reverse: bool) -> Tensor:
    """Sums of all elements before each one, or behind it; with the element itself if they are not exclusive."""
    x = x.flip(dim) if reverse else x
    found = x.cumsum(dim) - x if exclusive else x.cumsum(dim)
    return found.flip(dim) if reverse else found


def shrunk(x: Tensor, limit: float, bias: float) -> Tensor:
    """ONNX's Shrink."""
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x)))


def standardised(x: Tensor, dims: Sequence[int]) -> Tensor:
    """ONNX's MeanVarianceNormalization."""
    variance, mean = torch.var_mean(x, tuple(dims), correction=0, keepdim=True)
    return (x - mean) / (variance.sqrt() + 1e-9)


def one_hot(indices: Tensor, depth: int, off: float, on: float, dim: int) -> Tensor:
    """ONNX's OneHot."""
    hot = F.one_hot(torch.where(indices < 0, indices + depth, indices), depth).movedim(-1, dim)
    return torch.where(hot.bool(), on, off)


def normalised(x: Tensor, dim: int, order: int) -> Tensor:
    """ONNX's LpNormalization."""
    return F.normalize(x, p=float(order), dim=dim)


def expanded(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """`Tensor.expand`."""
    return x.expand(tuple(sizes))


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`Tensor.to`."""
    return x.to(dtype)


def mean(x: Tensor, dims: Sequence[int], keep: bool) -> Tensor:
    """`torch.mean`."""
    return x.mean(tuple(dims), keep)


def reduced(x: Tensor, dims: Sequence[int], keep: bool, how: str) -> Tensor:
    """The other reductions of ONNX."""
    dims = tuple(dims)
    match how:
        case "sum":
            return x.sum(dims, keep)
        case "max":
            return x.amax(dims, keep)
        case "min":
            return x.amin(dims, keep)
        case "l1":
            return x.abs().sum(dims, keep)
        case "l2":
            return x.square().sum(dims, keep).sqrt()
        case "square":
            return x.square().sum(dims, keep)
        case "log":
            return x.sum(dims, keep).log()
        case "logsumexp":
            return x.logsumexp(dims, keep)
    for dim in sorted(dims, reverse=True):
        x = x.prod(dim, keepdim=keep)
    return x


def mean_pooled(x: Tensor, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int]) -> Tensor:
    """Mean pooling with uneven padding that does not count."""
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    ones = torch.ones_like(x[:1, :1])
    sums, counts = (pool(F.pad(each, tuple(pads)), tuple(kernel), tuple(strides)) for each in (x, ones))
    return sums / counts


def layer_normalised(x: Tensor, dims: int, eps: float) -> Tensor:
    """`F.layer_norm` over the last dimensions, without weights."""
    return F.layer_norm(x, x.shape[-dims:], eps=eps)


def group_normalised(x: Tensor, groups: int, eps: float) -> Tensor:
    """`F.group_norm` without weights."""
    return F.group_norm(x, groups, eps=eps)


def batch_normalised(x: Tensor, scale: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`F.batch_norm` with the statistics of its input, as standardised weights have."""
    return F.batch_norm(x, None, None, scale, bias, True, 0.0, eps)
