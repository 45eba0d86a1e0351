"""Recurrences in ONNX files: one constant stacks the parameters of all directions, with its gates in ONNX's order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from edgeprune.runtimes.formats.base import Dims, Origin, Origins, pattern

GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}  # torch's gates in ONNX's order
_INPUT, _RECURRENT, _BIAS, _STATES = 1, 2, 3, (5, 6)  # the places of a node's inputs


@dataclass(frozen=True)
class Stacked:
    """The parameters that a constant of a recurrence came from: for each direction one, or the two halves of a bias."""

    parts: tuple[tuple[str, ...], ...]
    gates: tuple[int, ...]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(name for names in self.parts for name in names)

    def take(self, value: np.ndarray, kept: Mapping[str, Dims]) -> np.ndarray:
        """The constant with only the kept indices of its parameters."""
        return np.stack([self._direction(part, names, kept) for part, names in zip(value, self.parts, strict=True)])

    def patterned(self, value: np.ndarray, kept: Mapping[str, Dims]) -> np.ndarray:
        """The same with repeating values."""
        return pattern(self.take(value, kept))

    def _direction(self, value: np.ndarray, names: tuple[str, ...], kept: Mapping[str, Dims]) -> np.ndarray:
        halves = []
        for half, name in zip(np.split(value, len(names)), names, strict=True):
            rows = _ordered(half, tuple(np.argsort(self.gates)))
            for dim, indices in kept.get(name, {}).items():
                rows = rows.take(indices, axis=dim)
            halves.append(_ordered(rows, self.gates))
        return np.concatenate(halves)


def _ordered(rows: np.ndarray, gates: tuple[int, ...]) -> np.ndarray:
    """The rows with their gates in another order."""
    parts = np.split(rows, len(gates))
    return np.concatenate([parts[gate] for gate in gates])


def stacked(proto: onnx.ModelProto, weights: Mapping[str, np.ndarray], known: Origins) -> dict[str, Origin | Stacked]:
    """The origins of the constants of all recurrences, by name."""
    found: dict[str, Origin | Stacked] = {}
    for node in proto.graph.node:
        gates = GATES.get(node.op_type)
        if gates is None:
            continue
        for place in (_INPUT, _RECURRENT, _BIAS):
            name = node.input[place] if place < len(node.input) else ""
            origin = _origin(weights[name], gates, 1 + (place == _BIAS), known) if name in weights else None
            if origin is not None:
                found[name] = origin
        recurrent = found.get(node.input[_RECURRENT])
        for name in (node.input[place] for place in _STATES if place < len(node.input)):
            if isinstance(recurrent, Stacked) and name in weights and not weights[name].any():
                found[name] = Origin(recurrent.parameters[0], (None, None, 1))  # a state that starts at zero
    return found


def _origin(value: np.ndarray, gates: tuple[int, ...], halves: int, known: Origins) -> Stacked | None:
    order = tuple(np.argsort(gates))
    parts = []
    for direction in value:
        origins = [known.find(_ordered(half, order)) for half in np.split(direction, halves)]
        parts.append(tuple(origin.parameter for origin in origins if origin is not None))
    return Stacked(tuple(parts), gates) if all(len(names) == halves for names in parts) else None


def resize(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Set the hidden size of a recurrence from the shapes of its constants. Other nodes stay unchanged."""
    if node.op_type not in GATES or node.input[_RECURRENT] not in shapes:
        return
    for attribute in node.attribute:
        if attribute.name == "hidden_size":
            attribute.i = shapes[node.input[_RECURRENT]][-1]
