"""Exported graph -> channel groups, layers and the cut recipe; no I/O.

Every index of every dimension of every tensor carries a label. Parameters make fresh labels, the operators' rules
(`rules`) say where they go, and indices that must live or die together end up in one class of a union-find: the groups
follow exactly, whatever the model's Python looks like. Prior art: DepGraph (Fang et al., CVPR 2023) finds groups from
module types and their order; here they are read from `torch.export`, where every shape is explicit.
"""

from __future__ import annotations

import fnmatch
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from edgeprune.errors import UsageError
from edgeprune.graph.labels import Axes, Axis, Labels, none
from edgeprune.graph.rules import Call, Site, Value, apply, bind, shape_of
from edgeprune.limits import LIMITS
from edgeprune.records import Group, Groups, Layer, Slot, Span, Widths, digest, output_dim


@dataclass
class _Walk:
    """What one pass over the graph collects."""

    labels: Labels = field(default_factory=Labels)
    values: dict[fx.Node, Value] = field(default_factory=dict)
    parameters: dict[fx.Node, str] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    unknown: dict[str, None] = field(default_factory=dict)


def trace(model: nn.Module, inputs: tuple[torch.Tensor, ...], lock: Sequence[str] = ()) -> Groups:
    """The channel groups and layers of `model`, traced on `inputs` (a tuple of tensors of fixed shape).

    `lock` holds shell patterns of parameter names whose groups are kept whole. Raises `UsageError` where the model cannot
    be exported.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's, about its own handling of recurrent layers
            program = torch.export.export(model.eval(), inputs)
    except Exception as error:  # the exporter raises many types, all of them about the user's model
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise UsageError(f"torch.export cannot trace the model: {type(error).__name__}: {first}") from error
    walk = _propagate(program, canonical_names(model))
    groups, of_root = _collect(walk, program, lock)
    layers = _layers(walk, groups, of_root)
    return Groups(
        network=_structure(program),
        groups=groups,
        layers=layers,
        folds=_folds(program, model, walk),
        unknown_operators=tuple(walk.unknown),
        operators=sum(node.op == "call_function" for node in program.graph.nodes),
    )


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name of every parameter and buffer -> the first name of the same tensor (tied weights have several)."""
    first: dict[int, str] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors}


def _propagate(program: ExportedProgram, names: Mapping[str, str]) -> _Walk:
    walk = _Walk()
    axes: dict[str, Axes] = {}
    kinds = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    live = _live(program.graph)
    for node in program.graph.nodes:
        if isinstance(node.meta.get("val"), torch.Tensor):
            shape_of(node)  # refuses a dynamic one, whatever the operator
        if node.op == "placeholder":
            spec = kinds[node.name]
            value = node.meta.get("val")
            if not isinstance(value, torch.Tensor):
                continue
            stored = spec.kind is InputKind.PARAMETER or (spec.kind is InputKind.BUFFER and spec.persistent)
            if stored and spec.target is not None:
                name = names[spec.target]
                walk.parameters[node] = name
                if name not in axes:
                    axes[name] = [walk.labels.fresh(size) for size in shape_of(node)]
                walk.values[node] = axes[name]
            else:
                walk.values[node] = [none(size) for size in shape_of(node)]
        elif node.op == "call_function":
            # What comes to nothing (an auxiliary head in eval mode) runs all the same: it is cut along, and locks nothing.
            walk.labels.locking = node in live
            told = (walk.sites, walk.unknown) if node in live else ([], {})
            walk.values[node] = apply(Call(walk.labels, node, bind(node), walk.values, walk.parameters, *told))
            walk.labels.locking = True
        elif node.op == "output":
            for out in node.all_input_nodes:
                for axis in walk.values[out]:
                    walk.labels.lock(axis.tolist(), "output of the model")  # type: ignore[union-attr]
    return walk


