"""Operators with weights: convolutions, products, normalisations."""

from __future__ import annotations

import math
import operator as arithmetic
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.frontends.onnx import functions
from edgeprune.frontends.onnx.build import Builder
from edgeprune.frontends.onnx.file import Node
from edgeprune.frontends.onnx.graph import Value
from edgeprune.frontends.onnx.operators.table import axis_of, operator, text

CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, type[nn.Module]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORMS: dict[int, type[nn.Module]] = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORMS: dict[int, type[nn.Module]] = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def weighted(module: nn.Module, **tensors: nn.Parameter | Tensor | None) -> nn.Module:
    """A layer that was made without memory, with these parameters and buffers."""
    for name, tensor in tensors.items():
        setattr(module, name, tensor)  # a recurrence notes its parameters here
    return module


def pads_of(node: Node, sizes: tuple[int, ...], kernel: list[int]) -> tuple[list[int], list[int]]:
    """Padding before and after each dimension, also of `auto_pad`."""
    n = len(kernel)
    strides = list(node.attributes.get("strides", [1] * n))
    dilations = list(node.attributes.get("dilations", [1] * n))
    how = text(node, "auto_pad", "NOTSET")
    if how in ("NOTSET", ""):
        pads = list(node.attributes.get("pads", [0] * 2 * n))
        return pads[:n], pads[n:]
    if how == "VALID":
        return [0] * n, [0] * n
    before, after = [], []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        needed = max((math.ceil(size / stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        small, large = needed // 2, needed - needed // 2
        before.append(small if how == "SAME_UPPER" else large)
        after.append(large if how == "SAME_UPPER" else small)
    return before, after


def symmetric(
    b: Builder, x: Value, before: list[int], after: list[int], value: float = 0.0, kernel: Sequence[int] = ()
) -> tuple[Value, tuple[int, ...]]:
    """The input and the padding of a layer that pads both sides alike. Other padding is a step before it.

    With `kernel`, so is padding of more than half of it.
    """
    if before == after and all(2 * pad <= size for pad, size in zip(before, kernel, strict=False)):
        return x, tuple(before)
    flat = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    return b.call(functions.padded, x, flat, "constant", value), (0,) * len(before)


@operator("Conv")
def conv(b: Builder, node: Node, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """A layer, if its weights are constants."""
    n = weight.rank - 2
    given = node.attributes
    x, padding = symmetric(b, x, *pads_of(node, x.shape[2:], list(weight.shape[2:])))
    strides, dilations = tuple(given.get("strides", [1] * n)), tuple(given.get("dilations", [1] * n))
    groups = int(given.get("group", 1))
    if n not in CONVOLUTIONS:
        raise b.error(f"convolves {n} dimensions, which has no converter")
    if weight.constant is None or (bias is not None and bias.constant is None):
        return b.call((F.conv1d, F.conv2d, F.conv3d)[n - 1], x, weight, bias, strides, padding, dilations, groups)
    return b.layer(_conv, x, [weight, bias], stride=strides, padding=padding, dilation=dilations, groups=groups)


def _conv(weight: nn.Parameter, bias: nn.Parameter | None, **options: Any) -> nn.Module:
    outputs, inputs, *kernel = weight.shape
    kind = CONVOLUTIONS[len(kernel)]
    made = kind(inputs * options["groups"], outputs, tuple(kernel), bias=bias is not None, device="meta", **options)
    return weighted(made, weight=weight, bias=bias)


@operator("ConvTranspose")
def conv_transpose(b: Builder, node: Node, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """A layer, if its weights are constants. Uneven padding is cut off afterwards."""
    n = weight.rank - 2
    given = node.attributes
    if n not in TRANSPOSED or weight.constant is None or (bias is not None and bias.constant is None):
        raise b.error("has weights that depend on the inputs, or more than three dimensions, which has no converter")
    kernel = list(weight.shape[2:])
    strides = list(given.get("strides", [1] * n))
    dilations = list(given.get("dilations", [1] * n))
    extra = list(given.get("output_padding", [0] * n))
    pads = list(given.get("pads", [0] * 2 * n))
    before, after = pads[:n], pads[n:]
    how = text(node, "auto_pad", "NOTSET")
    # ONNX: without auto_pad, an odd rest of output_shape is before the image.
    wanted = given.get("output_shape") or (
        [s * f for s, f in zip(x.shape[2:], strides, strict=True)] if "SAME" in how else None
    )
    if wanted is not None:
        whole = [
            f * (s - 1) + e + (k - 1) * d + 1
            for s, f, k, d, e in zip(x.shape[2:], strides, kernel, dilations, extra, strict=True)
        ]
        total = [size - end for size, end in zip(whole, wanted, strict=True)]
        before = [t // 2 if how == "SAME_UPPER" else t - t // 2 for t in total]
        after = [t - first for t, first in zip(total, before, strict=True)]
    even = [min(pair) for pair in zip(before, after, strict=True)]
    options = {"stride": tuple(strides), "dilation": tuple(dilations), "groups": int(given.get("group", 1))}
    if before == after or all(a <= b_ for a, b_ in zip(after, before, strict=True)):
        # Torch's output padding adds at the end, as less padding there does.
        more = [e + first - last for e, first, last in zip(extra, before, after, strict=True)]
        if all(m < max(s, d) for m, s, d in zip(more, strides, dilations, strict=True)):
            return b.layer(_deconv, x, [weight, bias], padding=tuple(before), output_padding=tuple(more), **options)
    y = b.layer(_deconv, x, [weight, bias], padding=tuple(even), output_padding=tuple(extra), **options)
    for dim, (first, last, base) in enumerate(zip(before, after, even, strict=True), 2):
        if first > base or last > base:
            y = b.call(functions.sliced, y, dim, first - base, y.shape[dim] - (last - base), 1)
    return y


def _deconv(weight: nn.Parameter, bias: nn.Parameter | None, **options: Any) -> nn.Module:
    inputs, outputs, *kernel = weight.shape
    kind = TRANSPOSED[len(kernel)]
    made = kind(inputs, outputs * options["groups"], tuple(kernel), bias=bias is not None, device="meta", **options)
    return weighted(made, weight=weight, bias=bias)


@operator("Gemm")
def gemm(b: Builder, node: Node, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """A linear layer, if the second factor is constant."""
    given = node.attributes
    alpha, beta = given.get("alpha", 1.0), given.get("beta", 1.0)
    if given.get("transA", 0):
        x = b.call(torch.t, x)
    outputs = weight.shape[0 if given.get("transB", 0) else 1]
    fits = bias is None or (bias.constant is not None and bias.shape in ((outputs,), (1, outputs)))
    if weight.constant is None or not fits:
        y = b.call(torch.matmul, x, b.call(torch.t, weight) if given.get("transB", 0) else weight)
        y = y if alpha == 1 else b.call(arithmetic.mul, y, alpha)
        return (
            y if bias is None else b.call(arithmetic.add, y, bias if beta == 1 else b.call(arithmetic.mul, bias, beta))
        )
    if not given.get("transB", 0):
        weight = b.once(torch.t, weight)
    weight = weight if alpha == 1 else b.once(arithmetic.mul, weight, alpha)
    if bias is not None:
        bias = bias if bias.rank == 1 else b.once(functions.reshaped, bias, (-1,))
        bias = bias if beta == 1 else b.once(arithmetic.mul, bias, beta)
    return b.layer(linear, x, [weight, bias])


def linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Module:
    """A linear layer with these parameters."""
    outputs, inputs = weight.shape
    return weighted(nn.Linear(inputs, outputs, bias is not None, device="meta"), weight=weight, bias=bias)


@operator("MatMul")
def matmul(b: Builder, node: Node, x: Value, y: Value) -> Value:
    """A linear layer, if the second factor is a constant matrix."""
    if x.constant is None and y.constant is not None and y.rank == 2 and x.rank > 1 and y.is_real:
        return b.layer(linear, x, [b.once(torch.t, y), None])
    return b.call(torch.matmul, x, y)


@operator("Einsum")
def einsum(b: Builder, node: Node, *xs: Value) -> Value:
    """See ONNX."""
    return b.call(torch.einsum, text(node, "equation"), *xs)


@operator("BatchNormalization")
def batch_norm(b: Builder, node: Node, x: Value, scale: Value, bias: Value, mean: Value, variance: Value) -> Value:
    """A layer that learns its statistics when it is trained."""
    given = node.attributes
    if b.graph.opset < 14 and any(node.outputs[1:]):
        raise b.error("is in training form; export the network in eval mode: model.eval()")
    if not given.get("spatial", 1):
        raise b.error("has statistics of single positions, which has no converter")
    if given.get("training_mode", 0):
        return b.call(functions.batch_normalised, x, scale, bias, float(given.get("epsilon", 1e-5)))
    weights = [scale, bias, mean, variance]
    if any(value.constant is None for value in weights) or x.rank - 2 not in BATCH_NORMS:
        raise b.error("has statistics that depend on the inputs, which has no converter")
    # The part of the new statistics; files for inference hold any number.
    momentum = min(max(1 - float(given.get("momentum", 0.9)), 0.01), 0.5)
    return b.layer(
        _batch_norm, x, weights, dims=x.rank - 2, eps=float(given.get("epsilon", 1e-5)), momentum=round(momentum, 6)
    )


def _batch_norm(
    scale: nn.Parameter,
    bias: nn.Parameter,
    mean: nn.Parameter,
    variance: nn.Parameter,
    dims: int,
    eps: float,
    momentum: float,
) -> nn.Module:
    module = BATCH_NORMS[dims](scale.numel(), eps=eps, momentum=momentum)
    return weighted(
        module, weight=scale, bias=bias, running_mean=mean.detach().clone(), running_var=variance.detach().clone()
    )


@operator("InstanceNormalization")
def instance_norm(b: Builder, node: Node, x: Value, scale: Value, bias: Value) -> Value:
    """A layer with weights."""
    if scale.constant is None or bias.constant is None or x.rank - 2 not in INSTANCE_NORMS:
        raise b.error("has weights that depend on the inputs, which has no converter")
    return b.layer(_instance_norm, x, [scale, bias], dims=x.rank - 2, eps=float(node.attributes.get("epsilon", 1e-5)))


def _instance_norm(scale: nn.Parameter, bias: nn.Parameter, dims: int, eps: float) -> nn.Module:
    return weighted(INSTANCE_NORMS[dims](scale.numel(), eps=eps, affine=True), weight=scale, bias=bias)


@operator("LayerNormalization")
def layer_norm(b: Builder, node: Node, x: Value, scale: Value, bias: Value | None = None) -> Value:
    """A layer over the last dimensions."""
    axis = axis_of(node, x, -1)
    sizes = x.shape[axis:]
    others = any(map(b.is_read, node.outputs[1:]))
    if scale.constant is None or (bias is not None and bias.constant is None) or others:
        raise b.error("has weights that depend on the inputs, or more than one result, which has no converter")
    whole = [b.as_shape(value, sizes) if value is not None else None for value in (scale, bias)]
    return b.layer(layer_norm_of, x, whole, eps=float(node.attributes.get("epsilon", 1e-5)))


def layer_norm_of(scale: nn.Parameter, bias: nn.Parameter | None, eps: float) -> nn.Module:
    """A layer norm with these parameters."""
    return weighted(nn.LayerNorm(tuple(scale.shape), eps, bias=bias is not None), weight=scale, bias=bias)


@operator("RMSNormalization", "SimplifiedLayerNormalization")  # the second is how ONNX Runtime's tools write it
def rms_norm(b: Builder, node: Node, x: Value, scale: Value) -> Value:
    """A layer over the last dimensions."""
    sizes = x.shape[axis_of(node, x, -1) :]
    if scale.constant is None:
        raise b.error("has weights that depend on the inputs, which has no converter")
    return b.layer(_rms_norm, x, [b.as_shape(scale, sizes)], eps=float(node.attributes.get("epsilon", 1e-5)))


def _rms_norm(scale: nn.Parameter, eps: float) -> nn.Module:
    return weighted(nn.RMSNorm(tuple(scale.shape), eps), weight=scale)


@operator("GroupNormalization")
def group_norm(b: Builder, node: Node, x: Value, scale: Value, bias: Value) -> Value:
    """A layer. Before opset 21 the weights are those of groups."""
    groups = int(node.attributes["num_groups"])
    if scale.constant is None or bias.constant is None:
        raise b.error("has weights that depend on the inputs, which has no converter")
    if b.graph.opset < 21 and scale.shape[0] != x.shape[1]:
        scale, bias = (b.once(torch.repeat_interleave, value, x.shape[1] // groups) for value in (scale, bias))
    return b.layer(group_norm_of, x, [scale, bias], groups=groups, eps=float(node.attributes.get("epsilon", 1e-5)))


def group_norm_of(scale: nn.Parameter, bias: nn.Parameter, groups: int, eps: float) -> nn.Module:
    """A group norm with these parameters."""
    return weighted(nn.GroupNorm(groups, scale.numel(), eps), weight=scale, bias=bias)


@operator("Attention")
def attention(
    b: Builder, node: Node, q: Value, k: Value, v: Value, mask: Value | None = None, *past: Value | None
) -> Value:
    """Scaled dot-product attention. The heads are a dimension."""
    given = node.attributes
    unknown = {key for key, value in given.items() if value} - {"q_num_heads", "kv_num_heads", "scale", "is_causal"}
    both = mask is not None and given.get("is_causal", 0)
    if any(past) or unknown or both or len(node.outputs) > 1:
        raise b.error("keeps a cache or has options without a converter; export the network with a lower opset")
    if q.rank == 3:
        heads, others = int(given["q_num_heads"]), int(given["kv_num_heads"])
        q, k, v = (_headed(b, x, n) for x, n in ((q, heads), (k, others), (v, others)))
        y = _attended(b, node, q, k, v, mask)
        return b.call(torch.flatten, b.call(functions.permuted, y, (0, 2, 1, 3)), 2)
    return _attended(b, node, q, k, v, mask)


def _headed(b: Builder, x: Value, heads: int) -> Value:
    return b.call(functions.permuted, b.call(torch.unflatten, x, 2, (-1, x.shape[2] // heads)), (0, 2, 1, 3))


def _attended(b: Builder, node: Node, q: Value, k: Value, v: Value, mask: Value | None) -> Value:
    scale = node.attributes.get("scale") or q.shape[-1] ** -0.5
    causal = bool(node.attributes.get("is_causal", 0))
    grouped = q.shape[1] != k.shape[1]
    target: Callable[..., Tensor] = F.scaled_dot_product_attention
    return b.call(target, q, k, v, mask, 0.0, causal, scale=scale, **({"enable_gqa": True} if grouped else {}))
