"""Write the modules of a network from its units."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from edgeprune.frontends.onnx import functions
from edgeprune.frontends.onnx.graph import Layer, Step, Value
from edgeprune.frontends.onnx.module import Call, OnnxNetwork, Part, Ref
from edgeprune.frontends.onnx.names import LOST, parameter_path, valid
from edgeprune.frontends.onnx.units import Path, Unit

ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.pow, functions.divided)  # they take numbers, too


def network_of(
    inputs: Sequence[Value], outputs: Sequence[Value], units: Sequence[Unit], paths: dict[Layer, Path]
) -> OnnxNetwork:
    """The module that computes the outputs."""
    network = OnnxNetwork()
    _Writer(paths).write(network, (), units, inputs, outputs)
    return network


@dataclass(frozen=True)
class _Frame:
    """A module that is being written, its path, the numbers of its values, and the names of its constants."""

    part: Part
    path: Path
    numbers: dict[Value, int] = field(default_factory=dict)
    held: dict[Value, str] = field(default_factory=dict)

    def number(self, value: Value) -> int:
        """The number of a value."""
        return self.numbers.setdefault(value, len(self.numbers))


class _Writer:
    """Makes modules. `paths` are those of the layers."""

    def __init__(self, paths: dict[Layer, Path]) -> None:
        self._paths = paths
        self._parameters: dict[Value, nn.Parameter] = {}

    def write(
        self, part: Part, path: Path, units: Sequence[Unit], takes: Sequence[Value], gives: Sequence[Value]
    ) -> None:
        """Give a module its calls, its layers, and its inner modules."""
        frame = _Frame(part, path)
        part.takes = tuple(map(frame.number, takes))
        part.calls = tuple(self._call(frame, unit) for unit in units)
        part.gives = tuple(self._ref(frame, value, None) for value in gives)

    def _call(self, frame: _Frame, unit: Unit) -> Call:
        """The call of a step or of an inner module."""
        step = unit.step
        if step is None:
            inner = Part()
            path = _attach(frame.part, unit.path[len(frame.path) :], inner)
            self.write(inner, unit.path, unit.units, unit.reads, unit.makes)
            given = tuple(Ref(frame.number(value)) for value in unit.reads)
            return Call(path, given, {}, tuple(map(frame.number, unit.makes)))
        target = self._layer(frame, step.target) if isinstance(step.target, Layer) else step.target
        args, named = tree_map(
            lambda leaf: self._ref(frame, leaf, step) if isinstance(leaf, Value) else leaf, (step.args, step.named)
        )
        return Call(target, args, named, tuple(map(frame.number, step.results)))

    def _ref(self, frame: _Frame, value: Value, step: Step | None) -> Any:
        """How a call of a module refers to a value: a number of the code stands for itself."""
        if value.constant is None:
            return Ref(frame.number(value))
        if step is not None and step.target in ARITHMETIC and _is_number(value, step):
            return value.constant[0].item()
        if value not in frame.held:
            frame.held[value] = self._hold(frame, value, step)
        return Ref(frame.held[value])

    def _layer(self, frame: _Frame, layer: Layer) -> str:
        """The path of a layer inside a module. A layer that belongs elsewhere is shared."""
        whole, path, part = self._paths[layer], frame.path, frame.part
        return _attach(part, whole[len(path) :] if whole[: len(path)] == path else ("_".join(whole),), layer.module)

    def _hold(self, frame: _Frame, value: Value, step: Step | None) -> str:
        """The name of a constant in a module: of a parameter, if it is trained."""
        assert value.constant is not None
        part, path = frame.part, frame.path
        tensor = value.constant[0].contiguous()
        if not _is_trained(value):
            name = _free(part, "constant")
            part.register_buffer(name, tensor, persistent=False)
            return name
        parameter = self._parameters.setdefault(value, nn.Parameter(tensor))
        known = parameter_path(value.weight)
        if known is not None and known[0][: len(path)] == path:
            holder = _container(part, known[0][len(path) :])
            if holder is not None:
                name = _free(holder, known[1])
                holder.register_parameter(name, parameter)
                return ".".join((*known[0][len(path) :], name))
        adds = step is not None and step.target in (operator.add, operator.sub)
        own = ("bias" if adds else "scale") if LOST.match(value.weight) else valid(value.weight.replace("/", "_"))
        name = _free(part, own)
        part.register_parameter(name, parameter)
        return name


def _is_number(value: Value, step: Step) -> bool:
    """Whether a constant is one number that a step may read as such: it adds no dimension to the other argument."""
    whole = value.rank == 0 or all(other.rank >= value.rank for other in step.reads)
    return whole and value.fakes[0].numel() == 1 and not _is_trained(value)


def _is_trained(value: Value) -> bool:
    """Whether a constant is a weight that training may change. Masks, tables and numbers of the code are not."""
    if not value.weight or not value.is_real or value.constant is None:
        return False
    tensor = value.constant[0]
    if not bool(torch.isfinite(tensor).all()):
        return False
    named = parameter_path(value.weight) is not None
    return named or (tensor.numel() > 1 and bool((tensor != tensor.flatten()[0]).any()))


def _container(part: nn.Module, path: Path) -> nn.Module | None:
    """The module at a path inside another one; it is made if there is none. None if something else has the name."""
    for name in path:
        if name not in part._modules:
            if hasattr(part, name):
                return None
            part.add_module(name, nn.Module())
        part = part.get_submodule(name)
    return part


def _attach(part: Part, path: Path, module: nn.Module) -> str:
    """Put a module at a path inside another one, and return the path."""
    holder = _container(part, path[:-1])
    if holder is None:
        holder, path = part, ("_".join(path),)
    name = path[-1]
    if holder._modules.get(name) is module:
        return ".".join(path)
    existing = holder._modules.get(name)
    if existing is not None and type(existing) is nn.Module:  # it only holds others
        for own, inner in existing._modules.items():
            module.add_module(own, inner)
        for own, parameter in existing._parameters.items():
            module.register_parameter(own, parameter)
        del holder._modules[name]
    name = _free(holder, name)
    holder.add_module(name, module)
    return ".".join((*path[:-1], name))


def _free(module: nn.Module, name: str) -> str:
    """A name that nothing in a module has."""
    count, wanted = 1, name
    while hasattr(module, name):
        count += 1
        name = f"{wanted}_{count}"
    return name
