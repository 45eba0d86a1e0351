"""Layers that combine several inputs, and layers that act in training only."""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.frontends.keras.modules import Apply, Concatenate, Mean, Merge, WithNumber
from edgeprune.frontends.keras.table import Built, Call, converts

DROPOUT: dict[int, Any] = {1: nn.Dropout1d, 2: nn.Dropout2d, 3: nn.Dropout3d}
MERGES = {
    "Add": operator.add,
    "Subtract": operator.sub,
    "Multiply": operator.mul,
    "Divide": operator.truediv,
    "TrueDivide": operator.truediv,
    "Maximum": torch.maximum,
    "Minimum": torch.minimum,
}


@converts(*(name for name in MERGES if "Div" not in name), *(f"ops.{name}" for name in MERGES))
def merge(call: Call) -> Built:
    """An operation of each element of all inputs, or of an input and a number."""
    function = MERGES[type(call.layer).__name__]
    if len(call.given) > 1:
        return Built(Merge(function), call.common, call.common)
    numbers = [value for value in call.arguments if isinstance(value, int | float)]
    if len(numbers) != 1:
        raise call.missing("a constant tensor is not supported")
    made = WithNumber(function, float(numbers[0]), first=isinstance(call.arguments[0], int | float))
    return Built(made, call.first.order, call.first.order)


@converts("CustomScaleLayer")
def scaled_sum(call: Call) -> Built:
    """The first input plus a share of the second one, as InceptionResNetV2 has it."""
    return Built(Merge(partial(torch.add, alpha=float(call.layer.scale))), call.common, call.common)


@converts("Average")
def mean(call: Call) -> Built:
    """The mean of the inputs."""
    return Built(Mean(), call.common, call.common)


@converts("Concatenate")
def concatenate(call: Call) -> Built:
    """Inputs side by side."""
    return Built(Concatenate(call.dim(call.layer.axis, call.common)), call.common, call.common)


@converts("Dot")
def dot(call: Call) -> Built:
    """Products of two inputs, summed over one dimension of each."""
    given = call.layer.axes
    axes = [given, given] if isinstance(given, int) else list(given)
    first, second = (axis % value.rank for axis, value in zip(axes, call.given, strict=True))
    if max(value.rank for value in call.given) > 3 or call.given[1].rank > call.first.rank or 0 in (first, second):
        raise call.missing("only products of vectors and matrices are supported, with the larger input first")
    return Built(Apply(_product, first=first, second=second, normalised=bool(call.layer.normalize)))


def _product(a: Tensor, b: Tensor, first: int, second: int, normalised: bool) -> Tensor:
    """(batch, ...) of two inputs. `first` and `second` are the dimensions that are summed over."""
    if normalised:
        a, b = F.normalize(a, dim=first), F.normalize(b, dim=second)
    if a.ndim == 2:
        return (a * b).sum(1, keepdim=True)
    a = a.transpose(1, 2) if first == 1 else a
    if b.ndim == 2:
        return torch.matmul(a, b[:, :, None]).squeeze(2)
    return torch.matmul(a, b.transpose(1, 2) if second == 2 else b)


@converts("Dropout", "AlphaDropout")
def dropout(call: Call) -> Built:
    """Zeros at random, in training."""
    return Built(nn.Dropout(call.layer.rate), call.first.order, call.first.order)


@converts("SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D")
def spatial_dropout(call: Call) -> Built:
    """Zero channels at random, in training."""
    return Built(DROPOUT[call.spatial](call.layer.rate), call.order, call.order)


RANDOM = """Brightness ColorDegeneration ColorJitter Contrast ElasticTransform Erasing Flip GaussianBlur Grayscale Hue Invert
    Perspective Posterization Rotation Saturation Sharpness Shear Translation Zoom""".split()


@converts("GaussianNoise", "GaussianDropout", "ActivityRegularization", "StochasticDepth", "Identity")
@converts(*(f"Random{name}" for name in RANDOM))
def identity(call: Call) -> Built:
    """Passes its input through. Noise, regularisation and augmentation are of Keras's own training."""
    return Built(nn.Identity(), call.first.order, call.first.order)
