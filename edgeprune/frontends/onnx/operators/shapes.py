"""Operators that move elements: shapes, slices, joins."""

from __future__ import annotations

import math

import numpy as np
import torch

from edgeprune.frontends.onnx import functions
from edgeprune.frontends.onnx.build import Builder, FixedBatchError
from edgeprune.frontends.onnx.file import Node, dtype_of, tensor_of
from edgeprune.frontends.onnx.graph import Value
from edgeprune.frontends.onnx.names import parameter_path
from edgeprune.frontends.onnx.operators.layers import weighted
from edgeprune.frontends.onnx.operators.table import axes_of, axis_of, numbers_of, operator, require_whole, text
from edgeprune.frontends.onnx.reshaping import reshape, shapes_after
from edgeprune.frontends.onnx.transposes import permuted, source

END = 2**31 - 1  # a slice to this index takes all


@operator("Constant")
def constant(b: Builder, node: Node) -> Value:
    """A constant of any form. Some exporters write weights so, and give them the names of parameters."""
    given, name = node.attributes, node.outputs[0]
    if "value" in given:
        tensor = tensor_of(b.graph.path, given["value"], str(node))
        return b.constant(tensor, name if tensor.numel() > 1 and parameter_path(name) else "")
    for name, dtype in (("value_float", torch.float32), ("value_floats", torch.float32), ("value_int", torch.int64),
                        ("value_ints", torch.int64)):  # fmt: skip
        if name in given:
            return b.constant(torch.tensor(given[name], dtype=dtype))
    if "sparse_value" in given:
        raise b.error("is a sparse tensor; export it as a dense one")
    raise b.error("holds no numbers; edgeprune takes networks of numbers")


@operator("ConstantOfShape")
def constant_of_shape(b: Builder, node: Node, shape: Value) -> Value:
    """One number everywhere."""
    value = torch.zeros(1)
    if "value" in node.attributes:
        value = tensor_of(b.graph.path, node.attributes["value"], str(node))
    return b.per_batch(functions.expanded, [(value, sizes) for sizes in b.ints(shape)])


@operator("Shape")
def shape_of(b: Builder, node: Node, x: Value) -> Value:
    """The shape, which is known."""
    start, end = node.attributes.get("start", 0), node.attributes.get("end")
    return b.constants([torch.tensor(list(fake.shape)[start:end]) for fake in x.fakes])


@operator("Size")
def size_of(b: Builder, node: Node, x: Value) -> Value:
    """The number of elements, which is known."""
    return b.constants([torch.tensor(fake.numel()) for fake in x.fakes])


@operator("Reshape")
def reshape_to(b: Builder, node: Node, x: Value, shape: Value) -> Value:
    """See `reshaping`."""
    return reshape(b, x, shapes_after(b, x, b.ints(shape), bool(node.attributes.get("allowzero", 0))))


@operator("Flatten")
def flatten(b: Builder, node: Node, x: Value) -> Value:
    """To two dimensions."""
    axis = int(node.attributes.get("axis", 1))
    axis += x.rank if axis < 0 else 0
    return reshape(b, x, [[math.prod(f.shape[:axis]), math.prod(f.shape[axis:])] for f in x.fakes])


@operator("Transpose")
def transpose(b: Builder, node: Node, x: Value) -> Value:
    """See `transposes`."""
    return permuted(b, x, node.attributes.get("perm") or list(reversed(range(x.rank))))


@operator("Squeeze")
def squeeze(b: Builder, node: Node, x: Value, axes: Value | None = None) -> Value:
    """Remove dimensions of one."""
    given = axes_of(b, node, axes)
    dims = [d for d, size in enumerate(x.shape) if size == 1] if given is None else [d % x.rank for d in given]
    if any(fake.shape[dim] != 1 for fake in x.fakes for dim in dims):
        raise FixedBatchError(f"{node} removes the dimension of the batch")
    for dim in sorted(dims, reverse=True):
        x = b.call(torch.squeeze, x, dim)
    return x


