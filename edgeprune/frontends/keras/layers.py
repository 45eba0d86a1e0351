"""Layers for images and other maps: convolutions, pools, norms, reshaping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.frontends.keras.activations import activation
from edgeprune.frontends.keras.graph import Order
from edgeprune.frontends.keras.modules import (
    Affine,
    Apply,
    Crop,
    Pad,
    PaddedMean,
    Reshape,
    Scale,
    Spread,
)
from edgeprune.frontends.keras.table import Built, Call, converts, filled, values

CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM: dict[int, Any] = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAX_POOL: dict[int, Any] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
MEAN_POOL: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
ADAPTIVE_MEAN: dict[int, Any] = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
ADAPTIVE_MAX: dict[int, Any] = {1: nn.AdaptiveMaxPool1d, 2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d}


# ------------------------------------------------------------------------------------------------ convolutions


@converts("Conv1D", "Conv2D", "Conv3D")
def convolution(call: Call) -> Built:
    """A convolution; "causal" pads in front."""
    layer = call.layer
    kernel = values(layer.kernel)  # (*window, in / groups, out)
    return _convolution(call, torch.movedim(kernel, (-1, -2), (0, 1)), layer.groups)


@converts("DepthwiseConv1D", "DepthwiseConv2D")
def depthwise(call: Call) -> Built:
    """A convolution of each channel by itself."""
    return _convolution(call, *_depthwise_kernel(call.layer.kernel))


def _depthwise_kernel(variable: Any) -> tuple[Tensor, int]:
    """The weight of torch, and the groups, of a kernel (*window, in, multiplier)."""
    kernel = values(variable)
    channels, window = kernel.shape[-2], kernel.shape[:-2]
    return torch.movedim(kernel, (-2, -1), (0, 1)).reshape(-1, 1, *window), channels


def _convolution(call: Call, weight: Tensor, groups: int, bias: bool = True) -> Built:
    layer = call.layer
    strides, dilation = _sizes(layer.strides, call.spatial), _sizes(layer.dilation_rate, call.spatial)
    pads = _pads(call, layer.padding, weight.shape[2:], strides, dilation)
    even = all(before == after for before, after in pads)
    made = CONV[call.spatial](
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride=strides,
        dilation=dilation,
        groups=groups,
        padding=tuple(before for before, _ in pads) if even else 0,
        bias=bias and layer.use_bias,
    )
    filled(made, weight=weight, bias=values(layer.bias) if bias and layer.use_bias else None)
    after = activation(call, call.order) if bias else None
    return Built(made, call.order, call.order, None if even else Pad(pads), after)


def _pads(
    call: Call, padding: str, window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> list[tuple[int, int]]:
    """The padding before and after each spatial dimension. "same" gives ceil(size / stride) positions, the rest behind."""
    reach = [step * (size - 1) + 1 for size, step in zip(window, dilation, strict=True)]
    if padding == "valid":
        return [(0, 0)] * len(reach)
    if padding == "causal":
        return [(size - 1, 0) for size in reach]
    shape = call.first.shape[1:-1] if call.order == "first" else call.first.shape[2:]
    pads = []
    for size, most, stride in zip(shape, reach, strides, strict=True):
        if size is None and stride > 1:
            raise call.missing("'same' padding with a stride needs an input of fixed size; save the model with one")
        total = most - 1 if size is None else max((-(-size // stride) - 1) * stride + most - size, 0)
        pads.append((total // 2, total - total // 2))
    return pads


def _sizes(given: Any, count: int) -> tuple[int, ...]:
    return (given,) * count if isinstance(given, int) else tuple(given)


@converts("SeparableConv1D", "SeparableConv2D")
def separable(call: Call) -> Built:
    """A depthwise convolution, and one of single positions."""
    layer = call.layer
    built = _convolution(call, *_depthwise_kernel(layer.depthwise_kernel), bias=False)
    weight = torch.movedim(values(layer.pointwise_kernel), (-1, -2), (0, 1))
    pointwise = CONV[call.spatial](weight.shape[1], weight.shape[0], 1, bias=layer.use_bias)
    filled(pointwise, weight=weight, bias=values(layer.bias) if layer.use_bias else None)
    both = nn.Sequential()
    both.add_module("depthwise", built.layer)
    both.add_module("pointwise", pointwise)
    return Built(both, call.order, call.order, built.before, activation(call, call.order))


@converts("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
def transposed(call: Call) -> Built:
    """A transposed convolution."""
    layer = call.layer
    strides, dilation = _sizes(layer.strides, call.spatial), _sizes(layer.dilation_rate, call.spatial)
    if layer.output_padding is not None:
        raise call.missing("output_padding is not supported")
    weight = torch.movedim(values(layer.kernel), (-1, -2), (0, 1))  # of (*window, out, in)
    reach = [step * (size - 1) + 1 for size, step in zip(weight.shape[2:], dilation, strict=True)]
    same = layer.padding == "same"
    crops = [max(size - stride, 0) if same else 0 for size, stride in zip(reach, strides, strict=True)]
    made = CONV_TRANSPOSE[call.spatial](
        weight.shape[0],
        weight.shape[1],
        tuple(weight.shape[2:]),
        stride=strides,
        dilation=dilation,
        padding=tuple(crop // 2 for crop in crops),
        output_padding=tuple(max(stride - size, 0) for size, stride in zip(reach, strides, strict=True)),
        bias=layer.use_bias,
    )
    filled(made, weight=weight, bias=values(layer.bias) if layer.use_bias else None)
    rest = [(0, crop % 2) for crop in crops]
    after = activation(call, call.order)
    if any(behind for _, behind in rest):
        after = nn.Sequential(Crop(rest), *([after] if after else []))
    return Built(made, call.order, call.order, None, after)


# ------------------------------------------------------------------------------------------------------ pools


@converts("MaxPooling1D", "MaxPooling2D", "MaxPooling3D")
def max_pool(call: Call) -> Built:
    """The largest value of each window."""
    window, strides, pads, even = _pool(call)
    made = MAX_POOL[call.spatial](window, strides, padding=tuple(before for before, _ in pads) if even else 0)
    return Built(made, call.order, call.order, None if even else Pad(pads, float("-inf")))


@converts("AveragePooling1D", "AveragePooling2D", "AveragePooling3D")
def mean_pool(call: Call) -> Built:
    """The mean of each window, without its padding."""
    window, strides, pads, even = _pool(call)
    if not even:
        return Built(PaddedMean(MEAN_POOL[call.spatial](window, strides), Pad(pads)), call.order, call.order)
    sides = tuple(before for before, _ in pads)
    return Built(
        MEAN_POOL[call.spatial](window, strides, padding=sides, count_include_pad=False), call.order, call.order
    )


def _pool(call: Call) -> tuple[tuple[int, ...], tuple[int, ...], list[tuple[int, int]], bool]:
    window, strides = _sizes(call.layer.pool_size, call.spatial), _sizes(call.layer.strides, call.spatial)
    pads = _pads(call, call.layer.padding, window, strides, (1,) * call.spatial)
    even = all(before == after and before <= size // 2 for (before, after), size in zip(pads, window, strict=True))
    return window, strides, pads, even


@converts("GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D")
def global_mean(call: Call) -> Built:
    """The mean over all positions, or over those that count."""
    if call.masks:
        if call.layer.keepdims or call.order == "last":
            raise call.missing("a mask is supported with channels last and keepdims=False only")
        return Built(Apply(_counted_mean), masks=tuple(call.masks.values()))
    if call.spatial != 2 or call.first.order != call.order:
        return _global(call, torch.mean)
    pool = nn.AdaptiveAvgPool2d(1)  # all runtimes have it as one operator
    kept = call.layer.keepdims
    return Built(pool, call.order, call.order if kept else "last", after=None if kept else nn.Flatten())


def _counted_mean(given: Tensor, mask: Tensor) -> Tensor:
    return (given * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


@converts("GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D")
def global_max(call: Call) -> Built:
    """The largest value of all positions."""
    return _global(call, torch.amax)


def _global(call: Call, function: Any) -> Built:
    kept = call.layer.keepdims
    if call.first.order == "last" and call.order == "first" and not kept:  # no need to reorder
        return Built(Apply(function, dim=tuple(range(1, call.spatial + 1))))
    dims = tuple(range(2, call.first.rank))
    return Built(Apply(function, dim=dims, keepdim=kept), call.order, call.order if kept else "last")


@converts("AdaptiveAveragePooling1D", "AdaptiveAveragePooling2D", "AdaptiveAveragePooling3D")
def adaptive_mean(call: Call) -> Built:
    """Means of windows that cover the input."""
    return Built(ADAPTIVE_MEAN[call.spatial](call.layer.output_size), call.order, call.order)


@converts("AdaptiveMaxPooling1D", "AdaptiveMaxPooling2D", "AdaptiveMaxPooling3D")
def adaptive_max(call: Call) -> Built:
    """Largest values of windows that cover the input."""
    return Built(ADAPTIVE_MAX[call.spatial](call.layer.output_size), call.order, call.order)


# ------------------------------------------------------------------------------------------------------ norms


@converts("BatchNormalization")
def batch_norm(call: Call) -> Built:
    """A batch normalisation over the channels."""
    layer = call.layer
    order = channels_order(call, layer.axis)
    made = NORM[call.spatial](layer.moving_mean.shape[0], eps=layer.epsilon, momentum=1 - layer.momentum)
    filled(
        made,
        weight=values(layer.gamma) if layer.scale else None,
        bias=values(layer.beta) if layer.center else None,
        running_mean=values(layer.moving_mean),
        running_var=values(layer.moving_variance),
    )
    return Built(made, order, order)


def channels_order(call: Call, axis: Any) -> Order:
    """The order in which the channels of a layer that has an axis are in dimension 1."""
    axes = [axis] if isinstance(axis, int) else list(axis)
    if len(axes) == 1 and axes[0] % call.first.rank == call.first.rank - 1:
        return "first" if call.spatial > 0 else "last"
    if len(axes) == 1 and axes[0] % call.first.rank == 1:
        return "last"
    raise call.missing(f"axis {axis} is not supported")


@converts("LayerNormalization")
def layer_norm(call: Call) -> Built:
    """A layer normalisation over the last dimensions."""
    layer = call.layer
    axes = sorted(axis % call.first.rank for axis in ([layer.axis] if isinstance(layer.axis, int) else layer.axis))
    if axes != list(range(call.first.rank - len(axes), call.first.rank)):
        raise call.missing(f"axis {layer.axis} is not supported")
    made = nn.LayerNorm([int(call.first.shape[axis] or 0) for axis in axes], eps=layer.epsilon)
    return Built(
        filled(
            made,
            weight=values(layer.gamma) if layer.scale else None,
            bias=values(layer.beta) if layer.center else None,
        )
    )


@converts("RMSNormalization")
def rms_norm(call: Call) -> Built:
    """A division by the root of the mean square over the last dimension."""
    layer = call.layer
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    if len(axes) != 1 or axes[0] % call.first.rank != call.first.rank - 1:
        raise call.missing(f"axis {layer.axis} is not supported")
    weight = values(layer.scale)
    return Built(filled(nn.RMSNorm(list(weight.shape), eps=layer.epsilon), weight=weight))


@converts("UnitNormalization")
def unit_norm(call: Call) -> Built:
    """A division by the length over one dimension."""
    axes = [call.layer.axis] if isinstance(call.layer.axis, int) else list(call.layer.axis)
    if len(axes) != 1:
        raise call.missing(f"axis {call.layer.axis} is not supported")
    return Built(Apply(F.normalize, dim=axes[0]))


@converts("GroupNormalization")
def group_norm(call: Call) -> Built:
    """A normalisation over groups of channels."""
    layer = call.layer
    order, channels = channels_order(call, layer.axis), int(call.first.shape[layer.axis] or 0)
    made = nn.GroupNorm(channels if layer.groups == -1 else layer.groups, channels, eps=layer.epsilon)
    filled(made, weight=values(layer.gamma) if layer.scale else None, bias=values(layer.beta) if layer.center else None)
    return Built(made, order, order)


@converts("Normalization")
def normalization(call: Call) -> Built:
    """A shift and a scale that were computed from data."""
    layer = call.layer
    if layer.mean is None or layer.invert:
        raise call.missing("it has no statistics, or is inverted")
    scale = 1 / values(layer.variance).sqrt().clamp(min=1e-7)
    offset = -values(layer.mean) * scale
    return Built(Affine(scale, offset))


@converts("Rescaling")
def rescaling(call: Call) -> Built:
    """scale · x + offset."""
    scale, offset = torch.as_tensor(call.layer.scale).float(), torch.as_tensor(call.layer.offset).float()
    plain = scale.numel() == offset.numel() == 1
    order: Order = call.first.order if plain else "last"
    return Built(Affine(scale, offset), order, order)


@converts("LayerScale")
def layer_scale(call: Call) -> Built:
    """A trained factor for each channel, as ConvNeXt has it."""
    return Built(Scale(values(call.layer.gamma)))


# ---------------------------------------------------------------------------------------------------- reshaping


@converts("Flatten")
def flatten(call: Call) -> Built:
    """(batch, *shape) to (batch, values), in Keras's order."""
    order: Order = call.first.order if _one_position(call) else "last"
    return Built(nn.Flatten() if call.first.rank > 1 else Reshape((1,)), order)