def _live(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that something comes of; attention weights that nobody asked for are none."""
    live: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        schema = getattr(node.target, "_schema", None)
        lasting = node.op != "call_function" or (schema is not None and schema.is_mutable)
        if lasting or not live.isdisjoint(node.users):
            live.add(node)
    return live


def _collect(walk: _Walk, program: ExportedProgram, lock: Sequence[str]) -> tuple[tuple[Group, ...], dict[int, str]]:
    """Classes of labels with the same members are interchangeable: together they are one group."""
    members: dict[int, dict[tuple[str, int], list[int]]] = {}
    walk.labels.settle()
    for name, axes in {name: walk.values[node] for node, name in walk.parameters.items() if node.users}.items():
        for dim, axis in enumerate(axes):
            for index, roots in enumerate(walk.labels.factors(axis)):  # type: ignore[arg-type]
                for root in roots:
                    members.setdefault(root, {}).setdefault((name, dim), []).append(index)
    groups: list[Group] = []
    of_root: dict[int, str] = {}
    names: Counter[str] = Counter()
    made = {site.weight: output_dim(site.kind) for site in walk.sites}
    for shape, reason, units in _alike(members, walk.labels):
        owned = tuple(
            Slot(name, dim, tuple(tuple(members[unit][name, dim]) for unit in units)) for name, dim, _ in shape
        )
        base = _maker(shape, made)
        names[base] += 1
        name = base if names[base] == 1 else f"{base}:{names[base]}"
        pattern = next((p for p in lock for slot in owned if matches(slot.parameter, p)), None)
        if reason is None and pattern is not None:
            reason = f"locked by the pattern {pattern!r}"
        if reason is None and len(units) == 1:
            reason = "a single unit"
        groups.append(Group(name, len(units), owned, reason))
        of_root.update(dict.fromkeys(units, name))
    return tuple(groups), of_root


def _alike(
    members: Mapping[int, Mapping[tuple[str, int], list[int]]], labels: Labels
) -> Iterator[tuple[tuple[tuple[str, int, int], ...], str | None, list[int]]]:
    """Classes with as many members in the same places, (place, reason of the lock, classes); those that share an index, as a
    head and a place in every head do, are of two groups."""
    found: dict[tuple[Any, ...], list[tuple[list[int], set[int]]]] = {}
    for root, slots in members.items():
        shape = tuple((name, dim, len(indices)) for (name, dim), indices in slots.items())
        own = set(next(iter(slots.values())))
        like = found.setdefault((shape, labels.reason(root)), [])
        group = next((group for group in like if not group[1] & own), None)
        if group is None:
            like.append(([root], own))
        else:
            group[0].append(root)
            group[1].update(own)
    for (shape, reason), like in found.items():
        for roots, _ in like:
            yield shape, reason, roots


def _maker(shape: Iterable[tuple[str, int, int]], made: Mapping[str, int]) -> str:
    """A group is named after the first layer that makes its channels."""
    slots = list(shape)
    weight = next((name for name, dim, _ in slots if dim == made.get(name, 0)), slots[0][0])
    return weight.rpartition(".")[0] or weight


def matches(parameter: str, pattern: str) -> bool:
    """Whether a lock's pattern is of this parameter, or of the layer that it belongs to."""
    return fnmatch.fnmatchcase(parameter, pattern) or fnmatch.fnmatchcase(parameter.rpartition(".")[0], pattern)


def _layers(walk: _Walk, groups: tuple[Group, ...], of_root: Mapping[int, str]) -> tuple[Layer, ...]:
    width = {group.name: group.width for group in groups if group.locked is None}

    def span(axis: Axis) -> Span:
        owners = ((of_root.get(root, "") for root in roots) for roots in walk.labels.factors(axis))
        counts = Counter(tuple(name for name in names if name in width) for names in owners)
        units = {names: math.prod(width[name] for name in names) for names in counts}
        terms = tuple((names, count // units[names]) for names, count in counts.items() if names)
        return Span(len(axis) - sum(count * units[names] for names, count in terms), terms)

    seen: Counter[str] = Counter()
    layers = []
    for site in walk.sites:
        seen[site.name] += 1
        name = site.name if seen[site.name] == 1 else f"{site.name}#{seen[site.name]}"
        layers.append(
            Layer(
                name,
                site.kind,
                site.weight,
                span(site.inputs),
                span(site.outputs),
                site.positions,
                site.kernel,
                site.per_group,
            )
        )
    return tuple(layers)


def _folds(program: ExportedProgram, model: nn.Module, walk: _Walk) -> tuple[tuple[str, str], ...]:
    """(convolution or linear, batch-norm) modules that can be folded: the norm is the only reader of the layer."""
    folds = []
    for node in program.graph.nodes:
        if node.op != "call_function" or getattr(node.target, "_opname", "") != "batch_norm":
            continue
        source, scale = bind(node)["input"], bind(node)["weight"]
        if not (isinstance(source, fx.Node) and len(source.users) == 1 and scale in walk.parameters):
            continue
        weight = bind(source).get("weight")
        if weight not in walk.parameters or len(weight.users) > 1 or len(scale.users) > 1:
            continue
        layer, norm = (walk.parameters[n].rpartition(".")[0] for n in (weight, scale))
        if _foldable(model, layer, norm):
            folds.append((layer, norm))
    return tuple(folds)


def _foldable(model: nn.Module, layer: str, norm: str) -> bool:
    layers = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return type(model.get_submodule(layer)) in layers and type(model.get_submodule(norm)) in norms


def _structure(program: ExportedProgram) -> str:
    """Digest of operators, their arguments and all shapes: two networks with the same digest take the same time."""

    def shape(node: fx.Node) -> str:
        value = node.meta.get("val")
        return str([(tuple(v.shape), str(v.dtype)) for v in (value if isinstance(value, tuple | list) else [value])
                    if isinstance(v, torch.Tensor)])  # fmt: skip

    return digest([[node.op, node.name, str(node.target), str(node.args), shape(node)] for node in program.graph.nodes])


# ---------------------------------------------------------------------------------------------------- recipes


def lock(groups: Groups, name: str, reason: str) -> Groups:
    """The same groups with one of them locked, its channels counted as fixed in every layer."""
    width = {group.name: group.width for group in groups.groups}

    def fixed(span: Span) -> Span:
        left: Counter[tuple[str, ...]] = Counter()
        for names, count in span.terms:
            left[tuple(other for other in names if other != name)] += count * (width[name] if name in names else 1)
        return Span(span.fixed + left.pop((), 0), tuple(left.items()))

    return replace(
        groups,
        blocks=tuple(block for block in groups.blocks if name not in block.groups),
        groups=tuple(replace(g, locked=reason) if g.name == name else g for g in groups.groups),
        layers=tuple(replace(x, inputs=fixed(x.inputs), outputs=fixed(x.outputs)) for x in groups.layers),
    )


def factors(groups: Groups) -> tuple[str, ...]:
    """The free groups that share indices with another one: a dimension is their product."""
    owners: dict[tuple[str, int, int], list[str]] = {}
    for group in groups.groups:
        for slot in group.slots:
            for index in (i for unit in slot.indices for i in unit):
                owners.setdefault((slot.parameter, slot.dim, index), []).append(group.name)
    shared = {name for names in owners.values() if len(names) > 1 for name in names}
    return tuple(group.name for group in groups.free if group.name in shared)


def recipe(groups: Groups, keep: Mapping[str, Sequence[int]]) -> dict[str, dict[int, tuple[int, ...]]]:
    """What to keep of every parameter: `{parameter: {dim: indices}}`, indices ascending.

    `keep` gives the units kept of each group; a group it does not name is kept whole. Nothing is kept of the parameters of a
    block whose groups keep nothing. Raises `ValueError` for a locked or unknown group, for a unit out of range, and where a
    group would keep nothing but its block would.
    """
    kept_units = {group.name: len(keep.get(group.name, range(group.width))) for group in groups.groups}
    gone_blocks = groups.removed(kept_units)
    emptied = {group for block in gone_blocks for group in block.groups}
    known = {group.name: group for group in groups.groups}
    removed: dict[tuple[str, int], set[int]] = {}
    known_indices: dict[tuple[str, int], set[int]] = {}  # groups may share one: a head and a place in every head
    for group in groups.groups:
        for slot in group.slots:
            known_indices.setdefault((slot.parameter, slot.dim), set()).update(i for unit in slot.indices for i in unit)
    for name, units in keep.items():
        if name not in known:
            raise ValueError(f"no group is called {name!r}")
        if name in emptied:
            continue
        group, kept = known[name], set(units)
        if not kept or not kept <= set(range(group.width)):
            raise ValueError(f"group {name!r} of width {group.width} cannot keep units {sorted(kept)}")
        if len(kept) == group.width:
            continue
        if group.locked is not None:
            raise ValueError(f"group {name!r} is locked: {group.locked}")
        for slot in group.slots:
            gone = (slot.indices[unit] for unit in range(group.width) if unit not in kept)
            removed.setdefault((slot.parameter, slot.dim), set()).update(i for indices in gone for i in indices)
    result: dict[str, dict[int, tuple[int, ...]]] = {}
    for (parameter, dim), gone_indices in removed.items():
        kept_indices = tuple(sorted(known_indices[parameter, dim] - gone_indices))
        result.setdefault(parameter, {})[dim] = kept_indices
    result |= {parameter: {0: ()} for block in gone_blocks for parameter in block.parameters}
    return result


def first_units(groups: Groups, widths: Widths) -> dict[str, tuple[int, ...]]:
    """Keep the first units of every group: enough where only the latency of the widths matters."""
    return {group.name: tuple(range(widths.get(group.name, group.width))) for group in groups.free}


def candidate_widths(group: Group) -> tuple[int, ...]:
    """The widths that the planner chooses among: multiples of a power of two, at most `LIMITS.group_widths`, and the full one.

    Kernels work in blocks of 4 to 32 channels, and widths between them are often slower than the next block: groups of 16
    and more keep multiples of 4 at least.
    """
    step = 4 if group.width >= 16 else 2 if group.width >= 8 else 1
    while step * LIMITS.group_widths < group.width:
        step *= 2
    return (*range(step, group.width, step), group.width)
