"""The network and the example inputs of an ONNX file."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from edgeprune.errors import first_line
from edgeprune.frontends.onnx import patterns
from edgeprune.frontends.onnx.build import Builder, FixedBatchError
from edgeprune.frontends.onnx.check import (
    HALF_TOLERANCE,
    TOLERANCE,
    distance,
    follows_batch,
    outputs_of,
    runtime_outputs,
    tried_inputs,
)
from edgeprune.frontends.onnx.file import Graph, Input, read
from edgeprune.frontends.onnx.module import OnnxNetwork
from edgeprune.frontends.onnx.operators import OPERATORS
from edgeprune.frontends.onnx.scopes import arranged
from edgeprune.frontends.onnx.writing import network_of
from edgeprune.limits import LIMITS

log = logging.getLogger("edgeprune")
SEQUENCES = {"SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase", "SplitToSequence", "Loop", "If"}
Shapes = Sequence[tuple[int, ...]]


def network(path: Path, inputs: Any = None) -> OnnxNetwork:
    """The network in a file, in eval mode, with the file's weights as parameters.

    Args:
        path: a `.onnx` file, opset 7 or later.
        inputs: example inputs that give dynamic dimensions their sizes; see `[model] inputs`.

    Raises:
        UsageError: the file is damaged, or has something that cannot be converted. The message names the node.
        SecurityError: its external data lies outside its folder.
    """
    graph = read(path)
    for note in graph.notes:
        log.info("%s", note)
    shapes = _shapes(graph, inputs)
    try:
        made = converted(graph, shapes)
        _require_equal(graph, made, shapes)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:  # torch's functions, called with real numbers
        raise graph.refused(f"the network fails with random inputs: {first_line(error)}") from error
    return made


def example_inputs(path: Path) -> tuple[Tensor, ...]:
    """Inputs for a file: random numbers, and zeros and ones of other types. A dynamic batch is 1.

    Raises:
        UsageError: the file has other dynamic dimensions, or is damaged.
    """
    graph = read(path)
    return tried_inputs(graph.inputs, _shapes(graph, None))


def converted(graph: Graph, shapes: Shapes) -> OnnxNetwork:
    """The module of a graph, for any batch size if the file allows it."""
    reasons = []
    for dims in _batch_dims(shapes):
        try:
            made = _converted(graph, [(shape, _twice(shape, dim)) for shape, dim in zip(shapes, dims, strict=True)])
            if follows_batch(made, graph.inputs, shapes, dims):
                made.batch_dims = dims
                return made
            reasons.append("its outputs depend on the whole batch")
        except FixedBatchError as error:
            reasons.append(str(error))
    log.info(
        "%s: the network takes a batch of %d only: %s", graph.path.name, shapes[0][0] if shapes[0] else 1, reasons[0]
    )
    return _converted(graph, [(shape,) for shape in shapes])


def _batch_dims(shapes: Shapes) -> Iterator[tuple[int, ...]]:
    """The dimensions that may hold the samples, of each input: the first ones, or those of time-major sequences and states."""
    first = (0,) * len(shapes)
    yield first
    second = tuple(int(len(shape) == 3) for shape in shapes)
    for dims in dict.fromkeys((second, (0, *second[1:]))):
        if dims != first and len({shape[dim] for shape, dim in zip(shapes, dims, strict=True) if shape}) == 1:
            yield dims


def _twice(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return tuple(2 * size if place == dim else size for place, size in enumerate(shape))


def _require_equal(graph: Graph, made: OnnxNetwork, shapes: Shapes) -> None:
    """Raises `UsageError` if the module computes something else than the file. The message names the first node that does."""
    inputs = tried_inputs(graph.inputs, shapes)
    expected = runtime_outputs(graph, inputs)
    if expected is None:
        return
    tolerance = HALF_TOLERANCE if graph.notes else TOLERANCE
    distances = [distance(*pair) for pair in zip(expected, outputs_of(made, inputs), strict=True)]
    if max(distances) <= tolerance:
        return
    read = {*graph.outputs, *(name for node in graph.nodes for name in node.inputs)}
    names = [
        name for node in graph.nodes if node.op not in SEQUENCES for name in node.outputs
        if name and (name == node.outputs[0] or name in read)  # other results may have no converter
    ]  # fmt: skip
    alone = runtime_outputs(graph, inputs, names) or []
    every = _converted(replace(graph, outputs=tuple(names)), [(shape,) for shape in shapes])
    makers = {name: node for node in graph.nodes for name in node.outputs}
    for name, theirs, ours in zip(names, alone, outputs_of(every, inputs), strict=False):
        if distance(theirs, ours) > tolerance:
            raise graph.refused(
                f"{makers[name]} computes something else in torch than in ONNX Runtime; please report it"
            )
    raise graph.refused(f"the outputs differ from ONNX Runtime's by {max(distances):.1e}; please report it")


def _converted(graph: Graph, shapes: Sequence[Sequence[tuple[int, ...]]]) -> OnnxNetwork:
    builder = Builder(graph, shapes, OPERATORS, patterns.simplified)
    builder.run(graph.nodes)
    outputs = builder.outputs()
    units, paths = arranged(builder.steps, outputs)
    made = network_of(builder.inputs, outputs, units, paths)
    made.names_in_file = tuple(given.name for given in graph.inputs), graph.outputs
    return made.eval()


def _shapes(graph: Graph, inputs: Any) -> Shapes:
    """The shape of each input: of the example inputs, else of the file with a batch of 1."""
    if inputs is not None:
        from edgeprune.frontends.model import tensors

        given = tensors(inputs) or ()
        if len(given) != len(graph.inputs):
            raise graph.refused(f"the network has {len(graph.inputs)} inputs, and [model] inputs returns {len(given)}")
        return [tuple(tensor.shape) for tensor in given]
    return [_shape(graph, given) for given in graph.inputs]


def _shape(graph: Graph, given: Input) -> tuple[int, ...]:
    first = graph.inputs[0].dims[0] if graph.inputs[0].dims else None
    sizes: list[int] = []
    for place, dim in enumerate(given.dims):
        if isinstance(dim, int):
            sizes.append(dim)
        elif place == 0 or (dim is not None and dim == first):
            sizes.append(1)
        else:
            dims = ", ".join(str(dim) if dim is not None else "?" for dim in given.dims)
            raise graph.refused(
                f"the input {given.name!r} has the shape ({dims}), whose sizes are not fixed;"
                " give [model] inputs: a function that returns example inputs"
            )
    if math.prod(sizes) > LIMITS.onnx_elements:
        raise graph.refused(f"the input {given.name!r} holds more than {LIMITS.onnx_elements} numbers")
    return tuple(sizes)
