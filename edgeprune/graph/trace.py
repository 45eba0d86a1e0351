"""Trace an exported graph to its channel groups and layers; no I/O.

Every index of every dimension of every tensor carries a label. Parameters create fresh labels. The operators' rules
(`rules`) propagate them. A union-find joins indices that can only be removed together. The groups follow from these
classes, so the model's Python code does not matter.

Prior art: DepGraph (Fang et al., CVPR 2023) derives groups from module types and their order. Here they are read from
`torch.export`, where every shape is explicit.
"""

from __future__ import annotations

import copy
import io
import itertools
import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec

from edgeprune.errors import UsageError
from edgeprune.graph import places, regions
from edgeprune.graph.groups import matches
from edgeprune.graph.labels import Axes, Axis, Labels, none
from edgeprune.graph.rules import Call, Size, Statistic, TracedLayer, Value, apply, bind, shape_of
from edgeprune.records import Group, Groups, Layer, Recipe, Slot, Span, digest, output_dim


@dataclass
class Trace:
    """What one pass over the graph collects."""

    labels: Labels = field(default_factory=Labels)
    values: dict[fx.Node, Value] = field(default_factory=dict)
    parameters: dict[fx.Node, str] = field(default_factory=dict)
    layers: list[TracedLayer] = field(default_factory=list)
    unknown: dict[str, None] = field(default_factory=dict)
    sizes: list[Size] | None = None
    fed: set[fx.Node] = field(default_factory=set)
    statistics: list[Statistic] = field(default_factory=list)

    def rescaled(self) -> set[int]:
        """The classes of channels that a mean or a normalisation is taken over."""
        axes = (axis for found in self.statistics if found.rescaled for axis in found.axes.values())
        return {root for axis in axes for roots in self.labels.factors(axis) for root in roots}

    def remaining(self, recipe: Recipe) -> Iterator[tuple[Statistic, dict[int, list[int]]]]:
        """The statistics over channels that a cut removes, with the indices that remain in each dimension."""
        gone = self._gone(recipe)
        for found, axes in self._reduced:
            kept = {dim: [i for i, one in enumerate(axis) if gone.isdisjoint(one)] for dim, axis in axes.items()}
            if cut := {dim: indices for dim, indices in kept.items() if len(indices) < len(axes[dim])}:
                yield found, cut

    def resized(self, recipe: Recipe) -> Iterator[tuple[Size, int]]:
        """The constants that are sizes, with their values after a cut."""
        gone = self._gone(recipe)
        for size, counted in self._counted:
            yield size, sum(map(gone.isdisjoint, counted))

    @cached_property
    def _reduced(self) -> list[tuple[Statistic, dict[int, list[tuple[int, ...]]]]]:
        """The statistics, with the classes of each index that they are taken over."""
        return [(one, {dim: self.labels.factors(axis) for dim, axis in one.axes.items()}) for one in self.statistics]

    @cached_property
    def _counted(self) -> list[tuple[Size, list[tuple[int, ...]]]]:
        """The constants that are sizes, with the classes of each index that they count."""
        return [(size, self.labels.factors(size.counted)) for size in self.sizes or ()]

    def _gone(self, recipe: Recipe) -> set[int]:
        """The classes of which no parameter keeps an index. The parameters of a removed block do not count."""
        kept = {(name, dim): set(indices) for name, dims in recipe.items() for dim, indices in dims.items()}
        removed = {name for name, dims in recipe.items() if dims.get(0) == ()}
        gone = set()
        for root, owned in self.members.items():
            own = [(place, indices) for place, indices in owned.items() if place[0] not in removed]
            if own and all(place in kept and kept[place].isdisjoint(indices) for place, indices in own):
                gone.add(root)
        return gone

    @cached_property
    def members(self) -> dict[int, dict[_Place, list[int]]]:
        """For every class of channels the indices of parameters that belong to it.

        Only tensors that depend on an input have channels. The positions of a kernel are none, and neither is the rank of a
        product of parameters.
        """
        channels = self._channels()
        members: dict[int, dict[_Place, list[int]]] = {}
        for name, axes in {name: self.values[node] for node, name in self.parameters.items() if node.users}.items():
            for dim, axis in enumerate(axes):
                factors = list(self.labels.factors(axis))  # type: ignore[arg-type]
                if channels.isdisjoint(itertools.chain.from_iterable(factors)):
                    continue
                for index, roots in enumerate(factors):  # with what reads an input of the model beside channels
                    for root in roots:
                        members.setdefault(root, {}).setdefault((name, dim), []).append(index)
        return members

    def _channels(self) -> set[int]:
        """The classes of labels that tensors which depend on an input carry."""
        values = [self.values[node] for node in self.fed if node in self.values]
        nested = (axes for value in values for axes in (value if value and isinstance(value[0], list) else [value]))
        axes = {id(axis): axis for axes in nested for axis in axes}
        return {root for axis in axes.values() for roots in self.labels.factors(axis) for root in roots}  # type: ignore[arg-type]


