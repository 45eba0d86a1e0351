"""Where labels go: one rule an operator. Pure; knows ATen's operators and nothing of groups.

`NONE` marks an index that no cut can touch (batch, space, constants). A label that must be kept is locked, with the
reason: outputs of the model, statistics over channels, operators without a rule. A new operator is one function here, and
a network in tests/nets.py that uses it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from edgeprune.errors import UsageError

NONE = -1

Axis = np.ndarray  # labels of one dimension, int64
Axes = list[Axis]  # labels of one tensor, a dimension an entry
Value = Axes | list[Axes]


class Labels:
    """Union-find over labels; a class may be locked, with a reason.

    A class may also be a product: where a dimension of channels is seen as two, such as heads × width, an index goes when its
    head goes or its place in every head, and not by itself. Its factors are what can be cut.
    """

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._locked: dict[int, str] = {}
        self._factors: dict[int, tuple[int, ...]] = {}

    def fresh(self, count: int) -> Axis:
        """`count` new labels, each in a class of its own."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    def root(self, label: int) -> int:
        """The class of a label."""
        while self._parent[label] != label:
            self._parent[label] = self._parent[self._parent[label]]
            label = self._parent[label]
        return label

    def roots(self, axis: Axis) -> Axis:
        """The classes of an axis, `NONE` where it has no label."""
        return np.array([NONE if label == NONE else self.root(int(label)) for label in axis], dtype=np.int64)

    def factors(self, axis: Axis) -> list[tuple[int, ...]]:
        """Of every index the classes that it goes with: its own, or the factors that it is a product of; none where it has no
        label."""
        return [() if label == NONE else tuple(dict.fromkeys(self._leaves(int(label), ()))) for label in axis]

    def _leaves(self, label: int, above: tuple[int, ...]) -> Iterator[int]:
        root = self.root(label)
        if root in above:  # a product of itself: no cut is sure to be right
            self.lock((root,), "these channels are seen as a product of themselves")
        elif root in self._factors:
            for factor in self._factors[root]:
                yield from self._leaves(factor, (*above, root))
        else:
            yield root

    def divide(self, label: int, factors: tuple[int, ...]) -> None:
        """Make a label's class the product of these; where it is one already, the factors unite one by one."""
        self._divide(self.root(label), factors)

    def _divide(self, root: int, factors: tuple[int, ...]) -> None:
        known = self._factors.get(root)
        if known is None:
            self._factors[root] = factors
        elif len(known) == len(factors):
            for a, b in zip(known, factors, strict=True):
                self._merge(self.root(a), self.root(b))
        else:
            self.lock((*known, *factors), "these channels are seen as products of two kinds")

    def settle(self) -> None:
        """What is locked as a product is locked by all its factors. To be called before reasons are asked for."""
        for root in list(self._factors):
            reason = self._locked.get(self.root(root))
            if reason is not None:
                self.lock([leaf for leaves in self.factors(np.array([root])) for leaf in leaves], reason)

    def lock(self, labels: Iterable[int], reason: str) -> None:
        """Nothing in these labels' classes may be cut; the first reason given is the one kept."""
        for label in labels:
            if label != NONE:
                self._locked.setdefault(self.root(int(label)), reason)

    def reason(self, label: int) -> str | None:
        """Why a label's class is locked, or None."""
        return self._locked.get(self.root(label))

    def unite(self, first: Axis, second: Axis, reason: str) -> Axis:
        """Aligned indices live or die together; beside an index that cannot be cut, the other is locked."""
        if len(first) != len(second):
            raise ValueError(f"cannot align {len(first)} with {len(second)} indices")
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            if a == NONE or b == NONE:
                self.lock((a, b), reason)
            else:
                self._merge(self.root(a), self.root(b))
        return np.where(first == NONE, second, first)

    def tie(self, labels: Iterable[int], reason: str) -> None:
        """All these labels live or die together."""
        axis = np.fromiter(labels, dtype=np.int64)
        self.unite(axis[:1].repeat(len(axis) - 1), axis[1:], reason)

    def _merge(self, a: int, b: int) -> None:
        if a == b:
            return
        keep, drop = min(a, b), max(a, b)
        self._parent[drop] = keep
        if drop in self._locked:
            self._locked.setdefault(keep, self._locked.pop(drop))
        if drop in self._factors:
            self._divide(keep, self._factors.pop(drop))


