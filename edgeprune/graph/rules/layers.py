"""Rules of layers: convolutions, linear layers, recurrences, normalisation, embeddings, pooling, upsampling."""

from __future__ import annotations

import math
import re

import numpy as np
import torch
from torch import fx

from edgeprune.graph.labels import Axes, Axis, has_labels, none
from edgeprune.graph.rules.base import Call, Geometry, Value, add_layer, broadcast, rule, unknown
from edgeprune.graph.rules.shapes import IN_SPACE, merged, split_axis

READS_FIXED = "its input channels are an input of the model or a constant"


@rule("conv1d", "conv2d", "conv3d")
def _convolution(call: Call) -> Value:
    """Inputs and outputs are cut apart. In groups: whole groups, or the same channels of every group."""
    source, weight = call.axes("input"), call.axes("weight")
    channels, made = source[-len(weight) + 1], weight[0]
    per_group = made_per_group = None
    groups = len(channels) // len(weight[1])  # the code may compute the argument from the batch
    if groups == 1:
        call.labels.unite(weight[1], channels, READS_FIXED)
    else:
        per_group, made_per_group = _in_groups(call, groups, channels, made)
        _align(call, weight, 1, per_group)
    _keep_kernel(call, weight)
    _with_bias(call, made)
    taps = math.prod(map(len, weight[2:]))
    geometry = Geometry(math.prod(call.shape) // len(made), taps, per_group, made_per_group)
    add_layer(call, "conv", channels, made, geometry)
    return _over_space(call, source, len(weight) - 2, made)


def _keep_kernel(call: Call, weight: Axes) -> None:
    """Positions of a kernel stay. A weight that depends on an input has them as labels of what it is computed from."""
    if call.args["weight"] in call.fed:
        call.lock(weight[2:], "they are positions of a kernel")
    weight[2:] = [none(len(axis)) for axis in weight[2:]]


def _in_groups(call: Call, groups: int, channels: Axis, made: Axis) -> tuple[Axis, Axis]:
    """Divide the channels of a grouped convolution into (group, position in the group).

    A group can be removed with all its inputs and outputs. A position can be removed from all groups at once. The inputs
    have their own positions, and so do the outputs.

    Returns:
        The positions of the inputs and of the outputs.
    """
    ins, positions = split_axis(call, channels.reshape(groups, -1))
    outs, made_positions = split_axis(call, made.reshape(groups, -1))
    call.labels.unite(ins, outs, READS_FIXED)
    call.sized("groups", None, outs)
    return positions, made_positions


def _align(call: Call, weight: Axes, dim: int, positions: Axis) -> None:
    """Give a dimension of a grouped weight the labels of positions, unless these are fixed."""
    if has_labels(positions):
        call.labels.unite(weight[dim], positions, READS_FIXED)
    else:
        weight[dim] = none(len(weight[dim]))


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _transposed_convolution(call: Call) -> Value:
    """As a convolution."""
    source, weight = call.axes("input"), call.axes("weight")
    channels, made = source[-len(weight) + 1], weight[1]
    per_group = made_per_group = None
    call.labels.unite(weight[0], channels, READS_FIXED)
    groups = call.shape[-len(weight) + 1] // len(weight[1])
    if groups > 1:
        made = call.labels.fresh(groups * len(weight[1]))
        per_group, made_per_group = _in_groups(call, groups, weight[0], made)
        _align(call, weight, 1, made_per_group)
    _keep_kernel(call, weight)
    _with_bias(call, made)
    taps, positions = math.prod(map(len, weight[2:])), math.prod(map(len, source)) // len(channels)
    add_layer(call, "conv_transpose", channels, made, Geometry(positions, taps, per_group, made_per_group))
    return _over_space(call, source, len(weight) - 2, made)


def _over_space(call: Call, source: Axes, dims: int, made: Axis) -> Axes:
    """The labels that a convolution returns. The last `dims` dimensions are space, which cannot be cut."""
    call.lock(source[len(source) - dims :], IN_SPACE)
    return [*source[: len(source) - dims - 1], made, *(none(size) for size in call.shape[len(call.shape) - dims :])]


@rule("linear")
def _linear(call: Call) -> Value:
    """Inputs and outputs are cut apart."""
    source, weight = call.axes("input"), call.axes("weight")
    call.labels.unite(weight[1], source[-1], READS_FIXED)
    _with_bias(call, weight[0])
    add_layer(call, "linear", source[-1], weight[0], Geometry(math.prod(call.shape[:-1])))
    return [*source[:-1], weight[0]]


@rule("bilinear")
def _bilinear(call: Call) -> Value:
    """Both inputs and the outputs are cut apart."""
    first, second, weight = call.axes("input1"), call.axes("input2"), call.axes("weight")
    call.labels.unite(weight[1], first[-1], READS_FIXED)
    call.labels.unite(weight[2], second[-1], READS_FIXED)
    _with_bias(call, weight[0])
    add_layer(call, "linear", merged(call, weight[1:]), weight[0], Geometry(math.prod(call.shape[:-1])))
    return [*broadcast(call, [first[:-1], second[:-1]]), weight[0]]


def _with_bias(call: Call, made: Axis) -> None:
    if isinstance(call.args.get("bias"), fx.Node):
        call.labels.unite(call.axes("bias")[0], made, call.reason)


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def _recurrence(call: Call) -> Value:
    """A unit is cut in all gates, layers and directions. An LSTM's cells and its projected units are cut apart.

    Each layer of a recurrence is one layer, which reads its input and its state.

    A unit that is zero stays zero, since its state starts at zero. All layers and directions share one hidden size.
    """
    if "hx" not in call.args or call.args.get("batch_sizes") is not None:
        return unknown(call)
    states = call.args["hx"] if isinstance(call.args["hx"], list | tuple) else [call.args["hx"]]
    weights = list(call.args["params"])
    directions = 1 + bool(call.args["bidirectional"])
    each = len(weights) // (directions * int(call.args["num_layers"]))
    projected = each % 2 == 1
    source, reaching = call.axes("input"), call.axes("input")[-1]
    axes: list[Axes] = [call.values[weight] for weight in weights]  # type: ignore[misc]
    units = axes[1][1]
    cells = axes[each - 1][1] if projected else units
    for state, sized in zip(states, (units, cells), strict=False):
        if call.editable or not _is_fresh(state):  # the state of another recurrence, or a fixed size
            given: Axis = call.values[state][-1]  # type: ignore[assignment]
            call.labels.unite(sized, given, "its initial state has this size; leave the state out, so that it is zero")
    geometry = Geometry(math.prod(call.shape_at(0)[:-1]))
    for at in range(0, len(weights), each * directions):
        gates = np.tile(cells, len(axes[at][0]) // len(cells))
        read, made = np.concatenate([reaching, units]), np.tile(gates, directions)
        add_layer(call, "linear", read, made, geometry, weights[at])
        for way in range(at, at + each * directions, each):
            into, again, *others = axes[way : way + each]
            call.labels.unite(into[1], reaching, READS_FIXED)
            call.labels.unite(again[1], units, call.reason)
            if projected:
                *others, projection = others
                call.labels.unite(projection[0], units, call.reason)
                call.labels.unite(projection[1], cells, call.reason)
                add_layer(call, "linear", cells, units, geometry, weights[way + each - 1])
            for rows in (into[0], again[0], *(bias[0] for bias in others)):
                call.labels.unite(rows, gates, call.reason)
        reaching = np.tile(units, directions)
    ends = (units, cells)[: len(states)]
    samples = [none(len(states[0].meta["val"])), none(call.shape_at(1)[1])]
    return [[*source[:-1], reaching], *([*samples, end] for end in ends)]


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def _cell(call: Call) -> Value:
    """A unit is cut in all gates and in the state, as in a recurrence."""
    states = call.args["hx"] if isinstance(call.args["hx"], list | tuple) else [call.args["hx"]]
    source, into, again = call.axes("input"), call.axes("w_ih"), call.axes("w_hh")
    units = again[1]
    gates = np.tile(units, len(into[0]) // len(units))
    for state in states:
        if call.editable or not _is_fresh(state):
            given: Axis = call.values[state][-1]  # type: ignore[assignment]
            call.labels.unite(units, given, "its state is an input of the model, or has this size in the code")
    call.labels.unite(into[1], source[-1], READS_FIXED)
    biases = [call.axes(name)[0] for name in ("b_ih", "b_hh") if isinstance(call.args.get(name), fx.Node)]
    for rows in (into[0], again[0], *biases):
        call.labels.unite(rows, gates, call.reason)
    geometry = Geometry(math.prod(map(len, source[:-1])))
    add_layer(call, "linear", source[-1], gates, geometry, call.args["w_ih"])
    add_layer(call, "linear", units, gates, geometry, call.args["w_hh"])
    made = [*source[:-1], units]
    return [made, made] if len(states) > 1 else made


def _is_fresh(node: fx.Node) -> bool:
    """Whether a tensor is created in the graph, so that its size follows from the module's attributes."""
    name = getattr(node.target, "_opname", "")
    if name in ("to", "_to_copy", "clone", "contiguous", "expand"):
        return _is_fresh(node.all_input_nodes[0])
    return node.op == "call_function" and (not node.all_input_nodes or name.startswith("new_"))


@rule("batch_norm", "instance_norm")
def _per_channel_norm(call: Call) -> Value:
    """A channel is cut with its scale, shift and statistics."""
    source = call.axes("input")
    if call.args.get("training") or call.args.get("use_input_stats"):  # not by running statistics
        reduced = source[2:] if call.name == "instance_norm" else [source[0], *source[2:]]
        call.lock(reduced, "it takes its statistics over these channels")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if isinstance(call.args.get(name), fx.Node):
            call.labels.unite(source[1], call.axes(name)[0], call.reason)
    return source


@rule("group_norm")
def _group_norm(call: Call) -> Value:
    """Whole groups are cut, or the same channels of every group. The statistics are then those of what remains."""
    # Statistics are taken over groups of channels. A group can be removed, or the same positions out of every group.
    channels = call.axes("input")[1]
    groups, positions = split_axis(call, channels.reshape(int(call.args["num_groups"]), -1))
    call.sized("num_groups", None, groups)
    if has_labels(positions):
        call.reduces("input", [1], True)
    return _per_channel_norm(call)


@rule("layer_norm", "rms_norm")
def _layer_norm(call: Call) -> Value:
    """Channels are cut. The statistics are then those of what remains."""
    source = call.axes("input")
    normalised = source[-len(call.args["normalized_shape"]) :]
    call.reduces("input", range(len(source) - len(normalised), len(source)), True)
    for place, axis in enumerate(normalised):
        call.sized("normalized_shape", place, axis)
    for name in ("weight", "bias"):
        if isinstance(call.args.get(name), fx.Node):
            for axis, own in zip(normalised, call.axes(name), strict=True):
                call.labels.unite(axis, own, call.reason)
    return source


@rule("_weight_norm")
def _weight_norm(call: Call) -> Value:
    """Channels with a separate norm are cut with it.

    v · g / ‖v‖: the norm is over all dimensions but those of g.
    """
    v, g = call.axes("v"), call.axes("g")
    for dim, (own, norm) in enumerate(zip(v, g, strict=True)):
        if len(norm) > 1:
            call.labels.unite(own, norm, call.reason)
        else:
            g[dim] = none(1)
    return list(v)


@rule("prelu")
def _prelu(call: Call) -> Value:
    """A channel is cut with its slope."""
    source, weight = call.axes("self"), call.axes("weight")
    if len(weight[0]) > 1:
        call.labels.unite(source[1], weight[0], call.reason)
    else:
        weight[0] = none(1)
    return source


@rule("embedding")
def _embedding(call: Call) -> Value:
    """The width is cut. The table keeps its rows."""
    weight = call.axes("weight")
    weight[0] = none(len(weight[0]))
    return [*call.axes("indices"), weight[1]]


@rule("embedding_bag")
def _embedding_bag(call: Call) -> Value:
    """The width is cut. The table keeps its rows, and so do the bags."""
    weight = call.axes("weight")
    weight[0] = none(len(weight[0]))
    for name in ("indices", "offsets", "per_sample_weights"):
        if isinstance(call.args.get(name), fx.Node):
            call.lock(call.axes(name), "it sums over these channels as members of a bag")
    others = [[none(size) for size in part.shape] for part in call.node.meta["val"][1:]]
    return [[none(call.shape_at(0)[0]), weight[1]], *others]


@rule(
    *(f"{kind}_pool{n}d" for kind in ("avg", "max", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)),
    *(f"max_pool{n}d_with_indices" for n in (2, 3)),
    *(f"{kind}{n}d" for kind in ("upsample_nearest", "_upsample_nearest_exact") for n in (1, 2, 3)),
    *["upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d"],
)
def _spatial(call: Call) -> Value:
    """Channels pass. Positions in space stay."""
    source = call.axes("self" if "self" in call.args else "input")
    kept = len(source) - int(re.search(r"(\d)d", call.name)[1])  # type: ignore[index] # the name gives the number of dimensions
    call.lock(source[kept:], IN_SPACE)
    made = call.node.meta["val"]
    if isinstance(made, torch.Tensor):
        return [*source[:kept], *(none(size) for size in call.shape[kept:])]
    return [[*source[:kept], *(none(size) for size in part.shape[kept:])] for part in made]  # values and indices


@rule("max_unpool2d", "max_unpool3d")
def _unpooled(call: Call) -> Value:
    """Channels are cut in both tensors alike. Positions in space stay."""
    source = broadcast(call, [call.axes("self"), call.axes("indices")])
    kept = len(source) - int(call.name[-2])
    call.lock(source[kept:], IN_SPACE)
    return [*source[:kept], *(none(size) for size in call.shape[kept:])]


@rule("affine_grid_generator")
def _affine_grid(call: Call) -> Value:
    """Coordinates stay whole."""
    samples, *coordinates = call.axes("theta")
    call.lock(coordinates, "it takes these channels as coordinates")
    return [samples, *(none(size) for size in call.shape[1:])]


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def _sampled(call: Call) -> Value:
    """Channels pass. Positions in space stay."""
    source, grid = call.axes("input"), call.axes("grid")
    call.lock([*source[2:], *grid[1:]], IN_SPACE)
    return [*broadcast(call, [source[:1], grid[:1]]), source[1], *(none(size) for size in call.shape[2:])]
