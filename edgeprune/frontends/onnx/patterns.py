"""Layers that a file spells as several operators: each rule looks at one step and at what it reads."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from edgeprune.frontends.onnx import functions
from edgeprune.frontends.onnx.build import Builder
from edgeprune.frontends.onnx.graph import Layer, Value
from edgeprune.frontends.onnx.operators.layers import group_norm_of, layer_norm_of

CLOSE = 1e-3  # relative: exporters round √2


def simplified(b: Builder, value: Value) -> Value:
    """The result of the layer or function that a value's step completes; else the value."""
    target = value.step.target if value.step is not None else None
    for rule in RULES.get(target, ()) if callable(target) else ():
        found = rule(b, value)
        if found is not None:
            return found
    return value


def _number(x: Any) -> float | None:
    """The number that a constant or an argument is."""
    if isinstance(x, int | float):
        return float(x)
    if isinstance(x, Value) and x.constant is not None and x.fakes[0].numel() == 1 and x.constant[0] is x.constant[-1]:
        return float(x.constant[0])
    return None


def _is(x: Any, number: float) -> bool:
    found = _number(x)
    return found is not None and abs(found - number) <= CLOSE * abs(number)


def _with_constant(value: Value) -> tuple[Value, Value] | None:
    """The two arguments of a step, the constant last; None if there is none."""
    assert value.step is not None
    first, second = value.step.args[:2]
    if not (isinstance(first, Value) and isinstance(second, Value)):
        return None
    if first.constant is not None:
        first, second = second, first
    return (first, second) if second.constant is not None and first.constant is None and second.is_real else None


# --------------------------------------------------------------------------------------------------- biases, scales


def bias(b: Builder, value: Value) -> Value | None:
    """A constant that is added to the result of a layer without bias."""
    pair = _with_constant(value)
    if pair is None or pair[0].readers > 1:
        return None
    x, added = pair
    step = x.step
    if step is None or not isinstance(step.target, Layer) or not hasattr(step.target.module, "bias"):
        return None
    module = step.target.module
    if module.bias is not None:
        return None
    if isinstance(module, nn.Linear | nn.LayerNorm):
        dims, sizes = (
            (1, (x.shape[-1],))
            if isinstance(module, nn.Linear)
            else (len(module.normalized_shape), module.normalized_shape)
        )
        place = x.rank - dims
    elif isinstance(module, nn.modules.conv._ConvNd):
        sizes, place = (x.shape[1],), 1
    else:
        return None
    own = _placed(b, added, x.rank, place, tuple(sizes))
    if own is None:
        return None
    return b.relayered(step, bias=own)


def _placed(b: Builder, value: Value, rank: int, place: int, sizes: tuple[int, ...]) -> Value | None:
    """A constant that differs along the dimensions from `place` on only, as a tensor of their sizes; else None."""
    if value.rank > rank:
        return None
    shape = (1,) * (rank - value.rank) + value.shape
    end = place + len(sizes)
    inside, outside = shape[place:end], shape[:place] + shape[end:]
    if any(size != 1 for size in outside) or any(a not in (1, c) for a, c in zip(inside, sizes, strict=True)):
        return None
    flat = value if value.shape == inside else b.once(functions.reshaped, value, inside)
    return b.as_shape(flat, sizes)


def scale(b: Builder, value: Value) -> Value | None:
    """A constant that a normalisation without weights is multiplied with."""
    pair = _with_constant(value)
    if pair is None or pair[0].readers > 1:
        return None
    x, factor = pair
    layer, group = x.made_by(functions.layer_normalised), x.made_by(functions.group_normalised)
    if layer is not None:
        source, dims, eps = layer
        own = _placed(b, factor, x.rank, x.rank - dims, x.shape[-dims:])
        return None if own is None else b.layer(layer_norm_of, source, [own, None], eps=eps)
    if group is not None:
        source, groups, eps = group
        own = _placed(b, factor, x.rank, 1, (x.shape[1],))
        zero = b.constant(torch.zeros(x.shape[1]))
        return None if own is None else b.layer(group_norm_of, source, [own, zero], groups=groups, eps=eps)
    return None


def group_bias(b: Builder, value: Value) -> Value | None:
    """A constant that is added to a group norm that `scale` found."""
    pair = _with_constant(value)
    if pair is None or pair[0].readers > 1:
        return None
    step = pair[0].step
    if step is None or not isinstance(step.target, Layer) or not isinstance(step.target.module, nn.GroupNorm):
        return None
    own = _placed(b, pair[1], pair[0].rank, 1, (pair[0].shape[1],))
    if own is None or bool(step.target.module.bias.any()):
        return None
    return b.relayered(step, bias=own)


# --------------------------------------------------------------------------------------------------- normalisations


def layer_norm(b: Builder, value: Value) -> Value | None:
    """(x − mean) / sqrt(mean((x − mean)²) + eps)."""
    assert value.step is not None
    centred, deviation = value.step.args[:2]
    if not (isinstance(centred, Value) and isinstance(deviation, Value)):
        return None
    x = _centred(centred)
    root = deviation.made_by(torch.sqrt)
    added = root[0].made_by(operator.add) if root else None
    if x is None or added is None or _number(added[1]) is None:
        return None
    variance = added[0].made_by(functions.mean) if isinstance(added[0], Value) else None
    if variance is None or not variance[2] or not _is_square(variance[0], x[0]) or variance[1] != x[1]:
        return None
    if x[1] != list(range(x[0].rank - len(x[1]), x[0].rank)):
        return None
    return b.call(functions.layer_normalised, x[0], len(x[1]), _number(added[1]))