_Place = tuple[str, int]  # parameter, dimension


def trace(model: nn.Module, inputs: tuple[torch.Tensor, ...], patterns: Sequence[str] = ()) -> Groups:
    """Trace the channel groups and layers of a model. No cut is tried: `network.survey` does that.

    Args:
        model: Any module that `torch.export` can export. It stays unchanged.
        inputs: Example inputs of fixed shape.
        patterns: Shell patterns of parameter or layer names. Groups with such a parameter come back locked.

    Returns:
        All groups and layers, without blocks.

    Raises:
        UsageError: The model cannot be exported, or has a dynamic shape.
    """
    model = called(model, inputs)
    program, traced = traced_program(model, inputs)
    return collected(traced, program.graph, patterns, _folds(program, model, traced.parameters))


def traced_program(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[ExportedProgram, Trace]:
    """The exported program of a model that was called once (see `called`), and the labels of its tensors."""
    program = exported(model, inputs)
    regions.inline(program.graph_module, _constants(program))
    return program, propagate(program.graph, _stored(program, canonical_names(model)))


def names_of(traced: Trace) -> dict[int, str]:
    """For every class of labels the name of its group."""
    return _collect(traced, ())[1]


def collected(traced: Trace, graph: fx.Graph, patterns: Sequence[str], folds: tuple[tuple[str, str], ...]) -> Groups:
    """The groups and layers that follow from the labels of a graph."""
    groups, group_of = _collect(traced, patterns)
    layers = _layers(traced, groups, group_of)
    return Groups(
        network=_structure(graph, layers if len(layers) < len(traced.layers) else ()),
        groups=groups,
        layers=layers,
        folds=folds,
        unknown_operators=tuple(traced.unknown),
        operators=sum(node.op == "call_function" for node in graph.nodes),
    )


@contextmanager
def exporting() -> Iterator[None]:
    """A context for torch's exporters. They print warnings, their graph, and their errors beside the exception."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with torch.no_grad(), warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def exported(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> ExportedProgram:
    """Export a model. The exporter may leave its own tensors in it, see `called`.

    Raises:
        UsageError: The model cannot be exported.
    """
    try:
        with exporting():
            return torch.export.export(model, inputs)
    except Exception as error:  # the exporter raises many types, all of them about the user's model
        raise UsageError(f"torch.export cannot trace the model: {places.of_failure(error)}") from error


def called(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> nn.Module:
    """A copy in eval mode that was called once.

    A model may keep what it computes from the shape of its input, such as the anchors of a detector. Exporters leave their own
    tensors there if the model computes it while it is traced.

    Raises:
        UsageError: The model fails with these inputs.
    """
    copied = copy.deepcopy(model).eval()
    error = _failure(copied, inputs)
    if error is None:
        return copied
    what = "the model fails with the example inputs: " + places.of_failure(error)
    if _failure(model, inputs) is None:
        what = (
            f"a copy of {what}, and the model itself does not; make the hook that refers to it a method of the model"
            " instead of a lambda"
        )
    raise UsageError(what) from error


def _failure(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Exception | None:
    try:
        with torch.no_grad():
            model(*(x.clone() for x in inputs))  # the model may change them in place
    except Exception as error:  # noqa: BLE001 - any error of the user's forward
        return error
    return None


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Map every name of every parameter and buffer to the first name of the same tensor.

    Tied weights have several names.
    """
    first: dict[int, str] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors}


# ------------------------------------------------------------------------------------------------- propagation


