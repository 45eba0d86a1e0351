"""Residual blocks of files whose names do not say where a block begins. They are found by their structure: x + f(x)."""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence

import torch.nn.functional as F

from edgeprune.frontends.onnx.graph import Layer, Value
from edgeprune.frontends.onnx.units import Path, Unit, contracted

POSITIVE = (F.relu, F.relu6)
POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


def with_residuals(units: list[Unit], needed: Collection[Value], paths: dict[Layer, Path]) -> list[Unit]:
    """The units, each residual block of them as a module. The paths of the layers in it begin with the block's."""
    for end in list(units):
        members = _block(units, end, needed) if end in units else None
        if members is None or len(members) == len(units):
            continue
        path = _path(units, members, paths)
        for unit in members:
            _moved(unit, path, paths)
        units = contracted(units, members, path, needed)
    return units


def _block(units: list[Unit], end: Unit, needed: Collection[Value]) -> set[Unit] | None:
    """The units of the block that ends with a sum; None if it ends none."""
    step = end.step
    if step is None or step.target is not operator.add or not all(isinstance(arg, Value) for arg in step.args):
        return None
    for x, y in (step.args, step.args[::-1]):
        inside = _between(units, x, y) if x.constant is None and y.constant is None and x.shape == y.shape else None
        if not inside or not any(unit.has_weights for unit in inside):
            continue
        members = {*inside, end}
        readers = [unit for unit in units if end.makes[0] in unit.reads]
        if len(readers) == 1 and end.makes[0] not in needed and _is_relu(readers[0]) and _is_positive(x):
            members.add(readers[0])
        made = {value for unit in inside for value in unit.makes}
        others = {value for unit in units if unit not in members for value in unit.reads}.union(needed)
        if made.isdisjoint(others):
            return members
    return None


def _between(units: list[Unit], x: Value, y: Value) -> set[Unit] | None:
    """The units that compute y from x and constants; None if y needs more."""
    maker = {value: unit for unit in units for value in unit.makes}
    found: set[Unit] = set()
    waiting = [y]
    while waiting:
        value = waiting.pop()
        if value is x:
            continue
        unit = maker.get(value)
        if unit is None or x in unit.makes:
            return None
        if unit not in found:
            found.add(unit)
            waiting.extend(unit.reads)
    return found


def _is_relu(unit: Unit) -> bool:
    return unit.step is not None and unit.step.target in POSITIVE


def _is_positive(value: Value) -> bool:
    """Whether a ReLU passes a value unchanged."""
    step = value.step
    while step is not None and step.target in POOLS:
        step = step.args[0].step
    return step is not None and step.target in POSITIVE


def _path(units: list[Unit], members: Collection[Unit], paths: dict[Layer, Path]) -> Path:
    """What the names of a block's layers have in common, or a new name."""
    own = [paths[layer] for unit in members for layer in unit.layers]
    others = [paths[layer] for unit in units if unit not in members for layer in unit.layers]
    common = _common(own)
    if common and common not in own and not any(path[: len(common)] == common for path in others):
        return common
    taken = {path[0] for path in [*own, *others]} | {unit.path[0] for unit in units if unit.path}
    name = "".join(_common([tuple(path[0]) for path in own])).strip("_")
    bare = name.rstrip("_0123456789") or "block"
    for candidate in (name, *(f"{bare}_{number}" for number in range(1, len(units) + 2))):
        if candidate and candidate.isidentifier() and candidate not in taken:
            return (candidate,)
    raise AssertionError("there are more numbers than units")


def _common(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """What all of these begin with."""
    if not paths:
        return ()
    first, last = min(paths), max(paths)
    return first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def _moved(unit: Unit, path: Path, paths: dict[Layer, Path]) -> None:
    """Make the paths of a unit begin with a block's, in place."""
    for layer in unit.layers:
        if paths[layer][: len(path)] != path:
            paths[layer] = path + paths[layer]
    for inner in [unit, *unit.units]:
        if inner.path and inner.path[: len(path)] != path:
            inner.path = path + inner.path
