"""Operators that pool and resize images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F

from edgeprune.frontends.onnx import functions, resizing
from edgeprune.frontends.onnx.build import Builder
from edgeprune.frontends.onnx.file import Node
from edgeprune.frontends.onnx.graph import Value
from edgeprune.frontends.onnx.operators.layers import pads_of, symmetric
from edgeprune.frontends.onnx.operators.table import numbers_of, operator, text

MAX: tuple[Callable[..., Any], ...] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
MEAN: tuple[Callable[..., Any], ...] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


@operator("MaxPool")
def max_pool(b: Builder, node: Node, x: Value) -> Value:
    """A separate step pads unevenly, and by more than half of the kernel."""
    if len(node.outputs) > 1 and node.outputs[1]:
        raise b.error("returns indices, which has no converter")
    given = node.attributes
    kernel = list(given["kernel_shape"])
    n = len(kernel)
    before, after = pads_of(node, x.shape[2:], kernel)
    x, padding = symmetric(b, x, before, after, float("-inf"), kernel)
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
    if not counted and (before != after or any(2 * pad > size for pad, size in zip(before, kernel, strict=True))):
        flat = [p for pair in zip(reversed(before), reversed(after), strict=True) for p in pair]
        return b.call(functions.mean_pooled, x, tuple(kernel), strides, flat)
    x, padding = symmetric(b, x, before, after, kernel=kernel)
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
    """Images of a new size."""
    if b.graph.opset < 11:
        return _upsampled(b, node, x, roi)
    by_size = sizes is not None and bool(sizes.fakes[0].numel())
    scaled = _scaled(b, node, x, sizes if by_size else scales, by_size)
    how = resizing.How(
        text(node, "mode", "nearest"),
        text(node, "coordinate_transformation_mode", "half_pixel"),
        text(node, "nearest_mode", "round_prefer_floor"),
        float(node.attributes.get("cubic_coeff_a", -0.75)),
        bool(node.attributes.get("exclude_outside", 0)),
    )
    smaller = node.attributes.get("antialias", 0) and any(one.factor < 1 for one in scaled)
    if smaller or text(node, "keep_aspect_ratio_policy", "stretch") != "stretch" or not how.is_known:
        raise b.error(f"interpolates by {how} or with options that have no converter; export the network with others")
    return _resized(b, x, scaled, how)


@operator("Upsample")
def upsample(b: Builder, node: Node, x: Value, scales: Value | None = None) -> Value:
    """Images of a new size, before opset 10."""
    return _upsampled(b, node, x, scales)


def _upsampled(b: Builder, node: Node, x: Value, scales: Value | None) -> Value:
    """As before opset 11: a smaller image takes the next pixel, a larger one the last."""
    scaled = _scaled(b, node, x, numbers_of(b, node, scales, "scales"), by_size=False)
    rounding = "ceil" if any(one.factor < 1 for one in scaled) else "floor"
    mode = text(node, "mode", "nearest").replace("bilinear", "linear")
    how = resizing.How(mode, "asymmetric", rounding, resizing.CUBIC, inside=False)
    if not how.is_known:
        raise b.error(f"interpolates by {how}, which has no converter; export the network with another mode")
    return _resized(b, x, scaled, how)


def _scaled(b: Builder, node: Node, x: Value, given: Value | None, by_size: bool) -> list[resizing.Scaled]:
    """The dimensions whose size changes."""
    if given is None or given.constant is None:
        raise b.error("needs sizes that do not depend on the inputs; export the network with fixed shapes")
    axes = [axis % x.rank for axis in node.attributes.get("axes") or range(x.rank)]
    found = [
        resizing.Scaled.of(dim, x.shape[dim], number, by_size)
        for dim, number in zip(axes, given.constant[0].tolist(), strict=True)
    ]
    changed = [one for one in found if one.changes]
    if any(one.dim == 0 for one in changed):
        raise b.error("resizes the first dimension, which has no converter")
    return changed


def _resized(b: Builder, x: Value, scaled: Sequence[resizing.Scaled], how: resizing.How) -> Value:
    """By torch's function if it interpolates as the file says, else by a table for each dimension."""
    if not scaled:
        return x
    wanted = {one.dim: one.after for one in scaled}
    named = how.of_torch(scaled, x.rank) if 1 not in wanted else None  # torch resizes no channels
    if named is not None:
        return b.call(F.interpolate, x, tuple(wanted.get(dim, x.shape[dim]) for dim in range(2, x.rank)), **named)
    for one in scaled:
        target = functions.gathered if how.mode == "nearest" else functions.mixed
        x = b.call(target, x, one.dim, b.constant(how.table(one)))
    return x


GRID = {"linear": "bilinear", "cubic": "bicubic"}  # the names of opset 20; others are torch's


@operator("GridSample")
def grid_sample(b: Builder, node: Node, x: Value, grid: Value) -> Value:
    """torch's."""
    mode = text(node, "mode", "bilinear")
    pads, corners = text(node, "padding_mode", "zeros"), bool(node.attributes.get("align_corners", 0))
    return b.call(F.grid_sample, x, grid, GRID.get(mode, mode), pads, corners)


@operator("AffineGrid")
def affine_grid(b: Builder, node: Node, theta: Value, size: Value) -> Value:
    """torch's."""
    return b.call(F.affine_grid, theta, b.fixed(size), bool(node.attributes.get("align_corners", 0)))


@operator("Col2Im")
def fold(b: Builder, node: Node, x: Value, image: Value, block: Value) -> Value:
    """torch's fold of images."""
    given = node.attributes
    pads = list(given.get("pads", [0, 0, 0, 0]))
    if len(pads) != 4 or pads[:2] != pads[2:]:
        raise b.error("pads unevenly, or has other than two dimensions, which has no converter")
    options = tuple(given.get("dilations", [1, 1])), tuple(pads[:2]), tuple(given.get("strides", [1, 1]))
    return b.call(F.fold, x, tuple(b.fixed(image)), tuple(b.fixed(block)), *options)
