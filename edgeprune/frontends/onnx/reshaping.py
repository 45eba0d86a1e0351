"""A reshape as torch's functions, so that the sizes that a batch or a cut changes follow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from edgeprune.frontends.onnx import functions
from edgeprune.frontends.onnx.build import Builder, FixedBatchError
from edgeprune.frontends.onnx.graph import Value

Shape = Sequence[int]


def resolved(b: Builder, before: Shape, wanted: Shape, allow_zero: bool) -> list[int]:
    """The shape that ONNX's Reshape gives: 0 keeps a size, and -1 follows from the others."""
    sizes = [
        before[place] if size == 0 and not allow_zero and place < len(before) else size
        for place, size in enumerate(wanted)
    ]
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and known:
        sizes[sizes.index(-1)] = math.prod(before) // known
    if any(size < 0 for size in sizes):
        raise b.error(f"asks for the shape {sizes}; export the file again")
    return sizes


def shapes_after(b: Builder, x: Value, wanted: Sequence[Shape], allow_zero: bool) -> list[list[int]]:
    """The shape of the result for each batch size.

    A file for one batch size may hold a shape that fits this one only. Then the dimension that holds the samples grows.
    """
    after = [resolved(b, fake.shape, sizes, allow_zero) for fake, sizes in zip(x.fakes, wanted, strict=True)]
    if math.prod(after[0]) != x.fakes[0].numel():
        raise b.error(f"makes the shape {after[0]} of {list(x.shape)}; export the file again")
    for place, fake in enumerate(x.fakes[1:], 1):
        open_dim = list(wanted[0]).index(-1) if -1 in wanted[0] else None
        follows = wanted[place] != wanted[0] or fake.shape == x.fakes[0].shape
        if not follows and (open_dim is not None or math.prod(after[place]) != fake.numel()):
            after[place] = _grown(b, x.shape, fake.shape, after[0], open_dim)
    return after


def _grown(b: Builder, before: Shape, larger: Shape, after: Shape, open_dim: int | None) -> list[int]:
    """`after` for a larger batch.

    The samples have a place in the order of the elements: so many elements come before them. A dimension of `after` may begin
    there, or end there. One that has the size of the batch is taken first, then the one that the file leaves open. The last
    dimension is taken last, since it holds channels.
    """
    changed = [dim for dim, (a, c) in enumerate(zip(before, larger, strict=True)) if a != c]
    if len(changed) != 1:
        raise FixedBatchError(f"{b.node} fixes the batch size")
    samples = b.batch.shape[b.batch_dim]
    ahead = math.prod(before[: changed[0]])
    begins = [dim for dim in range(len(after)) if math.prod(after[:dim]) == ahead]
    inner = [dim for dim in range(len(after)) if math.prod(after[:dim]) == ahead * before[changed[0]]]
    ends = [dim for dim in range(len(after)) if math.prod(after[: dim + 1]) == ahead]
    exact = [dim for dim in (*begins, *inner) if after[dim] == samples]
    left_open = [dim for dim in (*begins, *inner, *ends) if dim == open_dim][:1]
    last = len(after) - 1
    others = [*left_open, *reversed(begins), *ends]
    fitting = [*(left_open if open_dim in exact else exact), *(dim for dim in others if dim != last), *others]
    if not fitting:
        raise FixedBatchError(f"{b.node} fixes the batch size")
    factor = larger[changed[0]] // before[changed[0]]
    return [size * factor if dim == fitting[0] else size for dim, size in enumerate(after)]


def reshape(b: Builder, x: Value, after: Sequence[Shape]) -> Value:
    """The steps of a reshape. Each merges or splits dimensions, if that is all that the reshape does."""
    if x.constant is not None:
        return _constant(b, x, after)
    parts = list(_parts(x.fakes[-1].shape, after[-1]))
    if any(len(before) > 1 and len(then) > 1 for before, then in parts):
        return _whole(b, x, after)
    follows = _following(after)
    dim = 0
    for before, then in parts:
        if len(before) > 1:
            x = b.call(torch.flatten, x, dim, dim + len(before) - 1)
        elif len(then) > 1:
            free = next(
                (place for place in range(len(then)) if dim + place in follows), 0
            )  # the size that is not given
            x = b.call(torch.unflatten, x, dim, tuple(-1 if place == free else size for place, size in enumerate(then)))
        dim += len(then)
    return x


def _parts(before: Shape, after: Shape) -> Iterator[tuple[list[int], list[int]]]:
    """Cut both shapes into the shortest parts of equally many elements. Sizes of one join the part before them."""
    i = j = 0
    while i < len(before) or j < len(after):
        ours, theirs = list(before[i : i + 1]), list(after[j : j + 1])
        i, j = i + len(ours), j + len(theirs)
        while math.prod(ours) != math.prod(theirs):
            if math.prod(ours) < math.prod(theirs):
                ours.append(before[i])
                i += 1
            else:
                theirs.append(after[j])
                j += 1
        rest_before, rest_after = before[i:], after[j:]
        if all(size == 1 for size in rest_before) and not rest_after:
            ours, i = [*ours, *rest_before], len(before)
        if all(size == 1 for size in rest_after) and not rest_before:
            theirs, j = [*theirs, *rest_after], len(after)
        yield ours, theirs


def _whole(b: Builder, x: Value, after: Sequence[Shape]) -> Value:
    """One call with all sizes; -1 is the size that the batch changes."""
    follows = _following(after)
    if len(follows) > 1:
        raise FixedBatchError(f"{b.node} uses the batch size twice")
    sizes = [-1 if dim in follows else size for dim, size in enumerate(after[0])]
    return b.call(functions.reshaped, x, sizes)


def _following(after: Sequence[Shape]) -> list[int]:
    """The dimensions whose size the batch changes."""
    return [dim for dim, sizes in enumerate(zip(*after, strict=True)) if len(set(sizes)) > 1]


def _constant(b: Builder, x: Value, after: Sequence[Shape]) -> Value:
    if all(list(sizes) == list(after[0]) for sizes in after):
        return b.call(functions.reshaped, x, list(after[0]))
    return _whole(b, x, after)
