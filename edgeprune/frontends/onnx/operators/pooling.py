"""Operators that pool and resize images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F

from edgeprune.frontends.onnx import functions
from edgeprune.frontends.onnx.build import Builder
from edgeprune.frontends.onnx.file import Node
from edgeprune.frontends.onnx.graph import Value
from edgeprune.frontends.onnx.operators.layers import pads_of, symmetric
from edgeprune.frontends.onnx.operators.table import operator, text

MAX: tuple[Callable[..., Any], ...] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
MEAN: tuple[Callable[..., Any], ...] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


@operator("MaxPool")
def max_pool(b: Builder, node: Node, x: Value) -> Value:
    """A separate step pads unevenly."""
    if len(node.outputs) > 1 and node.outputs[1]:
        raise b.error("returns indices, which has no converter")
    given = node.attributes
    kernel = list(given["kernel_shape"])
    n = len(kernel)
    before, after = pads_of(node, x.shape[2:], kernel)
    if any(2 * pad > size for pad, size in zip(before, kernel, strict=True)):
        raise b.error("pads more than half of its kernel, which has no converter")
    x, padding = symmetric(b, x, before, after, float("-inf"))
    strides, dilations = tuple(given.get("strides", [1] * n)), tuple(given.get("dilations", [1] * n))
    return b.call(MAX[n - 1], x, tuple(kernel), strides, padding, dilations, bool(given.get("ceil_mode", 0)))


@operator("AveragePool")
def average_pool(b: Builder, node: Node, x: Value) -> Value:
    """Uneven padding is possible only if it counts as zeros, or if every window is divided by what it holds."""
    given = node.attributes
    kernel = list(given["kernel_shape"])
    n = len(kernel)
    if any(dilation != 1 for dilation in given.get("dilations", [1])):
        raise b.error("has dilations, which has no converter")
    before, after = pads_of(node, x.shape[2:], kernel)
    counted = bool(given.get("count_include_pad", 0))
    strides, ceil = tuple(given.get("strides", [1] * n)), bool(given.get("ceil_mode", 0))
    if before != after and not counted:
        flat = [p for pair in zip(reversed(before), reversed(after), strict=True) for p in pair]
        return b.call(functions.mean_pooled, x, tuple(kernel), strides, flat)
    x, padding = symmetric(b, x, before, after)
    return b.call(MEAN[n - 1], x, tuple(kernel), strides, padding, ceil, counted)


@operator("GlobalAveragePool")
def global_average_pool(b: Builder, node: Node, x: Value) -> Value:
    """The mean of each channel."""
    return b.call(functions.mean, x, list(range(2, x.rank)), True)


@operator("GlobalMaxPool")
def global_max_pool(b: Builder, node: Node, x: Value) -> Value:
    """The largest number of each channel."""
    return b.call(functions.reduced, x, list(range(2, x.rank)), True, "max")


@operator("Resize")
def resize(
    b: Builder, node: Node, x: Value, roi: Value | None = None, scales: Value | None = None, sizes: Value | None = None
) -> Value:
    """Images of a new size, where torch interpolates as the file says."""
    mode = text(node, "mode", "nearest")
    where = text(node, "coordinate_transformation_mode", "half_pixel")
    if sizes is not None and sizes.fakes[0].numel():
        after = b.ints(sizes)[0]
        factors = [after[dim] / size for dim, size in enumerate(x.shape)] if len(after) == x.rank else None
        wanted = after[2:] if factors else after
    else:
        if scales is None or scales.constant is None:
            raise b.error("needs scales that do not depend on the inputs; export the network with fixed shapes")
        factors = scales.constant[0].tolist()
        wanted = [int(size * factor) for size, factor in zip(x.shape[2:], factors[2:], strict=False)]
    if factors is not None and list(factors[:2]) != [1, 1]:
        raise b.error("resizes channels, which has no converter")
    if list(wanted) == list(x.shape[2:]):
        return x
    if node.attributes.get("antialias", 0) or node.attributes.get("exclude_outside", 0):
        raise b.error("interpolates with options without a converter; export the network with other ones")
    corners = where == "align_corners"
    whole = all(size % old == 0 for size, old in zip(wanted, x.shape[2:], strict=True))
    if mode == "nearest":
        rounding = text(node, "nearest_mode", "round_prefer_floor")
        plain = where == "asymmetric" and rounding == "floor"
        if not plain and not (
            whole
            and where in ("half_pixel", "asymmetric", "pytorch_half_pixel")
            and _repeats(where, rounding, wanted, x)
        ):
            raise b.error(f"interpolates by {where} and {rounding}, which has no converter")
        return b.call(F.interpolate, x, tuple(wanted), mode="nearest")
    names = {("linear", 3): "linear", ("linear", 4): "bilinear", ("linear", 5): "trilinear", ("cubic", 4): "bicubic"}
    known = names.get((mode, x.rank))
    shrinks = any(size == 1 for size in wanted)
    if known is None or not (corners or where == "half_pixel" or (where == "pytorch_half_pixel" and not shrinks)):
        raise b.error(f"interpolates by {mode} and {where}, which has no converter")
    if mode == "cubic" and abs(node.attributes.get("cubic_coeff_a", -0.75) + 0.75) > 1e-6:
        raise b.error("interpolates by a cubic that torch has not, which has no converter")
    return b.call(F.interpolate, x, tuple(wanted), mode=known, align_corners=corners)


def _repeats(where: str, rounding: str, wanted: list[int], x: Value) -> bool:
    """Whether every pixel is repeated equally often, as torch does."""
    for size, old in zip(wanted, x.shape[2:], strict=True):
        scale = size / old
        for place in range(size):
            exact = place / scale if where == "asymmetric" else (place + 0.5) / scale - 0.5
            down, up = int(exact // 1), -int(-exact // 1)
            nearest = {
                "floor": down,
                "ceil": up,
                "round_prefer_floor": down if exact - down <= 0.5 else up,
                "round_prefer_ceil": up if exact - down >= 0.5 else down,
            }.get(rounding, -1)
            if min(max(nearest, 0), old - 1) != int(place // scale):
                return False
    return True
