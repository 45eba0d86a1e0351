"""Rules of products of tensors. A dimension that is summed over is cut in both, and so is a dimension that is aligned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from edgeprune.graph.labels import Axes, Axis
from edgeprune.graph.rules.base import Call, Geometry, Value, add_layer, broadcast, rule, unknown


@rule("matmul", "mm", "bmm", "mv", "dot")
def _matmul(call: Call) -> Value:
    """Channels that are summed over are cut in both tensors alike. A parameter on the right is a layer."""
    return _product(call, call.node.args[0], call.node.args[1])


@rule("addmm", "baddbmm")
def _added_product(call: Call) -> Value:
    """As a product, with an aligned tensor."""
    added, first, second = call.node.args[:3]
    return broadcast(call, [call.values[added], _product(call, first, second)])  # type: ignore[list-item, index]


def _product(call: Call, left: Any, right: Any) -> Axes:
    """A product with a parameter matrix on the right is a layer. Its weight is (inputs, outputs), as in GPT-2."""
    first: Axes = call.values[left]  # type: ignore[assignment]
    second: Axes = call.values[right]  # type: ignore[assignment]
    rows = [] if len(first) == 1 else [first[-2]]
    columns = [] if len(second) == 1 else [second[-1]]
    call.labels.unite(first[-1], second[-1] if len(second) == 1 else second[-2], call.reason)
    batch = broadcast(call, [first[:-2], second[:-2]])
    if len(second) == 2:
        geometry = Geometry(math.prod(call.shape) // len(second[-1]), rows=first[:-1])
        add_layer(call, "matmul", first[-1], second[-1], geometry, right)
    return [*batch, *rows, *columns]


@rule("outer")
def _outer(call: Call) -> Value:
    """Rows and columns are cut apart."""
    return [*call.axes("self"), *call.axes("vec2")]


@rule("cdist")
def _distances(call: Call) -> Value:
    """Channels are cut in both tensors alike. A channel that is zero in both changes no distance."""
    first, second = call.axes("x1"), call.axes("x2")
    call.labels.unite(first[-1], second[-1], call.reason)
    return [*broadcast(call, [first[:-2], second[:-2]]), first[-2], second[-2]]


@rule("einsum")
def _einsum(call: Call) -> Value:
    """A letter is cut in all its tensors alike. A sum over channels lets them be cut, if a cut channel is zero there."""
    tensors: list[Axes] = [call.values[tensor] for tensor in call.args["tensors"]]  # type: ignore[misc]
    given, arrow, wanted = _spelled(call.args["equation"].replace(" ", ""), [len(axes) for axes in tensors])
    named = [pair for letters, own in zip(given.split(","), tensors, strict=True)
             for pair in zip(letters, own, strict=True)]  # fmt: skip
    sizes = {letter: len(axis) for letter, axis in named}
    if not arrow or any(len(axis) != sizes[letter] for letter, axis in named):  # implicit output, repeated letters
        return unknown(call)
    axes: dict[str, Axis] = {}
    for letter, axis in named:
        axes[letter] = call.labels.unite(axes[letter], axis, call.reason) if letter in axes else axis
    return [axes[letter] for letter in wanted]


def _spelled(equation: str, ranks: Sequence[int]) -> tuple[str, str, str]:
    """Split an equation at its arrow, and replace dots by letters. Dotted dimensions are aligned from the last."""
    given, arrow, wanted = equation.partition("->")
    sides = given.split(",")
    hidden = [
        rank - len(side.replace("...", "")) if "..." in side else 0 for side, rank in zip(sides, ranks, strict=True)
    ]
    letters = "αβγδεζηθ"[: max(hidden)]
    spelled = (side.replace("...", letters[len(letters) - count :]) for side, count in zip(sides, hidden, strict=True))
    return ",".join(spelled), arrow, wanted.replace("...", letters)


@rule("scaled_dot_product_attention")
def _attention(call: Call) -> Value:
    """Heads, the width of queries and keys, and the width of values are cut apart."""
    query, key, value = (call.axes(name) for name in ("query", "key", "value"))
    call.labels.unite(query[-1], key[-1], call.reason)
    if call.args.get("scale") is None:
        call.lock([query[-1]], "the scale of the attention follows from this width; pass scale=… to cut it")
    elif len(value[-1]) == len(query[-1]) and not call.editable:  # usually one number in the module's code
        call.labels.unite(query[-1], value[-1], call.reason)
    call.lock([query[-2], key[-2], value[-2]], "it uses these channels as positions")
    if call.args.get("enable_gqa"):
        key, value = (
            [*axes[:-3], np.repeat(axes[-3], len(query[-3]) // len(axes[-3])), *axes[-2:]] for axes in (key, value)
        )
    heads = [query[:-2], key[:-2], value[:-2]]
    if isinstance(call.args.get("attn_mask"), fx.Node):
        heads.append(call.axes("attn_mask")[:-2])
    return [*broadcast(call, heads), query[-2], value[-1]]
