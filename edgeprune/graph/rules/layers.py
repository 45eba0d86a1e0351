"""Rules of layers: convolutions, linear layers, recurrences, normalisation, embeddings, pooling, upsampling."""

from __future__ import annotations

import math
import re

import numpy as np
import torch
from torch import fx

from edgeprune.graph.labels import Axes, Axis, none
from edgeprune.graph.rules.base import Call, Geometry, Value, add_layer, rule, unknown


@rule("conv1d", "conv2d", "conv3d")
def _convolution(call: Call) -> Value:
    source, weight = call.axes("input"), call.axes("weight")
    groups = int(call.args["groups"])
    channels, made = source[-len(weight) + 1], weight[0]
    if groups == 1:
        call.labels.unite(weight[1], channels, call.reason)
    else:
        # A convolution group can only be removed with all its input and output channels. Depthwise: groups of one.
        for ins, outs in zip(np.split(channels, groups), np.split(made, groups), strict=True):
            call.labels.tie(np.concatenate([ins, outs]).tolist(), call.reason)
        weight[1] = none(len(weight[1]))
    for dim in range(2, len(weight)):
        weight[dim] = none(len(weight[dim]))
    _with_bias(call, made)
    taps, per_group = math.prod(map(len, weight[2:])), None if groups == 1 else len(weight[1])
    add_layer(call, "conv", channels, made, Geometry(math.prod(call.shape) // len(made), taps, per_group))
    return _over_space(call, source, len(weight) - 2, made)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _transposed_convolution(call: Call) -> Value:
    source, weight = call.axes("input"), call.axes("weight")
    groups = int(call.args["groups"])
    channels, made = source[-len(weight) + 1], weight[1]
    call.labels.unite(weight[0], channels, call.reason)
    if groups > 1:
        parts = np.split(channels, groups)
        for part in parts:
            call.labels.tie(part.tolist(), call.reason)
        made = np.concatenate([part[:1].repeat(len(weight[1])) for part in parts])
        weight[1] = none(len(weight[1]))
    for dim in range(2, len(weight)):
        weight[dim] = none(len(weight[dim]))
    _with_bias(call, made)
    taps, positions = math.prod(map(len, weight[2:])), math.prod(map(len, source)) // len(channels)
    per_group = None if groups == 1 else len(channels) // groups
    add_layer(call, "conv_transpose", channels, made, Geometry(positions, taps, per_group))
    return _over_space(call, source, len(weight) - 2, made)


def _over_space(call: Call, source: Axes, dims: int, made: Axis) -> Axes:
    """The labels that a convolution returns. The last `dims` dimensions are space, which cannot be cut."""
    call.lock(source[len(source) - dims :])
    return [*source[: len(source) - dims - 1], made, *(none(size) for size in call.shape[len(call.shape) - dims :])]


@rule("linear")
def _linear(call: Call) -> Value:
    source, weight = call.axes("input"), call.axes("weight")
    call.labels.unite(weight[1], source[-1], call.reason)
    _with_bias(call, weight[0])
    add_layer(call, "linear", source[-1], weight[0], Geometry(math.prod(call.shape[:-1])))
    return [*source[:-1], weight[0]]


def _with_bias(call: Call, made: Axis) -> None:
    if isinstance(call.args.get("bias"), fx.Node):
        call.labels.unite(call.axes("bias")[0], made, call.reason)


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def _recurrence(call: Call) -> Value:
    """A unit that is zero stays zero, since its state starts at zero.

    It is cut with its rows in every gate and its column in the recurrence. All layers and directions share one hidden
    size, so the same unit is cut in each.
    """
    if "hx" not in call.args or call.args.get("batch_sizes") is not None:
        return unknown(call)
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
        return unknown(call)  # with a projection
    for state in states:
        if not _is_fresh(state):  # the state of another recurrence, whose units are tied to these, or a fixed size
            sized: Axis = call.values[state][-1]  # type: ignore[assignment]
            call.labels.unite(hidden, sized, "the initial state of the recurrence has this size")
    geometry = Geometry(math.prod(call.shape_at(0)[:-1]))
    for at in range(0, len(weights), each * directions):
        for way in range(at, at + each * directions, each):
            into, again, *biases = axes[way : way + each]
            gates = np.tile(hidden, len(into[0]) // len(hidden))
            call.labels.unite(into[1], reaching, call.reason)  # type: ignore[arg-type]
            for rows in (into[0], again[0], *(bias[0] for bias in biases)):
                call.labels.unite(rows, gates, call.reason)  # type: ignore[arg-type]
            call.labels.unite(again[1], hidden, call.reason)  # type: ignore[arg-type]
            add_layer(call, "linear", reaching, gates, geometry, weights[way])
            add_layer(call, "linear", hidden, gates, geometry, weights[way + 1])
        reaching = np.tile(hidden, directions)
    last = [none(len(states[0].meta["val"])), none(call.shape_at(1)[1]), hidden]
    return [[*source[:-1], reaching], *([last] * len(states))]


def _is_fresh(node: fx.Node) -> bool:
    """Whether a tensor is created in the graph, so that its size follows from the module's attributes."""
    name = getattr(node.target, "_opname", "")
    if name in ("to", "_to_copy", "clone", "contiguous", "expand"):
        return _is_fresh(node.all_input_nodes[0])
    return node.op == "call_function" and (not node.all_input_nodes or name.startswith("new_"))


@rule("batch_norm", "instance_norm")
def _per_channel_norm(call: Call) -> Value:
    source = call.axes("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if isinstance(call.args.get(name), fx.Node):
            call.labels.unite(source[1], call.axes(name)[0], call.reason)
    return source


@rule("group_norm")
def _group_norm(call: Call) -> Value:
    # Statistics are taken over groups of channels. Only the removal of an entire group leaves the others unchanged.
    source = call.axes("input")
    for part in np.split(source[1], int(call.args["num_groups"])):
        call.labels.tie(part.tolist(), call.reason)
    return _per_channel_norm(call)


@rule("layer_norm", "rms_norm")
def _layer_norm(call: Call) -> Value:
    source = call.axes("input")
    normalised = source[-len(call.args["normalized_shape"]) :]
    call.lock(normalised, "layer normalisation takes its statistics over these channels")
    for name in ("weight", "bias"):
        if isinstance(call.args.get(name), fx.Node):
            for axis, own in zip(normalised, call.axes(name), strict=True):
                call.labels.unite(axis, own, call.reason)
    return source


@rule("_weight_norm")
def _weight_norm(call: Call) -> Value:
    """v · g / ‖v‖: the norm is over all dimensions but those of g, so channels cut along g do not change it."""
    v, g = call.axes("v"), call.axes("g")
    for dim, (own, norm) in enumerate(zip(v, g, strict=True)):
        if len(norm) > 1:
            call.labels.unite(own, norm, call.reason)
        else:
            g[dim] = none(1)
    return list(v)


@rule("prelu")
def _prelu(call: Call) -> Value:
    source, weight = call.axes("self"), call.axes("weight")
    if len(weight[0]) > 1:
        call.labels.unite(source[1], weight[0], call.reason)
    else:
        weight[0] = none(1)
    return source


@rule("embedding")
def _embedding(call: Call) -> Value:
    weight = call.axes("weight")
    weight[0] = none(len(weight[0]))
    return [*call.axes("indices"), weight[1]]


@rule(
    *(f"{kind}_pool{n}d" for kind in ("avg", "max", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)),
    *(f"max_pool{n}d_with_indices" for n in (2, 3)),
    *(f"{kind}{n}d" for kind in ("upsample_nearest", "_upsample_nearest_exact") for n in (1, 2, 3)),
    *["upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d"],
)
def _spatial(call: Call) -> Value:
    source = call.axes("self" if "self" in call.args else "input")
    kept = len(source) - int(re.search(r"(\d)d", call.name)[1])  # type: ignore[index] # the name gives the number of dimensions
    call.lock(source[kept:])
    made = call.node.meta["val"]
    if isinstance(made, torch.Tensor):
        return [*source[:kept], *(none(size) for size in call.shape[kept:])]
    return [[*source[:kept], *(none(size) for size in part.shape[kept:])] for part in made]  # values and indices