def propagate(graph: fx.Graph, stored: Mapping[fx.Node, str], editable: bool = False) -> Trace:
    """Propagate labels through all nodes.

    Args:
        graph: Every node has its value in `meta["val"]`.
        stored: The nodes that are parameters or buffers which can be cut, with their names.
        editable: Whether the graph's constants that are sizes follow a cut.
    """
    traced = Trace(sizes=[] if editable else None)
    axes: dict[str, Axes] = {}
    live = _live(graph)
    for node in graph.nodes:
        if isinstance(node.meta.get("val"), torch.Tensor):
            shape_of(node)  # refuses a dynamic shape, also of an operator without a rule
        if (node.op == "placeholder" and node not in stored) or not traced.fed.isdisjoint(node.all_input_nodes):
            traced.fed.add(node)
        if node.op in ("placeholder", "get_attr"):
            _enter(traced, node, stored.get(node), axes)
        elif node.op == "call_function":
            # Dead nodes (an auxiliary head in eval mode) still execute: cut them, but let them lock nothing.
            traced.labels.locking = node in live
            found = (traced.layers, traced.unknown) if node in live else ([], {})
            known = traced.labels, node, bind(node), traced.values, traced.parameters
            call = Call(*known, *found, traced.sizes, traced.fed, traced.statistics if node in live else [])
            traced.labels.place = ", ".join(filter(None, (places.of_call(node), call.name)))
            traced.values[node] = apply(call)
            traced.labels.locking, traced.labels.place = True, ""
        elif node.op == "output":
            for out in node.all_input_nodes:
                for axis in traced.values[out]:
                    traced.labels.lock(axis.tolist(), "output of the model")  # type: ignore[union-attr]
    return traced


def _stored(program: ExportedProgram, names: Mapping[str, str]) -> dict[fx.Node, str]:
    """The inputs of a graph that are parameters or buffers of a state dict. Other buffers are constants of the code."""
    kinds = {spec.arg.name: spec for spec in program.graph_signature.input_specs}

    def is_stored(spec: InputSpec) -> bool:
        return spec.kind is InputKind.PARAMETER or (spec.kind is InputKind.BUFFER and bool(spec.persistent))

    specs = ((node, kinds[node.name]) for node in program.graph.nodes if node.op == "placeholder")
    return {node: names[spec.target] for node, spec in specs if is_stored(spec) and spec.target is not None}


def _constants(program: ExportedProgram) -> dict[str, torch.Tensor]:
    """The inputs of a graph that are constants of the code, by name."""
    specs = (spec for spec in program.graph_signature.input_specs if spec.kind is InputKind.CONSTANT_TENSOR)
    return {spec.arg.name: program.constants[spec.target] for spec in specs if spec.target is not None}


def _enter(traced: Trace, node: fx.Node, name: str | None, axes: dict[str, Axes]) -> None:
    """Label an input of the graph: fresh labels for a stored parameter or buffer, none for anything else."""
    if not isinstance(node.meta.get("val"), torch.Tensor):
        return
    if name is None:
        traced.values[node] = [none(size) for size in shape_of(node)]
        return
    traced.parameters[node] = name
    if name not in axes:
        axes[name] = [traced.labels.fresh(size) for size in shape_of(node)]
    traced.values[node] = axes[name]