def _one_position(call: Call) -> bool:
    """Whether the order of the channels makes no difference."""
    return all(size == 1 for size in call.first.shape[1:-1])


@converts("Reshape")
def reshape(call: Call) -> Built:
    """Another shape of each sample."""
    target = tuple(call.layer.target_shape)
    spread = len(target) > 1 and set(target[:-1]) == {1} and target[-1] in (-1, call.first.shape[-1])
    if call.first.rank == 2 and spread:
        return Built(Spread(len(target) - 1), "last", "first")
    if _one_position(call) and len(target) == 1:
        return Built(nn.Flatten(), call.first.order)
    return Built(Reshape(target))


@converts("Permute")
def permute(call: Call) -> Built:
    """Other dimensions' order."""
    return Built(Apply(torch.permute, dims=(0, *call.layer.dims)))


@converts("RepeatVector")
def repeat(call: Call) -> Built:
    """(batch, channels) to (batch, n, channels)."""
    return Built(Apply(_repeated, count=call.layer.n))


def _repeated(given: Tensor, count: int) -> Tensor:
    return given[:, None].expand(-1, count, -1)


@converts("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D")
def zero_padding(call: Call) -> Built:
    """Zeros around the map."""
    return Built(Pad(_pairs(call.layer.padding)), call.order, call.order)


