"""Where labels go: one rule an operator. Pure; knows ATen's operators and nothing of groups.

A rule unites labels that must go together and locks those that must stay: outputs of the model, statistics over channels,
whatever reaches an operator without a rule. A new operator is one function here, and a network in tests/nets.py that uses it.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from edgeprune.errors import UsageError
from edgeprune.labels import NONE, Axes, Axis, Labels, has_labels, none

Value = Axes | list[Axes]


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

    def shape_at(self, place: int) -> tuple[int, ...]:
        """The shape of one of several results."""
        return tuple(self.node.meta["val"][place].shape)

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
    per_group = None if groups == 1 else len(weight[1])
    _site(call, "conv", channels, made, math.prod(call.shape) // len(made), math.prod(map(len, weight[2:])), per_group)
    return _over_space(call, source, len(weight) - 2, made)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _transposed_convolution(call: Call) -> Value:
    source, weight = call.axes("input"), call.axes("weight")
    groups = int(call.args["groups"])
    channels, made = source[-len(weight) + 1], weight[1]
    call.labels.unite(weight[0], channels, call.why)
    if groups > 1:
        parts = np.split(channels, groups)
        for part in parts:
            call.labels.tie(part.tolist(), call.why)
        made = np.concatenate([part[:1].repeat(len(weight[1])) for part in parts])
        weight[1] = none(len(weight[1]))
    for dim in range(2, len(weight)):
        weight[dim] = none(len(weight[dim]))
    _with_bias(call, made)
    taps, positions = math.prod(map(len, weight[2:])), math.prod(map(len, source)) // len(channels)
    _site(call, "conv_transpose", channels, made, positions, taps, None if groups == 1 else len(channels) // groups)
    return _over_space(call, source, len(weight) - 2, made)


def _over_space(call: Call, source: Axes, dims: int, made: Axis) -> Axes:
    """What a convolution returns; the last `dims` dimensions are space, in which nothing can be cut."""
    call.lock(source[len(source) - dims :])
    return [*source[: len(source) - dims - 1], made, *(none(size) for size in call.shape[len(call.shape) - dims :])]


@rule("linear")
def _linear(call: Call) -> Value:
    source, weight = call.axes("input"), call.axes("weight")
    call.labels.unite(weight[1], source[-1], call.why)
    _with_bias(call, weight[0])
    _site(call, "linear", source[-1], weight[0], math.prod(call.shape[:-1]))
    return [*source[:-1], weight[0]]


def _with_bias(call: Call, made: Axis) -> None:
    if isinstance(call.args.get("bias"), fx.Node):
        call.labels.unite(call.axes("bias")[0], made, call.why)


def _site(
    call: Call,
    kind: str,
    inputs: Axis,
    outputs: Axis,
    positions: int,
    kernel: int = 1,
    per_group: int | None = None,
    weight: Any = None,
) -> None:
    weight = call.args["weight"] if weight is None else weight
    name = call.parameters.get(weight)
    if name is None:
        return  # a computed weight, such as a normed one, is no layer of ours: it counts for nothing in time and work
    path = name.rpartition(".")[0] or name
    call.sites.append(Site(path, kind, name, inputs, outputs, positions, kernel, per_group))


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def _recurrence(call: Call) -> Value:
    """A unit that is zero stays zero, since its state begins at zero: it is cut with its rows in every gate, its column in the
    recurrence, and its like in every layer and direction, which share one size."""
    if "hx" not in call.args or call.args.get("batch_sizes") is not None:
        return _unknown(call)
    states = call.args["hx"] if isinstance(call.args["hx"], list | tuple) else [call.args["hx"]]
    weights, biased = list(call.args["params"]), bool(call.args["has_biases"])
    directions = 1 + bool(call.args["bidirectional"])
    each = 4 if biased else 2
    source, reaching = call.axes("input"), call.axes("input")[-1]
    axes = [call.values[weight] for weight in weights]
    hidden: Axis = axes[1][1]  # type: ignore[assignment]
    if (
        len(weights) != each * directions * int(call.args["num_layers"])
        or len(hidden) * directions != call.shape_at(0)[-1]
    ):
        return _unknown(call)  # with a projection
    for state in states:
        if not _is_fresh(state):  # another recurrence's, whose units then go with these, or one of a fixed size
            sized: Axis = call.values[state][-1]  # type: ignore[assignment]
            call.labels.unite(hidden, sized, "the state that the recurrence begins with has this size")
    positions = math.prod(call.shape_at(0)[:-1])
    for at in range(0, len(weights), each * directions):
        for way in range(at, at + each * directions, each):
            into, again, *biases = axes[way : way + each]
            gates = np.tile(hidden, len(into[0]) // len(hidden))
            call.labels.unite(into[1], reaching, call.why)  # type: ignore[arg-type]
            for rows in (into[0], again[0], *(bias[0] for bias in biases)):
                call.labels.unite(rows, gates, call.why)  # type: ignore[arg-type]
            call.labels.unite(again[1], hidden, call.why)  # type: ignore[arg-type]
            _site(call, "linear", reaching, gates, positions, weight=weights[way])
            _site(call, "linear", hidden, gates, positions, weight=weights[way + 1])
        reaching = np.tile(hidden, directions)
    last = [none(len(states[0].meta["val"])), none(call.shape_at(1)[1]), hidden]
    return [[*source[:-1], reaching], *([last] * len(states))]


def _is_fresh(node: fx.Node) -> bool:
    """Whether a tensor is made on the spot, so that its size follows from the module's own."""
    name = getattr(node.target, "_opname", "")
    if name in ("to", "_to_copy", "clone", "contiguous", "expand"):
        return _is_fresh(node.all_input_nodes[0])
    return node.op == "call_function" and (not node.all_input_nodes or name.startswith("new_"))


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
    abs add addcdiv addcmul alias alpha_dropout __and__ atan bitwise_and bitwise_not bitwise_or ceil celu clamp
    clamp_max clamp_min clip clone contiguous cos detach div divide dropout elu eq erf exp expm1 feature_dropout
    floor fmod full_like ge gelu gt hardshrink hardsigmoid hardswish hardtanh isinf isnan le leaky_relu lerp
    lift_fresh_copy log log1p log2 log_sigmoid logical_and logical_not logical_or lt masked_fill maximum minimum
    mish mul multiply nan_to_num ne neg ones_like __or__ pow reciprocal relu relu6 remainder round rsqrt rsub selu
    sigmoid sign silu sin softplus softshrink softsign sqrt square sub subtract tanh threshold true_divide where
    zeros_like
