"""Layers that combine several inputs, and layers that act in training only."""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

import torch
from torch import nn

from edgeprune.frontends.keras.modules import Concatenate, Mean, Merge, WithNumber
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
