"""Operators that compute each element on its own. A transpose before them is moved behind them."""

from __future__ import annotations

import math
import operator as arithmetic
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.frontends.onnx import functions
from edgeprune.frontends.onnx.build import Builder
from edgeprune.frontends.onnx.file import Node, dtype_of
from edgeprune.frontends.onnx.graph import Items, Value
from edgeprune.frontends.onnx.operators.table import OPERATORS, operator, text
from edgeprune.frontends.onnx.transposes import sunk

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh,
    "Atan": torch.atan, "Atanh": torch.atanh, "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil, "Cos": torch.cos, "Cosh": torch.cosh, "Erf": torch.erf,
    "Exp": torch.exp, "Floor": torch.floor, "HardSwish": F.hardswish, "IsNaN": torch.isnan,
    "Log": torch.log, "Mish": F.mish, "Neg": torch.neg, "Not": torch.logical_not, "Reciprocal": torch.reciprocal,
    "Relu": F.relu, "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin,
    "Sinh": torch.sinh, "Softplus": F.softplus, "Softsign": F.softsign, "Sqrt": torch.sqrt, "Tan": torch.tan,
    "Tanh": torch.tanh,
}  # fmt: skip
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": arithmetic.add, "And": torch.logical_and, "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor, "Div": functions.divided, "Equal": torch.eq, "Greater": torch.gt,
    "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le, "Mul": arithmetic.mul, "Or": torch.logical_or,
    "Sub": arithmetic.sub, "Xor": torch.logical_xor,
}  # fmt: skip
VARIADIC = {"Max": functions.largest, "Min": functions.smallest, "Sum": functions.total, "Mean": functions.mean_of}


SELU = 1.6732632423543772, 1.0507009873554805  # alpha, gamma


def _unary(target: Callable[..., Tensor], b: Builder, node: Node, x: Value) -> Value:
    return sunk(b, target, [x])


def _binary(target: Callable[..., Tensor], b: Builder, node: Node, x: Value, y: Value) -> Value:
    return sunk(b, target, [x, y])


def _variadic(target: Callable[..., Tensor], b: Builder, node: Node, *xs: Value) -> Value:
    return xs[0] if len(xs) == 1 else b.call(target, list(xs))


OPERATORS.update({name: partial(_unary, target) for name, target in UNARY.items()})
OPERATORS.update({name: partial(_binary, target) for name, target in BINARY.items()})
OPERATORS.update({name: partial(_variadic, target) for name, target in VARIADIC.items()})


@operator("Pow")
def power(b: Builder, node: Node, x: Value, y: Value) -> Value:
    """The result has the type of the base."""
    found = sunk(b, arithmetic.pow, [x, y])
    dtype = x.fakes[0].dtype
    return found if found.fakes[0].dtype is dtype else b.call(functions.cast, found, dtype)


@operator("LeakyRelu")
def leaky_relu(b: Builder, node: Node, x: Value) -> Value:
    """See ONNX."""
    return sunk(b, F.leaky_relu, [x], node.attributes.get("alpha", 0.01))


@operator("Elu")
def elu(b: Builder, node: Node, x: Value) -> Value:
    """See ONNX."""
    return sunk(b, F.elu, [x], node.attributes.get("alpha", 1.0))


@operator("Celu")
def celu(b: Builder, node: Node, x: Value) -> Value:
    """See ONNX."""
    return sunk(b, F.celu, [x], node.attributes.get("alpha", 1.0))


@operator("Selu")
def selu(b: Builder, node: Node, x: Value) -> Value:
    """See ONNX. Its usual constants are those of torch."""
    alpha, gamma = node.attributes.get("alpha", SELU[0]), node.attributes.get("gamma", SELU[1])
    if max(abs(alpha - SELU[0]), abs(gamma - SELU[1])) < 1e-6:
        return sunk(b, F.selu, [x])
    return sunk(b, arithmetic.mul, [sunk(b, F.elu, [x], alpha)], gamma)


@operator("Gelu")
def gelu(b: Builder, node: Node, x: Value) -> Value:
    """See ONNX."""
    return sunk(b, F.gelu, [x], approximate=text(node, "approximate", "none"))


@operator("Swish")
def swish(b: Builder, node: Node, x: Value) -> Value:
    """x · sigmoid(alpha · x)."""
    alpha = node.attributes.get("alpha", 1.0)
    return (
        sunk(b, F.silu, [x])
        if alpha == 1
        else b.call(arithmetic.mul, x, b.call(torch.sigmoid, b.call(arithmetic.mul, x, alpha)))
    )