def _centred(value: Value) -> tuple[Value, list[int]] | None:
    """x and the dimensions of the mean, if a value is x − mean(x)."""
    made = value.made_by(operator.sub)
    if made is None or not isinstance(made[1], Value):
        return None
    mean = made[1].made_by(functions.mean)
    return (made[0], mean[1]) if mean is not None and mean[0] is made[0] and mean[2] else None


def _is_square(value: Value, x: Value) -> bool:
    """Whether a value is (x − mean(x))²."""
    power, product = value.made_by(operator.pow), value.made_by(operator.mul)
    if power is not None:
        factors = (power[0],) if _is(power[1], 2) else ()
    else:
        factors = product if product is not None and product[0] is product[1] else ()
    found = [_centred(factor) for factor in factors if isinstance(factor, Value)]
    return bool(found) and all(one is not None and one[0] is x for one in found)


def group_norm(b: Builder, value: Value) -> Value | None:
    """An instance norm without weights, of channels that are reshaped to groups and back."""
    assert value.step is not None
    inner = value.step.args[0]
    step = inner.step
    if step is None or not isinstance(step.target, Layer) or not isinstance(step.target.module, nn.InstanceNorm1d):
        return None
    module, grouped = step.target.module, step.args[0]
    before = grouped.made_by(functions.reshaped)
    if before is None or before[0].shape != value.shape or before[0].shape[0] != grouped.shape[0]:
        return None
    if not bool((module.weight == 1).all()) or bool(module.bias.any()) or value.shape[1] % grouped.shape[1]:
        return None
    return b.call(functions.group_normalised, before[0], grouped.shape[1], module.eps)


# ------------------------------------------------------------------------------------------------------- activations


def activation(b: Builder, value: Value) -> Value | None:
    """x · sigmoid(x), x · hardsigmoid(x), and 0.5 · x · (1 + erf(x / √2)), in any order."""
    factors = _factors(value)
    numbers = [n for factor in factors if (n := _number(factor)) is not None]
    others = [factor for factor in factors if _number(factor) is None]
    if len(others) != 2:
        return None
    product = math.prod(numbers)
    for x, gate in (others, others[::-1]):
        for target, wanted, is_gate in _GATES:
            if abs(product - wanted) <= CLOSE * wanted and is_gate(gate, x):
                return b.call(target, x)
    return None


def _factors(value: Any) -> list[Any]:
    """What a product multiplies. A part of it that others read is one factor."""
    made = value.made_by(operator.mul) if isinstance(value, Value) else None
    if made is None:
        divided = value.made_by(functions.divided) if isinstance(value, Value) else None
        number = _number(divided[1]) if divided is not None else None
        return [value] if divided is None or not number else [*_inner(divided[0]), 1 / number]
    return [*_inner(made[0]), *_inner(made[1])]


def _inner(value: Any) -> list[Any]:
    return _factors(value) if isinstance(value, Value) and value.readers <= 1 else [value]


def _is_sigmoid(gate: Value, x: Value) -> bool:
    made = gate.made_by(torch.sigmoid)
    return made is not None and made[0] is x


def _is_hard_sigmoid(gate: Value, x: Value) -> bool:
    made = gate.made_by(F.hardsigmoid)
    return made is not None and made[0] is x


def _is_clipped(gate: Value, x: Value) -> bool:
    """clamp(x + 3, 0, 6)."""
    made = gate.made_by(F.relu6)
    added = made[0].made_by(operator.add) if made is not None else None
    return added is not None and added[0] is x and _is(added[1], 3)


def _is_error(gate: Value, x: Value) -> bool:
    """1 + erf(x / √2)."""
    added = gate.made_by(operator.add)
    if added is None:
        return False
    erf = next((made for a in added if isinstance(a, Value) and (made := a.made_by(torch.erf)) is not None), None)
    if erf is None or not any(_is(a, 1) for a in added):
        return False
    divided, product = erf[0].made_by(functions.divided), erf[0].made_by(operator.mul)
    if divided is not None:
        return divided[0] is x and _is(divided[1], math.sqrt(2))
    return product is not None and product[0] is x and _is(product[1], math.sqrt(0.5))


_GATES: tuple[tuple[Callable[..., Any], float, Callable[[Value, Value], bool]], ...] = (
    (F.silu, 1.0, _is_sigmoid),
    (F.hardswish, 1.0, _is_hard_sigmoid),
    (F.hardswish, 1 / 6, _is_clipped),
    (F.gelu, 0.5, _is_error),
)
RULES: dict[Callable[..., Any], tuple[Callable[[Builder, Value], Value | None], ...]] = {
    operator.add: (bias, group_bias),
    operator.mul: (scale, activation),
    functions.divided: (layer_norm, activation),
    functions.reshaped: (group_norm,),
}
