"""Activations: layers and functions of Keras as modules of torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from edgeprune.frontends.keras.graph import Order
from edgeprune.frontends.keras.modules import Apply, LeakyClip
from edgeprune.frontends.keras.table import TABLE, Built, Call, converts, of_class, values

FUNCTIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "celu": nn.CELU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "hard_sigmoid": nn.Hardsigmoid,
    "hard_silu": nn.Hardswish,
    "hard_swish": nn.Hardswish,
    "hard_tanh": nn.Hardtanh,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "log_sigmoid": nn.LogSigmoid,
    "tanh_shrink": nn.Tanhshrink,
    "hard_shrink": nn.Hardshrink,
    "soft_shrink": nn.Softshrink,
    "exponential": lambda: Apply(torch.exp),
}
OVER_CHANNELS: dict[str, Callable[[int], nn.Module]] = {"softmax": nn.Softmax, "log_softmax": nn.LogSoftmax}


LAYERS = "Activation", "ReLU", "LeakyReLU", "ELU", "Softmax"  # that have no weights, so they may be an activation


def activation(call: Call, order: Order) -> nn.Module | None:
    """The activation that a layer has inside; None if it has none. `order` is that of the tensor it is applied to."""
    function = call.layer.activation
    if function is not None and of_class(function) in LAYERS:
        given = replace(call.first, order=order)
        return TABLE[of_class(function)](Call(function, (given,), {}, (given,))).layer
    name = function_name(call, function)
    if name == "linear":
        return None
    if name in OVER_CHANNELS:
        return OVER_CHANNELS[name](1 if order == "first" else -1)
    if name not in FUNCTIONS:
        raise call.missing(f"the activation {name!r} is not supported")
    return FUNCTIONS[name]()


def function_name(call: Call, function: Any) -> str:
    """The name that Keras gives a function."""
    from keras import activations

    if function is None:
        return "linear"
    found = activations.serialize(function)
    if not isinstance(found, str):
        raise call.missing("its activation is no function of Keras")
    return found


@converts("Activation")
def named(call: Call) -> Built:
    """An activation by its name."""
    found = activation(call, call.first.order) or nn.Identity()
    return Built(found, call.first.order, call.first.order)


@converts("ReLU")
def relu(call: Call) -> Built:
    """A rectifier, which may have a slope, a threshold and a largest value."""
    layer = call.layer
    slope, threshold, most = float(layer.negative_slope), float(layer.threshold), layer.max_value
    if threshold or (slope and most is not None) or most not in (None, 6):
        made: nn.Module = LeakyClip(slope, threshold, None if most is None else float(most))
    elif most is not None:
        made = nn.ReLU6()
    else:
        made = nn.LeakyReLU(slope) if slope else nn.ReLU()
    return _by_element(call, made)


@converts("LeakyReLU")
def leaky(call: Call) -> Built:
    """A rectifier with a slope."""
    return _by_element(call, nn.LeakyReLU(float(call.layer.negative_slope)))


@converts("ELU")
def elu(call: Call) -> Built:
    """An exponential rectifier."""
    return _by_element(call, nn.ELU(float(call.layer.alpha)))


@converts("PReLU")
def prelu(call: Call) -> Built:
    """A rectifier with a trained slope for each channel."""
    alpha = values(call.layer.alpha)
    if alpha.numel() != alpha.shape[-1]:
        raise call.missing("a slope for each position is not supported; use shared_axes")
    made = nn.PReLU(alpha.numel())
    made.load_state_dict({"weight": alpha.flatten()})
    order: Order = "first" if call.spatial > 0 else "last"
    return Built(made, order, order)


@converts("Softmax")
def softmax(call: Call) -> Built:
    """A softmax over one axis."""
    axis = call.layer.axis
    if not isinstance(axis, int):
        raise call.missing(f"axis {axis} is not supported")
    return Built(nn.Softmax(call.dim(axis, call.first.order)), call.first.order, call.first.order)


@converts(*(f"ops.{name}" for name in ("Relu", "Relu6", "Sigmoid", "Tanh", "Silu", "HardSigmoid", "HardSilu")))
def operation(call: Call) -> Built:
    """An activation that was called as a function of `keras.ops`."""
    names = {"HardSigmoid": "hard_sigmoid", "HardSilu": "hard_silu"}
    kind = type(call.layer).__name__
    return _by_element(call, FUNCTIONS[names.get(kind, kind.lower())]())


def _by_element(call: Call, made: nn.Module) -> Built:
    return Built(made, call.first.order, call.first.order)