def none(size: int) -> Axis:
    """An axis that no cut can touch."""
    return np.full(size, NONE, dtype=np.int64)


def has_labels(axis: Axis) -> bool:
    """Whether any index of the axis can be cut at all."""
    return bool((axis != NONE).any())


@dataclass
class Site:
    """A layer as met in the graph, with the labels of its channels."""

    name: str
    kind: str
    weight: str
    inputs: Axis
    outputs: Axis
    positions: int
    kernel: int
    per_group: int | None


@dataclass
class Call:
    """One operator call as a rule sees it: arguments by name, labels of the tensors, shapes."""

    labels: Labels
    node: fx.Node
    args: dict[str, Any]
    values: dict[fx.Node, Value]
    parameters: dict[fx.Node, str]
    sites: list[Site]
    unknown: dict[str, None]

    @property
    def name(self) -> str:
        """The operator's name without its overload: `conv2d`, `add_`."""
        return getattr(self.node.target, "_opname", str(self.node.target))

    @property
    def why(self) -> str:
        return f"{self.node.target} ties it to an input, a constant or space"

    @property
    def shape(self) -> tuple[int, ...]:
        return shape_of(self.node)

    def axes(self, name: str) -> Axes:
        value = self.values[self.args[name]]
        return value  # type: ignore[return-value]

    def dim(self, name: str, rank: int) -> int:
        return int(self.args[name]) % rank

    def lock(self, axes: Axes, reason: str | None = None) -> None:
        for axis in axes:
            self.labels.lock(axis.tolist(), reason or self.why)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's tensor; a dynamic one is refused."""
    shape = node.meta["val"].shape
    if not all(isinstance(size, int) for size in shape):
        raise UsageError(
            f"the model has a dynamic shape at {node.name}: {tuple(shape)}; give fixed-size example inputs"
        )
    return tuple(shape)


# ------------------------------------------------------------------------------------------------------ rules

Rule = Callable[[Call], Value]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule of the ATen operators of these names (in-place forms included)."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


@rule("conv1d", "conv2d", "conv3d")
def _convolution(call: Call) -> Value:
    source, weight = call.axes("input"), call.axes("weight")
    groups = int(call.args["groups"])
    channels, made = source[-len(weight) + 1], weight[0]
    if groups == 1:
        call.labels.unite(weight[1], channels, call.why)
    else:
        # A convolution group is cut whole: its input channels go with its output channels (depthwise is groups of one).
        for ins, outs in zip(np.split(channels, groups), np.split(made, groups), strict=True):
            call.labels.tie(np.concatenate([ins, outs]).tolist(), call.why)
        weight[1] = none(len(weight[1]))
    for dim in range(2, len(weight)):
        weight[dim] = none(len(weight[dim]))
    _with_bias(call, made)
    _site(call, "conv", channels, made, per_group=None if groups == 1 else len(weight[1]))
    batch = source[: -len(weight) + 1]
    return [*batch, made, *(none(size) for size in call.shape[len(batch) + 1 :])]


@rule("linear")
def _linear(call: Call) -> Value:
    source, weight = call.axes("input"), call.axes("weight")
    call.labels.unite(weight[1], source[-1], call.why)
    _with_bias(call, weight[0])
    _site(call, "linear", source[-1], weight[0], per_group=None)
    return [*source[:-1], weight[0]]


def _with_bias(call: Call, made: Axis) -> None:
    if isinstance(call.args.get("bias"), fx.Node):
        call.labels.unite(call.axes("bias")[0], made, call.why)


def _site(call: Call, kind: str, inputs: Axis, outputs: Axis, per_group: int | None) -> None:
    weight = call.args["weight"]
    if weight not in call.parameters:
        return  # a computed weight is no layer of ours; its labels are locked by what computes it
    shape = call.shape
    out_dim = len(shape) - 1 if kind == "linear" else len(shape) - len(shape_of(weight)) + 1
    call.sites.append(
        Site(
            name=call.parameters[weight].rpartition(".")[0] or call.parameters[weight],
            kind=kind,
            weight=call.parameters[weight],
            inputs=inputs,
            outputs=outputs,
            positions=math.prod(shape) // shape[out_dim],
            kernel=math.prod(shape_of(weight)[2:]),
            per_group=per_group,
        )
    )