""".split()


@rule(*ELEMENTWISE)
def _elementwise(call: Call) -> Value:
    tensors = [a for a in call.args.values() if isinstance(a, fx.Node) and a in call.values]
    return _broadcast(call, [call.values[tensor] for tensor in tensors])  # type: ignore[misc]


def _broadcast(call: Call, tensors: Sequence[Axes]) -> Axes:
    """Dimensions are aligned from the last; those of size one are repeated."""
    rank = max(map(len, tensors))
    result = []
    for place in range(-rank, 0):
        axes = [axes[place] for axes in tensors if len(axes) >= -place]
        size = max(map(len, axes))
        first, *others = [axis for axis in axes if len(axis) == size]
        for other in others:
            first = call.labels.unite(first, other, call.why)
        result.append(first)
    return result


@rule("_weight_norm")
def _weight_norm(call: Call) -> Value:
    """v · g / ‖v‖: the norm is over all but the dimensions of g, and what is cut of those adds nothing to it."""
    v, g = call.axes("v"), call.axes("g")
    for dim, (own, norm) in enumerate(zip(v, g, strict=True)):
        if len(norm) > 1:
            call.labels.unite(own, norm, call.why)
        else:
            g[dim] = none(1)
    return list(v)


@rule("new_empty", "new_full", "new_ones", "new_zeros")
def _constant(call: Call) -> Value:
    return [none(size) for size in call.shape]


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
    return _joined(call, call.dim("dim", len(call.shape)))


@rule("hstack", "column_stack", "vstack")
def _side_by_side(call: Call) -> Value:
    if any(
        len(call.values[tensor]) < 2 for tensor in call.args["tensors"]
    ):  # vectors, which each of them turns its own way
        return _unknown(call)
    return _joined(call, 0 if call.name == "vstack" else 1)


def _joined(call: Call, dim: int) -> Axes:
    parts: list[Axes] = [call.values[tensor] for tensor in call.args["tensors"]]  # type: ignore[misc]
    result = list(parts[0])
    for part in parts[1:]:
        for other in range(len(result)):
            if other != dim:
                result[other] = call.labels.unite(result[other], part[other], call.why)
    result[dim] = np.concatenate([part[dim] for part in parts])
    return result


@rule("stack")
def _stack(call: Call) -> Value:
    parts: list[Axes] = [call.values[tensor] for tensor in call.args["tensors"]]  # type: ignore[misc]
    result = list(parts[0])
    for part in parts[1:]:
        result = [call.labels.unite(mine, other, call.why) for mine, other in zip(result, part, strict=True)]
    result.insert(call.dim("dim", len(result) + 1), none(len(parts)))
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
        start, step = call.args["start"] % size, 1
        stop = start + call.args["length"]
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
        if size > 1 and len(axis) % size == 0 and start % size == 0:
            for ties in axis.reshape(-1, size).T:
                call.labels.tie(ties.tolist(), call.why)
        else:
            call.labels.lock(axis.tolist(), f"{call.node.target} takes channels {start} to {start + size} by number")
    return axis[start : start + size]


@rule("select", "unbind")
def _select(call: Call) -> Value:
    source = call.axes("self")
    dim = call.dim("dim", len(source))
    call.labels.lock(source[dim].tolist(), f"{call.node.target} takes a channel by number")
    part = source[:dim] + source[dim + 1 :]
    return part if call.name == "select" else [part] * len(source[dim])


@rule("index_select", "index", "roll", "flip")
def _rearranged(call: Call) -> Value:
    """Some dimensions are indexed, shifted or turned: their indices must stay, the others are as they were."""
    source = list(call.axes("self"))
    if call.name == "index":
        given = [dim for dim, index in enumerate(call.args["indices"]) if index is not None]
        if len(given) != 1:
            return _unknown(call)
        rank = len(shape_of(call.args["indices"][given[0]]))
    else:
        dims: Any = call.args.get("dims", call.args.get("dim"))
        given = [dim % len(source) for dim in (dims if isinstance(dims, list | tuple) else [dims])] or [
            *range(len(source))
        ]
        rank = 1
    call.lock([source[dim] for dim in given], f"{call.node.target} takes channels by number")
    for dim in sorted(given, reverse=True):
        source[dim : dim + 1] = [none(size) for size in call.shape[dim : dim + rank]]
    return source


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


@rule("flatten", "reshape", "reshape_as", "view", "view_as", "_unsafe_view", "unflatten", "squeeze", "unsqueeze")
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
    own: list[Axis] = [part.reshape(-1) for part, axis in zip(grid, axes, strict=True) if has_labels(axis)]
    if len(own) == 1:
        return own[0]
    made = call.labels.fresh(len(own[0]))
    for label, factors in zip(made.tolist(), zip(*(part.tolist() for part in own), strict=True), strict=True):
        call.labels.divide(label, factors)
    return made


def _split_axis(call: Call, grid: np.ndarray) -> list[Axis]:
    """The labels of the dimensions of a grid: of one of them where they only differ along it, else new ones of each, of which
    the grid's are the products."""
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


