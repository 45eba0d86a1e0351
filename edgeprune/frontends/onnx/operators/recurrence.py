"""Recurrent operators, as torch's layers. The gates have another order in torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.frontends.onnx.build import Builder
from edgeprune.frontends.onnx.file import Node
from edgeprune.frontends.onnx.graph import Value
from edgeprune.frontends.onnx.operators.layers import weighted
from edgeprune.frontends.onnx.operators.table import operator, require_whole, text
from edgeprune.frontends.onnx.transposes import permuted

ORDERS = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}  # the place of each of torch's gates in ONNX
ACTIVATIONS: dict[str, set[tuple[str, ...]]] = {
    "LSTM": {("Sigmoid", "Tanh", "Tanh")},
    "GRU": {("Sigmoid", "Tanh")},
    "RNN": {("Tanh",), ("Relu",)},
}


@operator("LSTM", "GRU", "RNN")
def recurrent(
    b: Builder, node: Node, x: Value, w: Value, r: Value, bias: Value | None = None, lengths: Value | None = None,
    *states: Value | None,
) -> list[Value]:  # fmt: skip
    """A layer of one or two directions."""
    given, direction = node.attributes, text(node, "direction", "forward")
    activation = _activation(b, node)
    if given.get("clip") or given.get("input_forget") or len(states) > 2:
        raise b.error("has options without a converter: a clip, coupled gates or peepholes")
    if w.constant is None or r.constant is None or (bias is not None and bias.constant is None):
        raise b.error("has weights that depend on the inputs, which has no converter")
    if node.op == "GRU" and not given.get("linear_before_reset", 0):
        raise b.error(
            "resets before its product, as torch's GRU does not; export it with linear_before_reset=1 (reset_after)"
        )
    batch_first = bool(given.get("layout", 0))
    if batch_first:
        x = permuted(b, x, (1, 0, 2))
        states = tuple(state and permuted(b, state, (1, 0, 2)) for state in states)
    if lengths is not None:
        require_whole(b, lengths, [fake.shape[0] for fake in x.fakes])
    reverse = direction == "reverse"
    if reverse:
        x = b.call(torch.flip, x, (0,))
    weights = [piece for place in range(w.shape[0]) for piece in _pieces(b, node.op, place, w, r, bias)]
    known = [state for state in states if state is not None and not _is_zero(state)]
    state = _states(b, node, states, x, w.shape[0], r.shape[2]) if known else None
    kinds: dict[str, Callable[..., nn.Module]] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}
    options = {"activation": activation} if node.op == "RNN" else {}
    y, *last = b.layers(kinds[node.op], (x,) if state is None else (x, state), weights, two=w.shape[0] == 2, **options)
    y = b.call(torch.flip, y, (0,)) if reverse else y
    two = w.shape[0] == 2
    y = permuted(b, b.call(torch.unflatten, y, 2, (2, -1)), (0, 2, 1, 3)) if two else b.call(torch.unsqueeze, y, 1)
    if batch_first:
        y, *last = permuted(b, y, (2, 0, 1, 3)), *(permuted(b, one, (1, 0, 2)) for one in last)
    return [y, *last]


def _activation(b: Builder, node: Node) -> str:
    """The activation of a plain recurrence. Raises for others than torch's."""
    given = [a.decode("ascii", "replace").capitalize() for a in node.attributes.get("activations", [])]
    size = len(next(iter(ACTIVATIONS[node.op])))
    for start in range(0, len(given), size):
        if (
            tuple(given[start : start + size]) not in ACTIVATIONS[node.op]
            or given[start : start + size] != given[:size]
        ):
            raise b.error(f"has the activations {given}, which have no converter")
    return given[0].lower() if given and node.op == "RNN" else "tanh"


def _is_zero(state: Value) -> bool:
    return state.constant is not None and not any(bool(each.any()) for each in state.constant)


def _states(b: Builder, node: Node, states: Sequence[Value | None], x: Value, directions: int, width: int) -> Any:
    """The first states, as torch's layers take them. One that is left out is zero."""
    wanted = 2 if node.op == "LSTM" else 1
    shapes = [(directions, fake.shape[1], width) for fake in x.fakes]
    zero = b.constants([torch.zeros(shape) for shape in shapes])
    found = tuple((*(state or zero for state in states), zero, zero)[:wanted])
    return found if node.op == "LSTM" else found[0]


def _pieces(b: Builder, op: str, direction: int, w: Value, r: Value, bias: Value | None) -> list[Value | None]:
    """The parameters of one direction: of the input, of the state, and their biases."""
    order = ORDERS[op]
    both = [b.once(_gates, value, direction, order, 0, 1) for value in (w, r)]
    if bias is None:
        return [*both, None, None]
    return [*both, *(b.once(_gates, bias, direction, order, half, 2) for half in (0, 1))]


def _gates(tensor: Tensor, direction: int, order: tuple[int, ...], half: int, halves: int) -> Tensor:
    """The gates of one direction in torch's order; of biases the first or the second half."""
    own = tensor[direction].chunk(halves)[half].chunk(len(order))
    return torch.cat([own[place] for place in order])


def _filled(module: nn.Module, weights: tuple[nn.Parameter | None, ...]) -> nn.Module:
    names = [f"{name}_l0{end}" for end in ("", "_reverse") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    return weighted(module, **{n: w for n, w in zip(names, weights, strict=False) if w is not None})


def _sizes(weights: tuple[nn.Parameter | None, ...]) -> dict[str, Any]:
    first, second, third = weights[:3]
    assert first is not None
    assert second is not None
    return {"input_size": first.shape[1], "hidden_size": second.shape[1], "bias": third is not None}


def _lstm(*weights: nn.Parameter | None, two: bool) -> nn.Module:
    return _filled(nn.LSTM(**_sizes(weights), bidirectional=two), weights)


def _gru(*weights: nn.Parameter | None, two: bool) -> nn.Module:
    return _filled(nn.GRU(**_sizes(weights), bidirectional=two), weights)


def _rnn(*weights: nn.Parameter | None, two: bool, activation: str) -> nn.Module:
    return _filled(nn.RNN(**_sizes(weights), nonlinearity=activation, bidirectional=two), weights)
