"""Operators that reduce or order a dimension."""

from __future__ import annotations

import operator as arithmetic
from functools import partial

import torch
import torch.nn.functional as F

from edgeprune.frontends.onnx import functions
from edgeprune.frontends.onnx.build import Builder
from edgeprune.frontends.onnx.file import Node
from edgeprune.frontends.onnx.graph import Value
from edgeprune.frontends.onnx.operators.table import OPERATORS, axes_of, axis_of, numbers_of, operator
from edgeprune.frontends.onnx.transposes import permuted, source

REDUCTIONS = {
    "ReduceL1": "l1", "ReduceL2": "l2", "ReduceLogSum": "log", "ReduceLogSumExp": "logsumexp", "ReduceMax": "max",
    "ReduceMean": "mean", "ReduceMin": "min", "ReduceProd": "prod", "ReduceSum": "sum", "ReduceSumSquare": "square",
}  # fmt: skip


def _reduce(how: str, b: Builder, node: Node, x: Value, axes: Value | None = None) -> Value:
    """Channels last become channels first."""
    given, keep = axes_of(b, node, axes), bool(node.attributes.get("keepdims", 1))
    if not given:
        if node.attributes.get("noop_with_empty_axes", 0):
            return x
        given = list(range(x.rank))
    dims = sorted({dim % x.rank for dim in given})
    before = source(x)
    if before is None:
        return _reduced(b, how, x, dims, keep)
    inner, order = before
    found = _reduced(b, how, inner, sorted(order[dim] for dim in dims), keep)
    if keep:
        return permuted(b, found, order)
    left = [order[dim] for dim in range(x.rank) if dim not in dims]
    return permuted(b, found, [sorted(left).index(dim) for dim in left])


def _reduced(b: Builder, how: str, x: Value, dims: list[int], keep: bool) -> Value:
    if how == "mean":
        return b.call(functions.mean, x, dims, keep)
    return b.call(functions.reduced, x, dims, keep, how)


OPERATORS.update({name: partial(_reduce, how) for name, how in REDUCTIONS.items()})


def _softmax(target: object, b: Builder, node: Node, x: Value) -> Value:
    """Before opset 13 all dimensions from the axis on are one."""
    if b.graph.opset >= 13:
        return b.call(target, x, axis_of(node, x, -1))  # type: ignore[arg-type]
    axis = axis_of(node, x, 1)
    if all(size == 1 for size in x.shape[axis + 1 :]):
        return b.call(target, x, axis)  # type: ignore[arg-type]
    flat = b.call(target, b.call(torch.flatten, x, axis), axis)  # type: ignore[arg-type]
    return b.call(torch.unflatten, flat, axis, (-1, *x.shape[axis + 1 :]))


OPERATORS["Softmax"] = partial(_softmax, torch.softmax)
OPERATORS["LogSoftmax"] = partial(_softmax, torch.log_softmax)
OPERATORS["Hardmax"] = partial(_softmax, functions.hardmax)


def _arg(target: object, b: Builder, node: Node, x: Value) -> Value:
    axis, keep = axis_of(node, x, 0), bool(node.attributes.get("keepdims", 1))
    if not node.attributes.get("select_last_index", 0):
        return b.call(target, x, axis, keep)  # type: ignore[arg-type]
    found = b.call(target, b.call(torch.flip, x, (axis,)), axis, keep)  # type: ignore[arg-type]
    return b.call(arithmetic.sub, x.shape[axis] - 1, found)


OPERATORS["ArgMax"] = partial(_arg, torch.argmax)
OPERATORS["ArgMin"] = partial(_arg, torch.argmin)


@operator("CumSum")
def cum_sum(b: Builder, node: Node, x: Value, axis: Value) -> Value:
    """See ONNX."""
    exclusive, reverse = (bool(node.attributes.get(name, 0)) for name in ("exclusive", "reverse"))
    dim = int(b.scalar(axis))
    if exclusive or reverse:
        return b.call(functions.cumulated, x, dim, exclusive, reverse)
    return b.call(torch.cumsum, x, dim)


@operator("MeanVarianceNormalization")
def standardise(b: Builder, node: Node, x: Value) -> Value:
    """See ONNX."""
    return b.call(functions.standardised, x, [axis % x.rank for axis in node.attributes.get("axes", (0, 2, 3))])


@operator("TopK")
def top_k(b: Builder, node: Node, x: Value, k: Value | None = None) -> list[Value]:
    """See ONNX."""
    largest, ordered = (bool(node.attributes.get(name, 1)) for name in ("largest", "sorted"))
    count = int(b.scalar(numbers_of(b, node, k, "k")))
    return b.calls(torch.topk, x, count, axis_of(node, x, -1), largest, ordered)


@operator("LpNormalization")
def lp_normalization(b: Builder, node: Node, x: Value) -> Value:
    """See ONNX."""
    return b.call(functions.normalised, x, axis_of(node, x, -1), int(node.attributes.get("p", 2)))


@operator("LRN")
def local_response(b: Builder, node: Node, x: Value) -> Value:
    """torch's local response normalisation."""
    given = node.attributes
    size, bias = int(given["size"]), given.get("bias", 1.0)
    return b.call(F.local_response_norm, x, size, given.get("alpha", 1e-4), given.get("beta", 0.75), bias)