@operator("HardSigmoid")
def hard_sigmoid(b: Builder, node: Node, x: Value) -> Value:
    """clamp(alpha · x + beta, 0, 1); torch's has 1/6 and 1/2."""
    alpha, beta = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return sunk(b, F.hardsigmoid, [x])
    return sunk(b, torch.clamp, [sunk(b, arithmetic.add, [sunk(b, arithmetic.mul, [x], alpha)], beta)], 0.0, 1.0)


@operator("ThresholdedRelu")
def thresholded_relu(b: Builder, node: Node, x: Value) -> Value:
    """See ONNX."""
    return sunk(b, F.threshold, [x], node.attributes.get("alpha", 1.0), 0.0)


@operator("Shrink")
def shrink(b: Builder, node: Node, x: Value) -> Value:
    """See ONNX."""
    return sunk(b, functions.shrunk, [x], node.attributes.get("lambd", 0.5), node.attributes.get("bias", 0.0))


@operator("IsInf")
def is_infinite(b: Builder, node: Node, x: Value) -> Value:
    """Of one sign, or of both."""
    positive, negative = (node.attributes.get(f"detect_{sign}", 1) for sign in ("positive", "negative"))
    if positive and negative:
        return sunk(b, torch.isinf, [x])
    return sunk(b, torch.eq, [x], math.inf if positive else -math.inf if negative else math.nan)


@operator("PRelu")
def prelu(b: Builder, node: Node, x: Value, slope: Value) -> Value:
    """A layer, if it has one slope for each channel."""
    per_channel = [size for size in slope.shape if size != 1]
    channels = x.rank > 1 and len(per_channel) == 1 and slope.shape[-(x.rank - 1) :][0] == per_channel[0] == x.shape[1]
    if slope.constant is None or not (slope.fakes[0].numel() == 1 or (channels and slope.rank >= x.rank - 1)):
        return b.call(torch.where, b.call(torch.lt, x, 0), b.call(arithmetic.mul, x, slope), x)
    return b.layer(_prelu, x, [b.call(functions.reshaped, slope, [-1])])


def _prelu(weight: nn.Parameter) -> nn.Module:
    module = nn.PReLU(weight.numel())
    module.weight = weight
    return module


@operator("Clip")
def clip(b: Builder, node: Node, x: Value, low: Value | None = None, high: Value | None = None) -> Value:
    """torch's ReLU6 where the limits are its own."""
    least = node.attributes.get("min") if low is None else b.scalar(low)
    most = node.attributes.get("max") if high is None else b.scalar(high)
    if least is None and most is None:
        return x
    if (least, most) == (0, 6):
        return sunk(b, F.relu6, [x])
    return sunk(b, F.relu, [x]) if (least, most) == (0, None) else sunk(b, torch.clamp, [x], least, most)


@operator("Mod")
def mod(b: Builder, node: Node, x: Value, y: Value) -> Value:
    """See ONNX."""
    return b.call(functions.remainder, x, y, bool(node.attributes.get("fmod", 0)))


@operator("Where")
def where(b: Builder, node: Node, condition: Value, x: Value, y: Value) -> Value:
    """See ONNX."""
    return sunk(b, torch.where, [condition, x, y])


@operator("Cast")
def cast(b: Builder, node: Node, x: Value) -> Value:
    """To a type of torch; all real numbers are float32."""
    dtype = dtype_of(b.graph.path, int(node.attributes["to"]), str(node))
    return x if x.fakes[0].dtype is dtype else sunk(b, functions.cast, [x], dtype)


@operator("CastLike")
def cast_like(b: Builder, node: Node, x: Value, like: Value) -> Value:
    """See ONNX."""
    dtype = like.fakes[0].dtype
    return x if x.fakes[0].dtype is dtype else b.call(functions.cast, x, dtype)


@operator("Dropout")
def dropout(b: Builder, node: Node, x: Value, ratio: Value | None = None, training: Value | None = None) -> Value:
    """The value itself: a network is read in eval mode."""
    if training is not None and (training.constant is None or b.scalar(training)):
        raise b.error("drops values at random; export the network in eval mode")
    return x


@operator("Identity")
def identity(b: Builder, node: Node, x: Value | Items) -> Value | Items:
    """The value itself. Exporters write equal weights once. They are tied in the network, except tables of one number."""
    if isinstance(x, Value) and x.constant is not None and x.weight:
        tensor = x.constant[0]
        if bool((tensor == tensor.flatten()[:1]).all()):
            return b.constant(tensor.clone(), node.outputs[0])
    return x
