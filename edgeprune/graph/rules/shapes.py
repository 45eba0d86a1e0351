"""Rules of operators that move elements: concatenation, splits, indexing, padding, reshapes, permutations, repeats."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import fx

from edgeprune.graph.labels import NONE, Axes, Axis, has_labels, none
from edgeprune.graph.rules.base import Call, Value, rule, unknown

IN_SPACE = "it uses these channels as positions in space; permute the channels to dimension 1"


@rule("cat", "concat", "concatenate")
def _cat(call: Call) -> Value:
    """Channels keep their places. Each is cut in its own source."""
    return _joined(call, call.dim("dim", len(call.shape)))


@rule("hstack", "column_stack", "vstack")
def _side_by_side(call: Call) -> Value:
    """Channels keep their places. Each is cut in its own source."""
    if any(len(call.values[tensor]) < 2 for tensor in call.args["tensors"]):  # each treats vectors differently
        return unknown(call)
    return _joined(call, 0 if call.name == "vstack" else 1)


def _joined(call: Call, dim: int) -> Axes:
    parts: list[Axes] = [call.values[tensor] for tensor in call.args["tensors"]]  # type: ignore[misc]
    result = list(parts[0])
    for part in parts[1:]:
        for other in range(len(result)):
            if other != dim:
                result[other] = call.labels.unite(result[other], part[other], call.reason)
    result[dim] = np.concatenate([part[dim] for part in parts])
    return result


@rule("stack")
def _stack(call: Call) -> Value:
    """The tensors are cut alike. The new dimension stays whole."""
    parts: list[Axes] = [call.values[tensor] for tensor in call.args["tensors"]]  # type: ignore[misc]
    result = list(parts[0])
    for part in parts[1:]:
        result = [call.labels.unite(mine, other, call.reason) for mine, other in zip(result, part, strict=True)]
    result.insert(call.dim("dim", len(result) + 1), none(len(parts)))
    return result


@rule("chunk", "split", "split_with_sizes", "unsafe_chunk", "unsafe_split", "tensor_split")
def _split(call: Call) -> Value:
    """Parts of equal size are cut alike. Other parts are cut each on its own, if the network is cut as its graph."""
    source = call.axes("self")
    dim = call.dim("dim", len(source))
    sizes = [value.shape[dim] for value in call.node.meta["val"]]
    starts = np.cumsum([0, *sizes])
    results: list[Axes] = []
    for start, size in zip(starts.tolist(), sizes, strict=False):
        part = list(source)
        part[dim] = _window(call, source[dim], start, size)
        if call.editable:  # every split is spelled with sizes there
            call.sized("split_sizes", len(results), part[dim])
        results.append(part)
    return results


@rule("slice", "narrow")
def _slice(call: Call) -> Value:
    """As a split. A step between channels locks them."""
    source = call.axes("self")
    dim = call.dim("dim", len(source))
    size = len(source[dim])
    if any(isinstance(call.args.get(name), fx.Node) for name in ("start", "end", "length")):
        call.lock([source[dim]], "how many it takes is computed at run time")
        return [*source[:dim], none(call.shape[dim]), *source[dim + 1 :]]
    if "length" in call.args:
        start, step = call.args["start"] % size, 1
        stop = start + call.args["length"]
    else:
        start, stop, step = slice(call.args["start"], call.args["end"], call.args["step"]).indices(size)
    result = list(source)
    if step == 1:
        result[dim] = _window(call, source[dim], start, stop - start)
        if call.editable and (start, stop) != (0, size):
            call.sized("start", None, source[dim][:start])
            if "length" in call.args:
                call.sized("length", None, result[dim])
            elif stop < size:  # a slice to the end stays one
                call.sized("end", None, source[dim][:stop])
    else:
        call.labels.lock(source[dim].tolist(), "it takes every n-th channel; take the first ones instead")
        result[dim] = source[dim][start:stop:step]
    return result


def _window(call: Call, axis: Axis, start: int, size: int) -> Axis:
    """A contiguous part of an axis. Equal parts that tile the axis are tied, so that `chunk` stays right after a cut."""
    if size == len(axis):
        return axis
    if has_labels(axis) and not call.editable:
        if size > 1 and len(axis) % size == 0 and start % size == 0:
            for ties in axis.reshape(-1, size).T:
                call.labels.tie(ties.tolist(), call.reason)
        else:
            call.labels.lock(
                axis.tolist(),
                f"it takes channels {start} to {start + size - 1} by number; use chunk, with parts of equal size",
            )
    if call.editable and size == 1:  # it may be repeated, as along other channels
        call.lock([axis[start : start + 1]], "one channel is taken by its number")
    return axis[start : start + size]


@rule("select", "unbind")
def _select(call: Call) -> Value:
    """The taken channel stays. In the module's own code, its neighbours stay, too."""
    source = call.axes("self")
    dim = call.dim("dim", len(source))
    taken = source[dim]
    if call.editable and call.name == "select":
        index = int(call.args["index"]) % len(taken)
        call.sized("index", None, taken[:index])
        taken = taken[index : index + 1]
    call.labels.lock(taken.tolist(), "it takes a channel by its number; use chunk, with parts of equal size")
    part = source[:dim] + source[dim + 1 :]
    return part if call.name == "select" else [part] * len(source[dim])