def _live(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose result reaches an output. Attention weights that the model discards do not."""
    live: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        schema = getattr(node.target, "_schema", None)
        lasting = node.op != "call_function" or (schema is not None and schema.is_mutable)
        if lasting or not live.isdisjoint(node.users):
            live.add(node)
    return live


# ------------------------------------------------------------------------------------------------------ groups

_Shape = tuple[tuple[str, int, int], ...]  # parameter, dimension and number of indices, for each place of a class


def _collect(traced: Trace, patterns: Sequence[str]) -> tuple[tuple[Group, ...], dict[int, str]]:
    """The groups, and for every class of labels the name of its group.

    Classes with equally many members in the same places are interchangeable. They are the units of one group.
    """
    traced.labels.lock_factors()
    members = traced.members
    groups: list[Group] = []
    group_of: dict[int, str] = {}
    names: Counter[str] = Counter()
    output_dims = {layer.weight: output_dim(layer.kind) for layer in traced.layers}
    rescaled = traced.rescaled()
    for shape, reason, units in _interchangeable(members, traced.labels):
        slots = tuple(
            Slot(name, dim, tuple(tuple(members[unit][name, dim]) for unit in units)) for name, dim, _ in shape
        )
        base = _producer(shape, output_dims)
        names[base] += 1
        name = base if names[base] == 1 else f"{base}:{names[base]}"
        pattern = next((p for p in patterns for slot in slots if matches(slot.parameter, p)), None)
        if reason is None and pattern is not None:
            reason = f"locked by the pattern {pattern!r}"
        if reason is None and len(units) == 1:
            reason = "a single unit"
        groups.append(Group(name, len(units), slots, reason, not rescaled.isdisjoint(units)))
        group_of.update(dict.fromkeys(units, name))
    return tuple(groups), group_of


def _interchangeable(
    members: Mapping[int, Mapping[_Place, list[int]]], labels: Labels
) -> Iterator[tuple[_Shape, str | None, list[int]]]:
    """Yield (places, reason of the lock, classes) for classes with equally many members in the same places.

    Classes that share an index belong to different groups: a head shares indices with a position inside every head.
    """
    found: dict[tuple[Any, ...], list[tuple[list[int], set[int]]]] = {}
    for root, slots in members.items():
        shape = tuple((name, dim, len(indices)) for (name, dim), indices in slots.items())
        own = set(next(iter(slots.values())))
        alike = found.setdefault((shape, labels.reason(root)), [])
        group = next((group for group in alike if not group[1] & own), None)
        if group is None:
            alike.append(([root], own))
        else:
            group[0].append(root)
            group[1].update(own)
    for (shape, reason), alike in found.items():
        for roots, _ in alike:
            yield shape, reason, roots


def _producer(shape: Iterable[tuple[str, int, int]], output_dims: Mapping[str, int]) -> str:
    """The first layer that produces the channels. The group is named after it."""
    slots = list(shape)
    weight = next((name for name, dim, _ in slots if dim == output_dims.get(name, 0)), slots[0][0])
    return weight.rpartition(".")[0] or weight


# ------------------------------------------------------------------------------------------------------ layers


def _layers(traced: Trace, groups: tuple[Group, ...], group_of: Mapping[int, str]) -> tuple[Layer, ...]:
    """The layers, with their channel counts as functions of the groups' widths. A layer may be called several times."""
    width = {group.name: group.width for group in groups if group.locked is None}

    def span(axis: Axis) -> Span:
        owners = ((group_of.get(root, "") for root in roots) for roots in traced.labels.factors(axis))
        counts = Counter(tuple(name for name in names if name in width) for names in owners)
        units = {names: math.prod(width[name] for name in names) for names in counts}
        terms = tuple((names, count // units[names]) for names, count in counts.items() if names)
        return Span(len(axis) - sum(count * units[names] for names, count in terms), terms)

    called: Counter[Layer] = Counter()  # positions of all calls of a layer
    for layer in traced.layers:
        spans, geometry = (span(layer.inputs), span(layer.outputs)), layer.geometry
        if any(span(axis).terms for axis in geometry.rows):
            continue
        inside = [None if axis is None else span(axis) for axis in (geometry.per_group, geometry.made_per_group)]
        made = Layer(layer.name, layer.kind, layer.weight, *spans, 0, geometry.kernel, inside[0], inside[1])
        called[made] += geometry.positions
    seen: Counter[str] = Counter()
    layers = []
    for one, positions in called.items():
        seen[one.name] += 1
        name = one.name if seen[one.name] == 1 else f"{one.name}#{seen[one.name]}"
        layers.append(replace(one, name=name, positions=positions))
    return tuple(layers)


def _folds(
    program: ExportedProgram, model: nn.Module, parameters: Mapping[fx.Node, str]
) -> tuple[tuple[str, str], ...]:
    """(convolution or linear, batch-norm) modules that can be folded: at every call, only the norm reads the layer."""
    calls: Counter[tuple[fx.Node, fx.Node]] = Counter()
    for node in program.graph.nodes:
        if node.op != "call_function" or getattr(node.target, "_opname", "") != "batch_norm":
            continue
        given = bind(node)
        source, scale = given["input"], given["weight"]
        if given["training"] or not (isinstance(source, fx.Node) and len(source.users) == 1 and scale in parameters):
            continue
        weight = bind(source).get("weight")
        if isinstance(weight, fx.Node) and weight in parameters:
            calls[weight, scale] += 1
    paired = [pair for pair, count in calls.items() if all(len(node.users) == count for node in pair)]
    named = (tuple(parameters[node].rpartition(".")[0] for node in pair) for pair in paired)
    return tuple((layer, norm) for layer, norm in named if _foldable(model, layer, norm))


def _foldable(model: nn.Module, layer: str, norm: str) -> bool:
    layers = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    module = model.get_submodule(layer)
    known = type(module) in layers or (type(module) in transposed and getattr(module, "groups", 0) == 1)
    return known and type(model.get_submodule(norm)) in norms


def _structure(graph: fx.Graph, joined: Sequence[Layer]) -> str:
    """Digest of operators, their arguments and all shapes. Networks with the same digest have the same latency.

    Profiles keep node times by layer. So the digest also covers the names of layers that join several calls.
    """

    def shape(node: fx.Node) -> str:
        value = node.meta.get("val")
        return str([(tuple(v.shape), str(v.dtype)) for v in (value if isinstance(value, tuple | list) else [value])
                    if isinstance(v, torch.Tensor)])  # fmt: skip

    calls = [[node.op, node.name, str(node.target), str(node.args), shape(node)] for node in graph.nodes]
    return digest([*calls, *(layer.name for layer in joined)])
