"""Modules that Keras has and torch lacks. Tensors are channels-first here, unless a docstring says otherwise."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Apply(nn.Module):
    """A function of tensors, with fixed keywords."""

    def __init__(self, function: Callable[..., Tensor], **keywords: object) -> None:
        super().__init__()
        self.function, self.keywords = function, keywords

    def forward(self, *given: Tensor) -> Tensor:
        """The function's result."""
        return self.function(*given, **self.keywords)

    def extra_repr(self) -> str:
        """The function and its keywords."""
        return f"{getattr(self.function, '__name__', self.function)}, {self.keywords}"


class Permute(nn.Module):
    """Reorders the dimensions."""

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.dims = tuple(dims)

    def forward(self, given: Tensor) -> Tensor:
        """The tensor with its dimensions in the order `dims`."""
        return given.permute(self.dims)


class PerStep(nn.Module):
    """Applies a network to each step of (batch, steps, ...)."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, given: Tensor) -> Tensor:
        """(batch, steps, ...)."""
        return torch.unflatten(self.graph(given.flatten(0, 1)), 0, (-1, given.shape[1]))


class AsFloat(nn.Module):
    """Makes numbers of any type float32, as Keras does with its inputs. It is no operation for float32."""

    def forward(self, given: Tensor) -> Tensor:
        """The same numbers."""
        return given if given.is_floating_point() else given.float()


class Merge(nn.Module):
    """Reduces its inputs by a function of two tensors, such as a sum."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.adds = function is operator.add or getattr(function, "func", None) is torch.add

    def forward(self, *given: Tensor) -> Tensor:
        """The reduced tensor."""
        return reduce(self.function, given)


class Mean(nn.Module):
    """The mean of its inputs."""

    def forward(self, *given: Tensor) -> Tensor:
        """The mean."""
        return reduce(operator.add, given) / len(given)


class Concatenate(nn.Module):
    """Joins its inputs along a dimension."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, *given: Tensor) -> Tensor:
        """The joined tensor."""
        return torch.cat(given, self.dim)


class WithNumber(nn.Module):
    """An operation of a tensor and a number."""

    def __init__(self, function: Callable[[object, object], Tensor], number: float, first: bool = False) -> None:
        super().__init__()
        self.function, self.number, self.first = function, number, first

    def forward(self, given: Tensor) -> Tensor:
        """The operation's result. `first` says whether the number is the first operand."""
        return self.function(self.number, given) if self.first else self.function(given, self.number)


class Affine(nn.Module):
    """Multiplies by a scale and adds an offset. Both are fixed, and have a number for each channel or one for all."""

    def __init__(self, scale: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)
        self.scale: Tensor
        self.offset: Tensor

    def forward(self, given: Tensor) -> Tensor:
        """scale · x + offset."""
        return given * self.scale + self.offset


class Scale(nn.Module):
    """Multiplies by a trained factor for each channel. The channels are last."""

    def __init__(self, gamma: Tensor) -> None:
        super().__init__()
        self.gamma = nn.Parameter(gamma)

    def forward(self, given: Tensor) -> Tensor:
        """gamma · x."""
        return given * self.gamma


class LeakyClip(nn.Module):
    """Keras's general ReLU: x above `threshold`, else slope · (x − threshold), and `most` at most."""

    def __init__(self, slope: float, threshold: float, most: float | None) -> None:
        super().__init__()
        self.slope, self.threshold, self.most = slope, threshold, most

    def forward(self, given: Tensor) -> Tensor:
        """The activation."""
        found = torch.where(given > self.threshold, given, self.slope * (given - self.threshold))
        return found if self.most is None else found.clamp(max=self.most)


class Pad(nn.Module):
    """Pads with a value, by (before, after) of each spatial dimension."""

    def __init__(self, pads: Sequence[tuple[int, int]], value: float = 0.0) -> None:
        super().__init__()
        self.pads = [size for pair in reversed(pads) for size in pair]
        self.value = value

    def forward(self, given: Tensor) -> Tensor:
        """The padded tensor."""
        return F.pad(given, self.pads, value=self.value)

    def extra_repr(self) -> str:
        """The sizes as torch orders them."""
        return f"{self.pads}"


class Crop(nn.Module):
    """Removes (before, after) of each spatial dimension."""

    def __init__(self, crops: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.crops = tuple(crops)

    def forward(self, given: Tensor) -> Tensor:
        """The cropped tensor."""
        for dim, (before, after) in enumerate(self.crops, 2):
            given = given.narrow(dim, before, given.shape[dim] - before - after)
        return given


class PaddedMean(nn.Module):
    """An average pool with uneven padding. Padding counts in no average."""

    def __init__(self, pool: nn.Module, pad: Pad) -> None:
        super().__init__()
        self.pool, self.pad = pool, pad

    def forward(self, given: Tensor) -> Tensor:
        """The averages: sums of windows divided by the share of each window that is inside."""
        inside = self.pool(self.pad(torch.ones_like(given[:1, :1])))
        return self.pool(self.pad(given)) / inside  # type: ignore[no-any-return]


class Spread(nn.Module):
    """Makes (batch, channels) a map of one position."""

    def __init__(self, spatial: int) -> None:
        super().__init__()
        self.spatial = spatial

    def forward(self, given: Tensor) -> Tensor:
        """(batch, channels, 1, ...)."""
        return given[(..., *(None,) * self.spatial)]


class Reshape(nn.Module):
    """Gives each sample another shape. The channels are last."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, given: Tensor) -> Tensor:
        """(batch, *shape)."""
        return given.reshape(given.shape[0], *self.shape)