@rule("pad", "constant_pad_nd")
def _pad(call: Call) -> Value:
    """Added channels stay, and so do channels that are later aligned with them. Reflected or cropped channels are locked."""
    # The model's code fixes the number of added constants. `unite` locks the channels that are later aligned with them.
    result = list(call.axes("self"))
    amounts: Sequence[int] = call.args["pad"]
    constant = call.args.get("mode", "constant") == "constant"
    for i in range(len(amounts) // 2):
        before, after = amounts[2 * i], amounts[2 * i + 1]
        dim = len(result) - 1 - i
        if (before or after) and has_labels(result[dim]) and (not constant or before < 0 or after < 0):
            call.labels.lock(
                result[dim].tolist(), "it copies or crops channels by number; pad with zeros, or in space only"
            )
            result[dim] = none(call.shape[dim])
        else:
            result[dim] = np.concatenate([none(max(before, 0)), result[dim], none(max(after, 0))])
            if before < 0 or after < 0:
                result[dim] = none(call.shape[dim])
    return result


@rule("flatten", "reshape", "reshape_as", "view", "view_as", "_unsafe_view", "unflatten", "squeeze", "unsqueeze")
def _reshape(call: Call) -> Value:
    """Channels that become two dimensions are cut along each: by heads, and by positions in every head."""
    source = [axis for axis in call.axes("self") if len(axis) != 1]
    result = [none(size) for size in call.shape]
    dims = [dim for dim, size in enumerate(call.shape) if size != 1]
    for ins, outs in _blocks([len(axis) for axis in source], [call.shape[dim] for dim in dims]):
        axes = _regroup(call, [source[i] for i in ins], [call.shape[dims[o]] for o in outs])
        for o, axis in zip(outs, axes, strict=True):
            result[dims[o]] = axis
    argument = {"reshape": "shape", "unflatten": "sizes"}.get(call.name) if call.editable else None
    if argument is not None:
        first = call.dim("dim", len(call.axes("self"))) if call.name == "unflatten" else 0
        for place in range(len(call.args[argument])):
            call.sized(argument, place, result[first + place])
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
    """The labels of one run of a reshape: merged, split, both or unchanged."""
    if len(axes) == len(sizes) == 1:
        return axes
    return split_axis(call, merged(call, axes).reshape(sizes))


def merged(call: Call, axes: list[Axis]) -> Axis:
    """The labels of dimensions merged into one. Where several hold channels, the labels are products."""
    labelled = [axis for axis in axes if has_labels(axis)]
    if not labelled:
        return none(math.prod(map(len, axes)))
    if any((axis == NONE).any() for axis in labelled):
        call.lock(labelled, "it merges channels with others that cannot be cut")
        return none(math.prod(map(len, axes)))
    grid = np.meshgrid(*axes, indexing="ij")
    own: list[Axis] = [part.reshape(-1) for part, axis in zip(grid, axes, strict=True) if has_labels(axis)]
    if len(own) == 1:
        return own[0]
    made = call.labels.fresh(len(own[0]))
    for label, factors in zip(made.tolist(), zip(*(part.tolist() for part in own), strict=True), strict=True):
        call.labels.divide(label, factors)
    return made


def split_axis(call: Call, grid: np.ndarray) -> list[Axis]:
    """Split a grid of labels into the labels of its dimensions.

    If labels differ along one dimension only, that dimension takes them. If they are products of two axes already, one of
    these is split further. Otherwise each dimension gets new labels, and the labels of the grid become their products.
    """
    roots = call.labels.roots(grid.reshape(-1)).reshape(grid.shape)
    shape = grid.shape
    for dim in range(grid.ndim):
        rows = np.moveaxis(roots, dim, 0).reshape(shape[dim], -1)
        if (rows == rows[:, :1]).all():
            return [rows[:, 0].copy() if d == dim else none(size) for d, size in enumerate(shape)]
    known = call.labels.product(grid.reshape(-1)) if grid.ndim == 2 else None
    if known is not None and len(known[0]) % shape[0] == 0:
        first, rest = split_axis(call, known[0].reshape(shape[0], -1))
        return [first, merged(call, [rest, known[1]])]
    if known is not None and shape[0] % len(known[0]) == 0:
        rest, last = split_axis(call, known[1].reshape(-1, shape[1]))
        return [merged(call, [known[0], rest]), last]
    parts = [call.labels.fresh(size) for size in shape]
    for place, label in np.ndenumerate(grid):
        factors = tuple(int(part[i]) for part, i in zip(parts, place, strict=True))
        if label == NONE:
            call.labels.lock(factors, call.reason)
        else:
            call.labels.divide(int(label), factors)
    return parts


@rule("permute")
def _permute(call: Call) -> Value:
    """Channels pass."""
    source = call.axes("self")
    return [source[dim % len(source)] for dim in call.args["dims"]]


@rule("transpose", "swapaxes", "swapdims", "t", "mT")
def _transpose(call: Call) -> Value:
    """Channels pass."""
    result = list(call.axes("self"))
    first, second = ("axis0", "axis1") if "axis0" in call.args else ("dim0", "dim1")
    a, b = (call.dim(first, len(result)), call.dim(second, len(result))) if first in call.args else (-2, -1)
    result[a], result[b] = result[b], result[a]
    return result


@rule("movedim", "moveaxis")
def _movedim(call: Call) -> Value:
    """Channels pass."""
    source = call.axes("self")
    given, wanted = (
        [dim % len(source) for dim in (dims if isinstance(dims, list | tuple) else [dims])]
        for dims in (call.args["source"], call.args["destination"])
    )
    rest = iter(dim for dim in range(len(source)) if dim not in given)
    return [source[given[wanted.index(dim)] if dim in wanted else next(rest)] for dim in range(len(source))]


@rule("repeat", "tile")
def _repeat(call: Call) -> Value:
    """All copies of a channel are cut with it."""
    source = [none(1)] * (len(call.shape) - len(call.axes("self"))) + call.axes("self")
    if call.editable and call.name == "repeat":
        return [
            _copies(call, "repeats", dim) if len(axis) == 1 else np.tile(axis, call.shape[dim] // len(axis))
            for dim, axis in enumerate(source)
        ]
    return [np.tile(axis, size // len(axis)) for axis, size in zip(source, call.shape, strict=True)]


@rule("repeat_interleave")
def _repeat_interleave(call: Call) -> Value:
    """All copies of a channel are cut with it."""
    if not isinstance(call.args.get("repeats"), int) or call.args.get("dim") is None:
        return unknown(call)
    source = list(call.axes("self"))
    dim = call.dim("dim", len(source))
    source[dim] = np.repeat(source[dim], call.args["repeats"])
    return source


@rule("expand", "expand_as")
def _expand(call: Call) -> Value:
    """All copies of a channel are cut with it. A new dimension stays whole, or follows the other tensor."""
    source = call.axes("self")
    source = [none(1)] * (len(call.shape) - len(source)) + source
    other = call.axes("other") if call.name == "expand_as" else None
    result = []
    for dim, axis in enumerate(source):
        if len(axis) == call.shape[dim]:
            result.append(axis)
        elif other is not None:
            result.append(other[dim])
        else:
            result.append(_copies(call, "size", dim))
    return result


def _copies(call: Call, argument: str, dim: int) -> Axis:
    """The labels of equal entries along a dimension of the result. Any of them can be removed if their number can change."""
    size = call.shape[dim]
    if not call.editable or size == 1 or isinstance(call.args[argument][dim], fx.Node):
        return none(size)
    made = call.labels.fresh(size)
    call.sized(argument, dim, made)
    return made


@rule("ones", "zeros", "full", "new_empty", "new_full", "new_ones", "new_zeros")
def _constant(call: Call) -> Value:
    """Its sizes follow the channels that it is aligned with, if the network is cut as its graph."""
    return [_copies(call, "size", dim) for dim in range(len(call.shape))]


@rule("pixel_shuffle")
def _pixel_shuffle(call: Call) -> Value:
    """The r² channels that become the r × r pixels of one channel are cut together."""
    *batch, channels, rows, columns = call.axes("self")
    call.lock([rows, columns], IN_SPACE)
    made = channels.reshape(-1, int(call.args["upscale_factor"]) ** 2)
    for ties in made:
        call.labels.tie(ties.tolist(), call.reason)
    return [*batch, made[:, 0].copy(), *(none(size) for size in call.shape[-2:])]


@rule("pixel_unshuffle")
def _pixel_unshuffle(call: Call) -> Value:
    """A channel is cut with all channels that its pixels become."""
    *batch, channels, rows, columns = call.axes("self")
    call.lock([rows, columns], IN_SPACE)
    made = np.repeat(channels, int(call.args["downscale_factor"]) ** 2)
    return [*batch, made, *(none(size) for size in call.shape[-2:])]


@rule("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(call: Call) -> Value:
    """The number of groups stays. The same channels are cut in each group."""
    source = list(call.axes("self" if "self" in call.args else "input"))
    groups, own = split_axis(call, source[1].reshape(int(call.args["groups"]), -1))
    call.lock([groups], "its number of groups is fixed")
    source[1] = merged(call, [own, groups])
    return source


@rule("im2col")
def _im2col(call: Call) -> Value:
    """A channel is cut with all rows that its windows become."""
    *batch, channels, rows, columns = call.axes("self")
    call.lock([rows, columns], IN_SPACE)
    return [*batch, np.repeat(channels, math.prod(call.args["kernel_size"])), none(call.shape[-1])]


@rule("col2im")
def _col2im(call: Call) -> Value:
    """The rows that become the windows of one channel are cut together."""
    *batch, rows, places = call.axes("self")
    call.lock([places], IN_SPACE)
    windows = rows.reshape(-1, math.prod(call.args["kernel_size"]))
    for ties in windows:
        call.labels.tie(ties.tolist(), call.reason)
    return [*batch, windows[:, 0].copy(), *(none(size) for size in call.shape[-2:])]


@rule("glu")
def _glu(call: Call) -> Value:
    """A channel is cut with its gate."""
    source = list(call.axes("self"))
    dim = call.dim("dim", len(source))
    halves = source[dim].reshape(2, -1)
    source[dim] = call.labels.unite(halves[0], halves[1], call.reason)
    return source