@rule("batch_norm", "instance_norm")
def _per_channel_norm(call: Call) -> Value:
    source = call.axes("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if isinstance(call.args.get(name), fx.Node):
            call.labels.unite(source[1], call.axes(name)[0], call.why)
    return source


@rule("group_norm")
def _group_norm(call: Call) -> Value:
    # Statistics are taken over whole groups of channels, so only a whole group can go and leave the others as they were.
    source = call.axes("input")
    for part in np.split(source[1], int(call.args["num_groups"])):
        call.labels.tie(part.tolist(), call.why)
    return _per_channel_norm(call)


@rule("layer_norm", "rms_norm")
def _layer_norm(call: Call) -> Value:
    source = call.axes("input")
    normalised = source[-len(call.args["normalized_shape"]) :]
    call.lock(normalised, "layer normalisation takes its statistics over these channels")
    for name in ("weight", "bias"):
        if isinstance(call.args.get(name), fx.Node):
            for axis, own in zip(normalised, call.axes(name), strict=True):
                call.labels.unite(axis, own, call.why)
    return source


ELEMENTWISE = """
    abs add alias atan celu clamp clamp_max clamp_min clone contiguous cos detach div dropout elu erf exp
    feature_dropout gelu hardsigmoid hardswish hardtanh leaky_relu lift_fresh_copy log maximum minimum mish mul neg
    pow reciprocal relu relu6 rsqrt rsub selu sigmoid silu sin softplus softsign sqrt square sub tanh threshold to
    _to_copy type_as where
""".split()


@rule(*ELEMENTWISE)
def _elementwise(call: Call) -> Value:
    shape = call.shape
    result = [none(size) for size in shape]
    seen = [False] * len(shape)
    for argument in call.args.values():
        if not isinstance(argument, fx.Node) or argument not in call.values:
            continue
        axes: Axes = call.values[argument]  # type: ignore[assignment]
        for dim, axis in enumerate(axes, start=len(shape) - len(axes)):
            if len(axis) != shape[dim]:  # broadcast from one
                continue
            result[dim] = call.labels.unite(result[dim], axis, call.why) if seen[dim] else axis
            seen[dim] = True
    return result


@rule("prelu")
def _prelu(call: Call) -> Value:
    source, weight = call.axes("self"), call.axes("weight")
    if len(weight[0]) > 1:
        call.labels.unite(source[1], weight[0], call.why)
    else:
        weight[0] = none(1)
    return source


@rule("cat", "concat", "concatenate")
def _cat(call: Call) -> Value:
    parts: list[Axes] = [call.values[tensor] for tensor in call.args["tensors"]]  # type: ignore[misc]
    dim = call.dim("dim", len(call.shape))
    result = list(parts[0])
    for part in parts[1:]:
        for other in range(len(result)):
            if other != dim:
                result[other] = call.labels.unite(result[other], part[other], call.why)
    result[dim] = np.concatenate([part[dim] for part in parts])
    return result


@rule("chunk", "split", "split_with_sizes", "unsafe_chunk", "unsafe_split", "tensor_split")
def _split(call: Call) -> Value:
    source = call.axes("self")
    dim = call.dim("dim", len(source))
    sizes = [value.shape[dim] for value in call.node.meta["val"]]
    starts = np.cumsum([0, *sizes])
    results = []
    for start, size in zip(starts.tolist(), sizes, strict=False):
        part = list(source)
        part[dim] = _window(call, source[dim], start, size)
        results.append(part)
    return results


@rule("slice", "narrow")
def _slice(call: Call) -> Value:
    source = call.axes("self")
    dim = call.dim("dim", len(source))
    size = len(source[dim])
    if "length" in call.args:
        start, stop, step = call.args["start"], call.args["start"] + call.args["length"], 1
    else:
        start, stop, step = slice(call.args["start"], call.args["end"], call.args["step"]).indices(size)
    result = list(source)
    if step == 1:
        result[dim] = _window(call, source[dim], start, stop - start)
    else:
        call.labels.lock(source[dim].tolist(), f"strided slice {call.node.target}")
        result[dim] = source[dim][start:stop:step]
    return result


def _window(call: Call, axis: Axis, start: int, size: int) -> Axis:
    """A contiguous part of an axis. Equal parts that tile it shrink alike, so that `chunk` stays where it was."""
    if size == len(axis):
        return axis
    if has_labels(axis):
        if size and len(axis) % size == 0 and start % size == 0:
            for ties in axis.reshape(-1, size).T:
                call.labels.tie(ties.tolist(), call.why)
        else:
            call.labels.lock(axis.tolist(), f"{call.node.target} takes channels {start} to {start + size} by number")
    return axis[start : start + size]


@rule("select")
def _select(call: Call) -> Value:
    source = call.axes("self")
    dim = call.dim("dim", len(source))
    call.labels.lock(source[dim].tolist(), f"{call.node.target} takes a channel by number")
    return source[:dim] + source[dim + 1 :]


@rule("pad", "constant_pad_nd")
def _pad(call: Call) -> Value:
    # The model's code fixes how many constants it adds; the channels aligned with them later are locked by `unite`.
    result = list(call.axes("self"))
    amounts: Sequence[int] = call.args["pad"]
    constant = call.args.get("mode", "constant") == "constant"
    for i in range(len(amounts) // 2):
        before, after = amounts[2 * i], amounts[2 * i + 1]
        dim = len(result) - 1 - i
        if (before or after) and has_labels(result[dim]) and (not constant or before < 0 or after < 0):
            call.labels.lock(result[dim].tolist(), f"{call.node.target} copies or crops channels by number")
            result[dim] = none(call.shape[dim])
        else:
            result[dim] = np.concatenate([none(max(before, 0)), result[dim], none(max(after, 0))])
            if before < 0 or after < 0:
                result[dim] = none(call.shape[dim])
    return result


@rule("flatten", "reshape", "view", "_unsafe_view", "unflatten", "squeeze", "unsqueeze")
def _reshape(call: Call) -> Value:
    source = [axis for axis in call.axes("self") if len(axis) != 1]
    result = [none(size) for size in call.shape]
    dims = [dim for dim, size in enumerate(call.shape) if size != 1]
    for ins, outs in _blocks([len(axis) for axis in source], [call.shape[dim] for dim in dims]):
        axes = _regroup(call, [source[i] for i in ins], [call.shape[dims[o]] for o in outs])
        for o, axis in zip(outs, axes, strict=True):
            result[dims[o]] = axis
    return result


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Split two shapes of equal volume into the smallest runs of dimensions with equal volume."""
    blocks: list[tuple[list[int], list[int]]] = []
    i = o = 0
    while i < len(before) and o < len(after):
        ins, outs = [i], [o]
        left, right = before[i], after[o]
        while left != right:
            if left < right:
                i += 1
                ins.append(i)
                left *= before[i]
            else:
                o += 1
                outs.append(o)
                right *= after[o]
        blocks.append((ins, outs))
        i, o = i + 1, o + 1
    return blocks


def _regroup(call: Call, axes: list[Axis], sizes: list[int]) -> list[Axis]:
    """Labels of one block of a reshape: merged, split, both or neither."""
    if len(axes) == len(sizes) == 1:
        return axes
    return _split_axis(call, _merged(call, axes).reshape(sizes))


def _merged(call: Call, axes: list[Axis]) -> Axis:
    """The labels of dimensions made one: of several that hold channels, products."""
    labelled = [axis for axis in axes if has_labels(axis)]
    if not labelled:
        return none(math.prod(map(len, axes)))
    if any((axis == NONE).any() for axis in labelled):
        call.lock(labelled, f"{call.node.target} merges channels with what is none")
        return none(math.prod(map(len, axes)))
    grid = np.meshgrid(*axes, indexing="ij")
    own = [part.reshape(-1) for part, axis in zip(grid, axes, strict=True) if has_labels(axis)]
    if len(own) == 1:
        return own[0]
    made = call.labels.fresh(len(own[0]))
    for label, factors in zip(made.tolist(), zip(*(part.tolist() for part in own), strict=True), strict=True):
        call.labels.divide(label, factors)
    return made


def _split_axis(call: Call, grid: np.ndarray) -> list[Axis]:
    """The labels of the dimensions of a grid: of one of them where they only differ along it, else new ones of each, of which the
    grid's are the products."""
    roots = call.labels.roots(grid.reshape(-1)).reshape(grid.shape)
    shape = grid.shape
    for dim in range(grid.ndim):
        rows = np.moveaxis(roots, dim, 0).reshape(shape[dim], -1)
        if (rows == rows[:, :1]).all():
            return [rows[:, 0].copy() if d == dim else none(size) for d, size in enumerate(shape)]
    if (roots == NONE).any():
        call.lock([grid.reshape(-1)])
        return [none(size) for size in shape]
    parts = [call.labels.fresh(size) for size in shape]
    for place, label in np.ndenumerate(grid):
        call.labels.divide(int(label), tuple(int(part[i]) for part, i in zip(parts, place, strict=True)))
    return parts


@rule("permute")
def _permute(call: Call) -> Value:
    source = call.axes("self")
    return [source[dim % len(source)] for dim in call.args["dims"]]


@rule("transpose", "swapaxes", "t")
def _transpose(call: Call) -> Value:
    result = list(call.axes("self"))
    a, b = (call.dim("dim0", len(result)), call.dim("dim1", len(result))) if "dim0" in call.args else (0, -1)
    result[a], result[b] = result[b], result[a]
    return result


@rule("expand", "expand_as")
def _expand(call: Call) -> Value:
    source = call.axes("self")
    offset = len(call.shape) - len(source)
    result = [none(size) for size in call.shape]
    for dim, axis in enumerate(source, start=offset):
        if len(axis) == call.shape[dim]:
            result[dim] = axis
    return result


@rule(
    *(f"{kind}_pool{n}d" for kind in ("avg", "max", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)),
    *["upsample_nearest1d", "upsample_nearest2d", "upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d"],
)
def _spatial(call: Call) -> Value:
    if not isinstance(call.node.meta["val"], torch.Tensor):
        return _unknown(call)  # pooling that also returns indices
    source = call.axes("self" if "self" in call.args else "input")
    kept = len(source) - int(call.name[-2])  # the operator's name ends in its number of spatial dimensions
    call.lock(source[kept:])
    return [*source[:kept], *(none(size) for size in call.shape[kept:])]


@rule("mean", "sum", "amax", "amin", "prod", "argmax", "var", "std", "norm", "logsumexp")
def _reduce(call: Call) -> Value:
    source = call.axes("self")
    given = call.args.get("dim")
    dims = range(len(source)) if given is None or given == [] else given if isinstance(given, list | tuple) else [given]
    reduced = {dim % len(source) for dim in dims}
    call.lock([source[dim] for dim in reduced], f"{call.node.target} reduces over these channels")
    if call.args.get("keepdim"):
        return [none(1) if dim in reduced else axis for dim, axis in enumerate(source)]
    return [axis for dim, axis in enumerate(source) if dim not in reduced]


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum")
def _along(call: Call) -> Value:
    source = call.axes("self")
    call.lock([source[call.dim("dim", len(source))]], f"{call.node.target} mixes these channels")
    return source


def _unknown(call: Call) -> Value:
    """An operator without a rule: whatever reaches it is locked."""
    for node in call.node.all_input_nodes:
        value = call.values.get(node, [])
        for axes in value if value and isinstance(value[0], list) else [value]:
            call.lock(axes, f"{call.node.target} has no rule")  # type: ignore[arg-type]
    result = call.node.meta["val"]
    if isinstance(result, torch.Tensor):
        return [none(size) for size in result.shape]
    return [[none(size) for size in part.shape] if isinstance(part, torch.Tensor) else [] for part in result]


def bind(node: fx.Node) -> dict[str, Any]:
    """Arguments by their name in the operator's schema, defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {str(i): argument for i, argument in enumerate(node.args)}
    bound: dict[str, Any] = {}
    for i, argument in enumerate(schema.arguments):
        if i < len(node.args):
            bound[argument.name] = node.args[i]
        elif argument.name in node.kwargs:
            bound[argument.name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            bound[argument.name] = argument.default_value
    return bound


def apply(call: Call) -> Value:
    """The labels of what a call returns. In-place forms follow the rule of their operator."""
    if call.node.target is operator.getitem:
        source, index = call.node.args
        return call.values[source][index]  # type: ignore[index, return-value]
    if call.node.meta.get("val") is None:  # an assertion that the exporter puts beside a change of type
        return []
    found = RULES.get(call.name) or RULES.get(call.name.removesuffix("_"))
    if found is not None:
        return found(call)
    call.unknown[str(call.node.target)] = None
    return _unknown(call)