@rule("transpose", "swapaxes", "swapdims", "t", "mT")
def _transpose(call: Call) -> Value:
    result = list(call.axes("self"))
    first, second = ("axis0", "axis1") if "axis0" in call.args else ("dim0", "dim1")
    a, b = (call.dim(first, len(result)), call.dim(second, len(result))) if first in call.args else (-2, -1)
    result[a], result[b] = result[b], result[a]
    return result


@rule("movedim", "moveaxis")
def _movedim(call: Call) -> Value:
    source = call.axes("self")
    given, wanted = (
        [dim % len(source) for dim in (dims if isinstance(dims, list | tuple) else [dims])]
        for dims in (call.args["source"], call.args["destination"])
    )
    rest = iter(dim for dim in range(len(source)) if dim not in given)
    return [source[given[wanted.index(dim)] if dim in wanted else next(rest)] for dim in range(len(source))]


@rule("repeat", "tile")
def _repeat(call: Call) -> Value:
    source = [none(1)] * (len(call.shape) - len(call.axes("self"))) + call.axes("self")
    return [np.tile(axis, size // len(axis)) for axis, size in zip(source, call.shape, strict=True)]


@rule("repeat_interleave")
def _repeat_interleave(call: Call) -> Value:
    if not isinstance(call.args.get("repeats"), int) or call.args.get("dim") is None:
        return _unknown(call)
    source = list(call.axes("self"))
    dim = call.dim("dim", len(source))
    source[dim] = np.repeat(source[dim], call.args["repeats"])
    return source


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
    *(f"max_pool{n}d_with_indices" for n in (2, 3)),
    *(f"{kind}{n}d" for kind in ("upsample_nearest", "_upsample_nearest_exact") for n in (1, 2, 3)),
    *["upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d"],
)
def _spatial(call: Call) -> Value:
    source = call.axes("self" if "self" in call.args else "input")
    kept = len(source) - int(re.search(r"(\d)d", call.name)[1])  # type: ignore[index] # the name holds the number of spatial dimensions
    call.lock(source[kept:])
    made = call.node.meta["val"]
    if isinstance(made, torch.Tensor):
        return [*source[:kept], *(none(size) for size in call.shape[kept:])]
    return [[*source[:kept], *(none(size) for size in part.shape[kept:])] for part in made]  # and the places it took


@rule("pixel_shuffle")
def _pixel_shuffle(call: Call) -> Value:
    """r² channels become the r × r pixels of one: they are cut together."""
    *batch, channels, rows, columns = call.axes("self")
    call.lock([rows, columns])
    made = channels.reshape(-1, int(call.args["upscale_factor"]) ** 2)
    for ties in made:
        call.labels.tie(ties.tolist(), call.why)
    return [*batch, made[:, 0].copy(), *(none(size) for size in call.shape[-2:])]


@rule("pixel_unshuffle")
def _pixel_unshuffle(call: Call) -> Value:
    *batch, channels, rows, columns = call.axes("self")
    call.lock([rows, columns])
    made = np.repeat(channels, int(call.args["downscale_factor"]) ** 2)
    return [*batch, made, *(none(size) for size in call.shape[-2:])]


@rule("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(call: Call) -> Value:
    source = list(call.axes("self" if "self" in call.args else "input"))
    groups, own = _split_axis(call, source[1].reshape(int(call.args["groups"]), -1))
    call.lock([groups], f"{call.node.target} has a fixed number of groups")
    source[1] = _merged(call, [own, groups])
    return source


@rule("im2col")
def _im2col(call: Call) -> Value:
    *batch, channels, rows, columns = call.axes("self")
    call.lock([rows, columns])
    return [*batch, np.repeat(channels, math.prod(call.args["kernel_size"])), none(call.shape[-1])]


@rule("glu")
def _glu(call: Call) -> Value:
    source = list(call.axes("self"))
    dim = call.dim("dim", len(source))
    half = len(source[dim]) // 2
    _window(call, source[dim], 0, half)
    source[dim] = source[dim][:half]
    return source


@rule("embedding")
def _embedding(call: Call) -> Value:
    weight = call.axes("weight")
    weight[0] = none(len(weight[0]))
    return [*call.axes("indices"), weight[1]]


# Products of two tensors: what is summed over is cut on both sides, what is aligned goes together.


@rule("matmul", "mm", "bmm")
def _matmul(call: Call) -> Value:
    return _product(call, call.node.args[0], call.node.args[1])


@rule("addmm", "baddbmm")
def _added_product(call: Call) -> Value:
    added, first, second = call.node.args[:3]
    return _broadcast(call, [call.values[added], _product(call, first, second)])  # type: ignore[list-item, index]


def _product(call: Call, left: Any, right: Any) -> Axes:
    """A matrix of parameters on the right is a layer, its inputs first (GPT-2's)."""
    first: Axes = call.values[left]  # type: ignore[assignment]
    second: Axes = call.values[right]  # type: ignore[assignment]
    rows = [] if len(first) == 1 else [first[-2]]
    columns = [] if len(second) == 1 else [second[-1]]
    call.labels.unite(first[-1], second[-1] if len(second) == 1 else second[-2], call.why)
    batch = _broadcast(call, [first[:-2], second[:-2]])
    if len(second) == 2 and not any(map(has_labels, first[:-1])):  # else it mixes places, and costs by channel
        _site(call, "matmul", first[-1], second[-1], math.prod(call.shape) // len(second[-1]), weight=right)
    return [*batch, *rows, *columns]


@rule("einsum")
def _einsum(call: Call) -> Value:
    tensors: list[Axes] = [call.values[tensor] for tensor in call.args["tensors"]]  # type: ignore[misc]
    given, arrow, wanted = _spelled(call.args["equation"].replace(" ", ""), [len(axes) for axes in tensors])
    named = [pair for letters, own in zip(given.split(","), tensors, strict=True)
             for pair in zip(letters, own, strict=True)]  # fmt: skip
    sizes = {letter: len(axis) for letter, axis in named}
    if not arrow or any(len(axis) != sizes[letter] for letter, axis in named):  # implicit results; repeated ones
        return _unknown(call)
    axes: dict[str, Axis] = {}
    for letter, axis in named:
        axes[letter] = call.labels.unite(axes[letter], axis, call.why) if letter in axes else axis
    for letter, axis in axes.items():
        if letter not in wanted and given.count(letter) == 1:
            call.lock([axis], f"{call.node.target} sums over these channels")
    return [axes[letter] for letter in wanted]


def _spelled(equation: str, ranks: Sequence[int]) -> tuple[str, str, str]:
    """An equation's two sides and its arrow, with letters in place of dots: dimensions aligned from the last."""
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
    query, key, value = (call.axes(name) for name in ("query", "key", "value"))
    call.labels.unite(query[-1], key[-1], call.why)
    if call.args.get("scale") is None:
        call.lock([query[-1]], "the scale of the attention follows from this width; give scale=… to have it cut")
    elif len(value[-1]) == len(query[-1]):  # one number in the module's code, as a rule
        call.labels.unite(query[-1], value[-1], call.why)
    call.lock([query[-2], key[-2], value[-2]], f"{call.node.target} mixes these channels")
    if call.args.get("enable_gqa"):
        key, value = (
            [*axes[:-3], np.repeat(axes[-3], len(query[-3]) // len(axes[-3])), *axes[-2:]] for axes in (key, value)
        )
    heads = [query[:-2], key[:-2], value[:-2]]
    if isinstance(call.args.get("attn_mask"), fx.Node):
        heads.append(call.axes("attn_mask")[:-2])
    return [*_broadcast(call, heads), query[-2], value[-1]]


@rule("mean", "sum", "amax", "amin", "prod", "argmax", "var", "std", "norm", "linalg_vector_norm", "logsumexp")
def _reduce(call: Call) -> Value:
    source = call.axes("self")
    given = call.args.get("dim")
    dims = range(len(source)) if given is None or given == [] else given if isinstance(given, list | tuple) else [given]
    reduced = {dim % len(source) for dim in dims}
    call.lock([source[dim] for dim in reduced], f"{call.node.target} reduces over these channels")
    if call.args.get("keepdim"):
        return [none(1) if dim in reduced else axis for dim, axis in enumerate(source)]
    return [axis for dim, axis in enumerate(source) if dim not in reduced]


@rule("max", "min")
def _extreme(call: Call) -> Value:
    """Of two tensors, of one dimension with the places, or of all."""
    if "other" in call.args:
        return _elementwise(call)
    found = _reduce(call)
    return found if isinstance(call.node.meta["val"], torch.Tensor) else [found, found]  # type: ignore[return-value]


@rule("type_as", "to", "_to_copy")
def _retyped(call: Call) -> Value:
    return call.axes("self")


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum")
def _along(call: Call) -> Value:
    source = call.axes("self")
    call.lock([source[call.dim("dim", len(source))]], f"{call.node.target} mixes these channels")
    return source


def _unknown(call: Call) -> Value:
    """An operator without a rule: whatever reaches it is locked, and it is named where that is anything."""
    for node in call.node.all_input_nodes:
        value = call.values.get(node, [])
        for axes in value if value and isinstance(value[0], list) else [value]:
            call.lock(axes, f"{call.node.target} has no rule")  # type: ignore[arg-type]
            if any(has_labels(axis) for axis in axes):  # type: ignore[arg-type]
                call.unknown[str(call.node.target)] = None
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
    made = call.node.meta.get("val")
    if not isinstance(made, torch.Tensor | tuple | list):  # a number, or an assertion beside a change of type
        return []
    found = RULES.get(call.name) or RULES.get(call.name.removesuffix("_"))
    if found is not None:
        return found(call)
    if not call.node.all_input_nodes:  # made on the spot: a constant
        return [none(size) for size in call.shape]
    return _unknown(call)
