"""The modules that a network's steps belong to, and the names of its layers.

The names of nodes say which module a step belongs to. Such a module is made if its steps can be one call. Otherwise it only
holds layers, as an `nn.ModuleList` does, and the module around it calls them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from edgeprune.frontends.onnx.graph import Layer, Step, Value
from edgeprune.frontends.onnx.names import parameter_path
from edgeprune.frontends.onnx.residuals import with_residuals
from edgeprune.frontends.onnx.units import Path, Unit, contracted, is_one_call, unit_of

WEIGHTS = ("weight", "w_0", "kernel", "gamma", "scale")  # names of a layer's main parameter


def arranged(steps: Sequence[Step], outputs: Collection[Value]) -> tuple[list[Unit], dict[Layer, Path]]:
    """The steps that an output depends on, as units in one another, and the path of each layer."""
    live = _live(steps, outputs)
    scopes = {step: step.scope for step in live}
    layers = dict.fromkeys(step.target for step in live if isinstance(step.target, Layer))
    named = {layer: path for layer in layers if (path := _named(layer)) is not None}
    if not named:
        prefix = _common(list(filter(None, scopes.values())))
        scopes = {step: scope[len(prefix) :] for step, scope in scopes.items()}
    paths = _paths(live, scopes, named)
    units = [unit_of(step) for step in live]
    if all(len(scope) < 2 for scope in scopes.values()):
        return with_residuals(units, outputs, paths), paths
    taken = set(paths.values())
    calls = Counter(step.target for step in live)
    where = {}
    for unit, step in zip(units, live, strict=True):
        # A folded batch-norm leaves its own scope on the layer before it. The weight's name is right.
        own = step.target in named and calls[step.target] == 1
        where[unit] = paths[step.target][:-1] if own else _outside(scopes[step], taken)  # type: ignore[index]
    return _nested((), units, where, outputs), paths


def _live(steps: Sequence[Step], outputs: Collection[Value]) -> list[Step]:
    """The steps that an output depends on, in order."""
    needed = set(outputs)
    found = []
    for step in reversed(steps):
        if not needed.isdisjoint(step.results):
            found.append(step)
            needed.update(step.reads)
    return found[::-1]


def _common(scopes: Sequence[Path]) -> Path:
    """The modules around everything, such as the name of the whole model; the innermost one is none."""
    if not scopes:
        return ()
    first, last = min(scopes), max(scopes)
    count = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[: min(count, min(map(len, scopes)) - 1)]


def _named(layer: Layer) -> Path | None:
    """The path that a layer's weight has in its name."""
    found = parameter_path(layer.weight)
    if found is None:
        return None
    modules, own = found
    return modules if own in WEIGHTS else (*modules, own.removesuffix("_weight"))


def _paths(live: Sequence[Step], scopes: dict[Step, Path], named: dict[Layer, Path]) -> dict[Layer, Path]:
    """A path for each layer: from its weight, else from its scope. No path is inside another."""
    calls = {step.target: step for step in reversed(live) if isinstance(step.target, Layer)}
    users = Counter(scopes[step] for layer, step in calls.items() if layer not in named)
    paths: dict[Layer, Path] = {}
    counts: Counter[Path] = Counter()
    around = {scope[:i] for scope in [*scopes.values(), *named.values()] for i in range(len(scope))}
    for layer in dict.fromkeys(step.target for step in live if isinstance(step.target, Layer)):
        scope = scopes[calls[layer]]
        path = named.get(layer) or scope
        kind = type(layer.module).__name__.lower()
        if not path or path in around or (layer not in named and users[scope] > 1):
            path = (*path, kind) if path else (kind,)
        counts[path] += 1
        while path in paths.values():
            path = (*path[:-1], f"{path[-1]}_{counts[path]}")
            counts[path] += 1
        paths[layer] = path
    return paths


def _outside(scope: Path, layers: Collection[Path]) -> Path:
    """The innermost module around a step that is no layer."""
    return next((scope[:i] for i in range(len(scope) + 1) if scope[: i + 1] in layers), scope)


def _nested(path: Path, units: list[Unit], where: dict[Unit, Path], needed: Collection[Value]) -> list[Unit]:
    """The units of a module, those of inner modules as one."""
    waiting = _inner(path, units, where)
    while waiting:
        inner = waiting.pop(0)
        members = {unit for unit in units if where[unit][: len(inner)] == inner}
        if not any(unit.has_weights for unit in members):
            continue
        if not is_one_call(units, members):
            waiting.extend(_inner(inner, units, where))
            continue
        units = contracted(units, members, inner, needed)
        module = next(unit for unit in units if unit.path == inner and unit.step is None)
        where[module] = path
        module.units = _nested(inner, module.units, where, module.makes)
    return units


def _inner(path: Path, units: list[Unit], where: dict[Unit, Path]) -> list[Path]:
    """The modules right inside a path, in order."""
    depth = len(path)
    return list(
        dict.fromkeys(where[u][: depth + 1] for u in units if len(where[u]) > depth and where[u][:depth] == path)
    )
