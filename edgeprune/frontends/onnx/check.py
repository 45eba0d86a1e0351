"""Compare a network with the file that it was made from, as ONNX Runtime computes it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from edgeprune.errors import first_line
from edgeprune.frontends.onnx.file import Graph, Input, parsed
from edgeprune.runtimes.onnxruntime.device import quiet

log = logging.getLogger("edgeprune")
TOLERANCE = 1e-4  # of the largest output
HALF_TOLERANCE = 2e-2  # likewise, of a file in half precision
HALF = "tensor(float16)"


def tried_inputs(inputs: Sequence[Input], shapes: Sequence[tuple[int, ...]], seed: int = 0) -> tuple[Tensor, ...]:
    """Inputs that two networks are compared with: random numbers, and ones and zeros for other types."""
    random = torch.Generator().manual_seed(seed)
    made = []
    for given, shape in zip(inputs, shapes, strict=True):
        real = torch.randn(shape, generator=random)
        made.append(real if given.dtype.is_floating_point else (real > 0).to(given.dtype))
    return tuple(made)


def outputs_of(model: nn.Module, inputs: Sequence[Tensor]) -> list[np.ndarray]:
    """The outputs of a network, as arrays."""
    with torch.no_grad():
        found = model(*inputs)
    return [tensor.detach().numpy() for tensor in ([found] if isinstance(found, Tensor) else found)]


def runtime_outputs(graph: Graph, inputs: Sequence[Tensor], names: Sequence[str] = ()) -> list[np.ndarray] | None:
    """What ONNX Runtime computes; None if it does not run the file.

    Args:
        graph: of the file.
        inputs: in the order of the file.
        names: of values instead of the outputs.
    """
    if any(node.op == "Split" and "" in node.outputs for node in graph.nodes):
        log.info(
            "%s: a Split without a name for each result ends ONNX Runtime's process; not compared", graph.path.name
        )
        return None
    onnxruntime = quiet()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            _with_outputs(graph, names) if names else str(graph.path),
            options,
            providers=["CPUExecutionProvider"],
            enable_fallback=0,
        )
        kinds = {value.name: value.type for value in session.get_inputs()}
        feed: dict[str, Any] = {}
        for given, tensor in zip(graph.inputs, inputs, strict=True):
            array = tensor.numpy()
            half, double = kinds[given.name] == HALF, kinds[given.name] == "tensor(double)"
            feed[given.name] = array.astype(np.float16) if half else array.astype(np.float64) if double else array
        return list(session.run(list(names or graph.outputs), feed))
    except Exception as error:  # noqa: BLE001 - the binding's exceptions have no base of their own
        log.info(
            "%s: ONNX Runtime does not run the file, so the network is not compared with it: %s",
            graph.path.name,
            first_line(error),
        )
        return None


def _with_outputs(graph: Graph, names: Sequence[str]) -> bytes:
    proto = parsed(graph.path)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return bytes(proto.SerializeToString())


def distance(expected: np.ndarray, got: np.ndarray) -> float:
    """The largest difference, of the largest number expected; infinite where shapes or NaN differ."""
    if expected.shape != got.shape:
        return float("inf")
    a, b = np.nan_to_num(expected.astype(np.float64)), np.nan_to_num(got.astype(np.float64))
    if not expected.size:
        return 0.0
    if expected.dtype.kind == "f" and not np.array_equal(np.isnan(expected), np.isnan(got)):
        return float("inf")
    return float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-6))


def follows_batch(
    model: nn.Module, inputs: Sequence[Input], shapes: Sequence[tuple[int, ...]], dims: Sequence[int]
) -> bool:
    """Whether a network computes each sample of a batch independently of the others.

    Args:
        model: the network.
        inputs: of the file.
        shapes: of each input, for the first batch size.
        dims: the dimension of each input that holds the samples. A scalar is the same for all samples.
    """
    first, second = (tried_inputs(inputs, shapes, seed) for seed in (1, 2))
    second = tuple(b if b.ndim else a for a, b in zip(first, second, strict=True))
    both = [torch.cat(pair, dim) if pair[0].ndim else pair[0] for *pair, dim in zip(first, second, dims, strict=True)]
    expected = [outputs_of(model, first), outputs_of(model, second)]
    try:
        together = outputs_of(model, both)
    except (RuntimeError, IndexError):  # torch knows the shapes of some functions only when it has their values
        return False
    for a, b, got in zip(*expected, together, strict=True):
        changed = [dim for dim, (one, two) in enumerate(zip(a.shape, got.shape, strict=False)) if one != two]
        if a.ndim != got.ndim or len(changed) > 1:
            return False
        if distance(np.concatenate([a, b], changed[0]) if changed else a, got) > TOLERANCE:
            return False
    return True