@operator("Unsqueeze")
def unsqueeze(b: Builder, node: Node, x: Value, axes: Value | None = None) -> Value:
    """Add dimensions of one."""
    given = axes_of(b, node, axes) or []
    for dim in sorted(dim % (x.rank + len(given)) for dim in given):
        x = b.call(torch.unsqueeze, x, dim)
    return x


@operator("Concat")
def concat(b: Builder, node: Node, *xs: Value) -> Value:
    """Channels last become channels first."""
    axis = axis_of(node, xs[0], 0)
    found = [source(x) for x in xs]
    if all(pair is not None and pair[1] == found[0][1] for pair in found):  # type: ignore[index]
        before, order = [pair[0] for pair in found if pair], found[0][1]  # type: ignore[index]
        return permuted(b, b.call(torch.cat, before, order[axis]), order)
    if len(xs) == 1:
        return xs[0]
    if axis != 0 and len({x.fakes[-1].shape[0] for x in xs}) > 1:  # one does not depend on the samples
        return b.call(functions.concatenated, list(xs), axis)
    return b.call(torch.cat, list(xs), axis)


@operator("Split")
def split(b: Builder, node: Node, x: Value, sizes: Value | None = None) -> list[Value]:
    """Equal parts follow a cut of the channels."""
    axis = axis_of(node, x, 0)
    given = b.fixed(sizes) if sizes is not None else node.attributes.get("split")
    count = len(node.outputs)
    whole = math.ceil(x.shape[axis] / count)
    given = list(given) if given else [min(whole, x.shape[axis] - place * whole) for place in range(count)]
    if len(set(given)) == 1 and given[0] * count == x.shape[axis]:
        return b.calls(torch.chunk, x, count, axis)
    return b.calls(torch.split, x, given, axis)


@operator("Slice")
def slice_of(
    b: Builder, node: Node, x: Value, starts: Value | None = None, ends: Value | None = None,
    axes: Value | None = None, steps: Value | None = None,
) -> Value:  # fmt: skip
    """One call for each dimension. Before opset 10 the numbers are attributes."""
    first, last = b.ints(numbers_of(b, node, starts, "starts")), b.ints(numbers_of(b, node, ends, "ends"))
    dims = axes_of(b, node, axes) or list(range(len(first[0])))
    stride = b.fixed(steps) if steps is not None else [1] * len(dims)
    for place, (dim, step) in enumerate(zip(dims, stride, strict=True)):
        begin, end = {each[place] for each in first}, {each[place] for each in last}
        dim = dim % x.rank
        size = x.shape[dim]
        if len(end) > 1 and all(
            e >= f.shape[dim] for e, f in zip((each[place] for each in last), x.fakes, strict=True)
        ):
            end = {END}  # to the end, whatever the batch
        if len(begin) > 1 or len(end) > 1:
            raise FixedBatchError(f"{node} uses the batch size")
        start, stop = begin.pop(), end.pop()
        if (step > 0 and start <= -size) or start == 0:
            start = 0 if step > 0 else start
        x = _sliced(b, x, dim, (start, stop, step))
    return x


def _sliced(b: Builder, x: Value, dim: int, ends: tuple[int, int, int]) -> Value:
    start, stop, step = ends
    size = x.shape[dim]
    if step > 0:
        first = None if start == 0 else start
        last = None if stop >= size else stop
        return x if (first, last, step) == (None, None, 1) else b.call(functions.sliced, x, dim, first, last, step)
    first = None if start >= size - 1 or start == -1 else start
    last = None if stop < -size else stop
    return b.call(functions.sliced, x, dim, first, last, step)


@operator("Gather")
def gather(b: Builder, node: Node, x: Value, indices: Value) -> Value:
    """An embedding, a selection, or slices."""
    axis = axis_of(node, x, 0)
    table = x.constant is not None and x.is_real and x.rank == 2 and axis == 0
    if table and indices.constant is None:
        return b.layer(_embedding, indices, [x])
    if indices.constant is not None and indices.rank == 0:
        return b.call(functions.selected, x, axis, int(b.scalar(indices)))
    return b.call(functions.gathered, x, axis, indices)


def _embedding(weight: torch.nn.Parameter) -> torch.nn.Module:
    return weighted(torch.nn.Embedding(weight.shape[0], weight.shape[1], device="meta"), weight=weight)


