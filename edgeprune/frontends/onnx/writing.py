"""Write the modules of a network from its units."""

from __future__ import annotations

import operator
from collections.abc import Sequence
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


def network_of(inputs: Sequence[Value], outputs: Sequence[Value], units: Sequence[Unit], paths: dict[Layer, Path]) -> OnnxNetwork:
    """The module that computes the outputs."""
    network = OnnxNetwork()
    _Writer(paths).write(network, (), units, inputs, outputs)
    return network


class _Writer:
    """Makes modules. `paths` are those of the layers."""

    def __init__(self, paths: dict[Layer, Path]) -> None:
        self._paths = paths
        self._parameters: dict[Value, nn.Parameter] = {}

    def write(self, part: Part, path: Path, units: Sequence[Unit], takes: Sequence[Value], gives: Sequence[Value]) -> None:
        """Give a module its calls, its layers, and its inner modules."""
        numbers: dict[Value, int] = {}
        held: dict[Value, str] = {}

        def ref(value: Value, step: Step | None) -> Any:
            if value.constant is None:
                return Ref(numbers.setdefault(value, len(numbers)))
            if step is not None and step.target in ARITHMETIC and not _is_trained(value) and value.fakes[0].numel() == 1 and (
                value.rank == 0 or all(other.rank for other in step.reads if other is not value)
            ):
                return value.constant[0].item()
            if value not in held:
                held[value] = self._hold(part, path, value, step)
            return Ref(held[value])

        part.takes = tuple(numbers.setdefault(value, len(numbers)) for value in takes)
        calls = []
        for unit in units:
            step = unit.step
            if step is None:
                inner = Part()
                target: Any = _attach(part, unit.path[len(path) :], inner)
                self.write(inner, unit.path, unit.units, unit.reads, unit.makes)
                args: Any = tuple(ref(value, None) for value in unit.reads)
                calls.append(Call(target, args, {}, tuple(ref(value, None).place for value in unit.makes)))
                continue
            if isinstance(step.target, Layer):
                target = self._layer(part, path, step.target)
            else:
                target = step.target
            args, named = tree_map(lambda leaf, step=step: ref(leaf, step) if isinstance(leaf, Value) else leaf, (step.args, step.named))
            calls.append(Call(target, args, named, tuple(ref(value, None).place for value in step.results)))
        part.calls = tuple(calls)
        part.gives = tuple(ref(value, None) for value in gives)

    def _layer(self, part: Part, path: Path, layer: Layer) -> str:
        """The path of a layer inside a module. A layer that belongs elsewhere is shared."""
        whole = self._paths[layer]
        return _attach(part, whole[len(path) :] if whole[: len(path)] == path else ("_".join(whole),), layer.module)

    def _hold(self, part: Part, path: Path, value: Value, step: Step | None) -> str:
        """The name of a constant in a module: of a parameter, if it is trained."""
        assert value.constant is not None
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