@converts("Cropping1D", "Cropping2D", "Cropping3D")
def cropping(call: Call) -> Built:
    """A part of the map."""
    return Built(Crop(_pairs(call.layer.cropping)), call.order, call.order)


@converts("CenterCrop")
def center_crop(call: Call) -> Built:
    """The part in the middle of the map."""
    sizes = call.first.shape[1:-1] if call.order == "first" else call.first.shape[2:]
    kept = call.layer.height, call.layer.width
    spare = [-1 if size is None else size - most for size, most in zip(sizes, kept, strict=True)]
    if min(spare) < 0:
        raise call.missing("it needs an input of fixed size that is not smaller")
    return Built(Crop([(rest // 2, rest - rest // 2) for rest in spare]), call.order, call.order)


def _pairs(given: Any) -> list[tuple[int, int]]:
    """(before, after) of each dimension. A layer of one dimension has one pair only."""
    nested = given if isinstance(given[0], tuple | list) else (given,)
    return [(int(before), int(after)) for before, after in nested]


@converts("UpSampling1D", "UpSampling2D", "UpSampling3D")
def upsampling(call: Call) -> Built:
    """A larger map."""
    factors = tuple(map(float, _sizes(call.layer.size, call.spatial)))
    return Built(
        _resized(call, getattr(call.layer, "interpolation", "nearest"), scale_factor=factors), *(call.order,) * 2
    )


@converts("Resizing")
def resizing(call: Call) -> Built:
    """A map of another size."""
    layer = call.layer
    if layer.crop_to_aspect_ratio or layer.pad_to_aspect_ratio or layer.antialias:
        raise call.missing("cropping, padding and antialiasing are not supported")
    return Built(_resized(call, layer.interpolation, size=(layer.height, layer.width)), call.order, call.order)


def _resized(call: Call, mode: str, **sizes: object) -> nn.Module:
    if mode == "nearest":
        return Apply(F.interpolate, mode="nearest", **sizes)
    if mode == "bilinear":
        return Apply(F.interpolate, mode="bilinear", align_corners=False, **sizes)
    raise call.missing(f"interpolation {mode!r} is not supported")