@operator("GatherElements")
def gather_elements(b: Builder, node: Node, x: Value, indices: Value) -> Value:
    """See ONNX."""
    axis = axis_of(node, x, 0)
    return b.call(torch.gather, x, axis, _from_start(b, indices, x.shape[axis]))


def _from_start(b: Builder, indices: Value, size: int) -> Value:
    """Indices without negative ones, which count from the end."""
    if indices.constant is not None and all(bool((each >= 0).all()) for each in indices.constant):
        return indices
    return b.call(functions.from_start, indices, size)


@operator("GatherND")
def gather_nd(b: Builder, node: Node, x: Value, indices: Value) -> Value:
    """See ONNX."""
    return b.call(functions.gathered_nd, x, indices, int(node.attributes.get("batch_dims", 0)))


@operator("ScatterElements", "Scatter")
def scatter_elements(b: Builder, node: Node, x: Value, indices: Value, updates: Value) -> Value:
    """See ONNX."""
    axis, how = axis_of(node, x, 0), text(node, "reduction", "none")
    indices = _from_start(b, indices, x.shape[axis])
    if how == "none":
        return b.call(torch.scatter, x, axis, indices, updates)
    names = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    return b.call(torch.scatter_reduce, x, axis, indices, updates, names[how])


@operator("ScatterND")
def scatter_nd(b: Builder, node: Node, x: Value, indices: Value, updates: Value) -> Value:
    """See ONNX."""
    how = text(node, "reduction", "none")
    if how not in ("none", "add"):
        raise b.error("reduces, which has no converter; export the network with other operators")
    return b.call(functions.scattered_nd, x, indices, updates, how)


@operator("Expand")
def expand(b: Builder, node: Node, x: Value, shape: Value) -> Value:
    """Broadcast; a size that the batch changes follows it."""
    wanted = b.ints(shape)
    after = [list(np.broadcast_shapes(x.shape, tuple(wanted[0])))]
    try:
        after += [list(np.broadcast_shapes(f.shape, tuple(s))) for f, s in zip(x.fakes[1:], wanted[1:], strict=True)]
    except ValueError as error:
        raise FixedBatchError(f"{node} fixes the batch size") from error
    if x.constant is not None:
        return b.per_batch(
            functions.expanded, [(c, sizes) for c, sizes in zip(x.constant, after, strict=True)], x.weight
        )
    ahead = len(after[0]) - x.rank
    kept = [dim >= ahead and x.shape[dim - ahead] == after[0][dim] and all(
        fake.shape[dim - ahead] == sizes[dim] for fake, sizes in zip(x.fakes, after, strict=True)
    ) for dim in range(len(after[0]))]  # fmt: skip
    if any(len({sizes[dim] for sizes in after}) > 1 for dim in range(len(after[0])) if not kept[dim]):
        raise FixedBatchError(f"{node} uses the batch size")
    return (
        x if all(kept) else b.call(functions.expanded, x, [-1 if k else s for k, s in zip(kept, after[0], strict=True)])
    )


@operator("Tile")
def tile(b: Builder, node: Node, x: Value, repeats: Value) -> Value:
    """See ONNX."""
    wanted = b.ints(repeats)
    if x.constant is not None:
        return b.per_batch(
            torch.tile, [(c, tuple(times)) for c, times in zip(x.constant, wanted, strict=True)], x.weight
        )
    return b.call(torch.tile, x, tuple(b.fixed(repeats)))


@operator("Pad")
def pad(
    b: Builder, node: Node, x: Value, pads: Value | None = None, value: Value | None = None, axes: Value | None = None
) -> Value:
    """Constant, reflected or repeated borders. Channels last become channels first. Before opset 11 sizes are attributes."""
    sizes, mode = b.fixed(numbers_of(b, node, pads, "pads")), text(node, "mode", "constant")
    dims = [dim % x.rank for dim in b.fixed(axes)] if axes is not None else list(range(x.rank))
    ends = {dim: (sizes[place], sizes[place + len(dims)]) for place, dim in enumerate(dims)}
    number = float(b.scalar(value) if value is not None else node.attributes.get("value", 0.0))
    number = number if mode == "constant" else 0.0
    names = {"constant": "constant", "edge": "replicate", "reflect": "reflect", "wrap": "circular"}
    if mode not in names:
        raise b.error(f"pads by {mode!r}, which has no converter")
    before = source(x)
    if before is not None:
        x, ends = before[0], {before[1][dim]: pair for dim, pair in ends.items()}
    flat = [n for dim in reversed(range(x.rank)) for n in ends.get(dim, (0, 0))]
    while flat and not any(flat[-2:]):
        del flat[-2:]
    found = b.call(functions.padded, x, flat, names[mode], number) if flat else x
    return found if before is None else permuted(b, found, before[1])


@operator("Range")
def range_of(b: Builder, node: Node, start: Value, limit: Value, delta: Value) -> Value:
    """Numbers in equal steps."""
    first, last, step = b.scalar(start), b.scalar(limit), b.scalar(delta)
    return b.per_batch(torch.arange, [(first, last, step)], dtype=start.fakes[0].dtype)


@operator("Trilu")
def trilu(b: Builder, node: Node, x: Value, k: Value | None = None) -> Value:
    """See ONNX."""
    return b.call(
        torch.triu if node.attributes.get("upper", 1) else torch.tril, x, 0 if k is None else int(b.scalar(k))
    )


@operator("OneHot")
def one_hot(b: Builder, node: Node, indices: Value, depth: Value, values: Value) -> Value:
    """See ONNX."""
    if values.constant is None:
        raise b.error("needs values that do not depend on the inputs")
    off, on = values.constant[0].tolist()
    return b.call(functions.one_hot, indices, int(b.scalar(depth)), off, on, int(node.attributes.get("axis", -1)))


@operator("NonZero")
def non_zero(b: Builder, node: Node, x: Value) -> Value:
    """Of a constant only: the shape depends on the values."""
    if x.constant is None:
        raise b.error("makes a shape that depends on the values of the inputs; export the network without it")
    return b.constants([tensor.nonzero().T.contiguous() for tensor in x.constant])


@operator("Compress")
def compress(b: Builder, node: Node, x: Value, condition: Value) -> Value:
    """Slices where a constant is true."""
    if condition.constant is None:
        raise b.error("makes a shape that depends on the values of the inputs; export the network without it")
    places = b.constant(condition.constant[0].nonzero().flatten())
    if "axis" not in node.attributes:
        return b.call(functions.gathered, b.call(torch.flatten, x), 0, places)
    return b.call(functions.gathered, x, axis_of(node, x, 0), places)


@operator("ReverseSequence")
def reverse_sequence(b: Builder, node: Node, x: Value, lengths: Value) -> Value:
    """Whole sequences only."""
    axis = int(node.attributes.get("time_axis", 0))
    require_whole(b, lengths, [fake.shape[axis] for fake in x.fakes])
    return b.call(torch.flip, x, (axis,))


@operator("EyeLike")
def eye_like(b: Builder, node: Node, x: Value) -> Value:
    """The identity."""
    dtype = (
        dtype_of(b.graph.path, int(node.attributes["dtype"]), str(node))
        if "dtype" in node.attributes
        else x.fakes[0].dtype
    )
    offset = int(node.attributes.get("k", 0))
    return b.per_batch(functions.eye, [(*fake.shape, offset) for fake in x.fakes], dtype=dtype)


@operator("DepthToSpace")
def depth_to_space(b: Builder, node: Node, x: Value) -> Value:
    """torch's pixel shuffle, or the order of TensorFlow."""
    block = int(node.attributes["blocksize"])
    if text(node, "mode", "DCR") == "CRD":
        return b.call(torch.pixel_shuffle, x, block)
    return b.call(functions.depth_to_space, x, block)


@operator("SpaceToDepth")
def space_to_depth(b: Builder, node: Node, x: Value) -> Value:
    """The order of TensorFlow, or torch's pixel unshuffle."""
    block = int(node.attributes["blocksize"])
    if text(node, "mode", "DCR") == "CRD":
        return b.call(torch.pixel_unshuffle, x, block)
    return b.call(functions.space_to_depth, x, block)
