"""Keras models as networks of torch: `[model] keras`. A file is read by Keras on its torch backend, without TensorFlow."""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.errors import UsageError, usage_error
from edgeprune.frontends.keras import files
from edgeprune.frontends.keras.build import build, functional
from edgeprune.frontends.keras.modules import PaddedMean
from edgeprune.storage.store import file_sha256

TOLERANCE = 1e-4  # of the largest output; the rounding of single precision is near 1e-6


def network(path: Path) -> nn.Module:
    """The network of a Keras file, on the CPU, in eval mode. It takes and returns tensors as the Keras model does.

    Raises:
        UsageError: the file cannot be read, or a layer is not supported.
        SecurityError: the file holds code.
    """
    return copy.deepcopy(_converted(path, file_sha256(path) if path.is_file() else "")[0])


def example_inputs(path: Path) -> tuple[Tensor, ...]:
    """One sample for each input of a Keras file: random numbers from 0 to 1, or zeros if they are integers.

    Raises:
        UsageError: as `network`, or the file leaves a size open.
    """
    given = _converted(path, file_sha256(path) if path.is_file() else "")[1]
    if not given:
        raise usage_error(f"{path} leaves a size of its inputs open; give [model] inputs")
    return given


@lru_cache(maxsize=2)
def _converted(path: Path, sha256: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network, and example inputs; none if a size is open. `sha256` makes a changed file another one."""
    model = files.load(path)
    try:
        with files.silent():
            found = build(model).eval()
    except UsageError as error:
        raise usage_error(f"{path}: {error}") from error
    given = _examples(model)
    if given and not any(isinstance(module, PaddedMean) for module in found.modules()):
        _require_equal(path, model, found, given)
    return found, given


def _examples(model: Any) -> tuple[Tensor, ...]:
    """Inputs of one sample; none if a size is open."""
    random = torch.Generator().manual_seed(0)
    if any(size is None for tensor in model.inputs for size in tensor.shape[1:]):
        return ()
    return tuple(
        torch.rand(1, *tensor.shape[1:], generator=random)
        if tensor.dtype.startswith(("float", "bfloat"))
        else torch.zeros(1, *tensor.shape[1:], dtype=torch.int32)
        for tensor in model.inputs
    )


def _require_equal(path: Path, model: Any, found: nn.Module, given: tuple[Tensor, ...]) -> None:
    """Raises `UsageError` if the network computes something else than Keras.

    Average pools with uneven padding are not compared: on torch, Keras counts the padding, and on other backends not.
    """
    from keras import tree

    with files.silent(), torch.no_grad():
        inputs = tree.pack_sequence_as(functional(model)._inputs_struct, list(given))
        expected = tree.flatten(model(inputs, training=False))
        results = found(*given)
    for one, other in zip(expected, results if isinstance(results, tuple) else (results,), strict=True):
        scale = one.abs().max().clamp(min=1e-12)
        if not torch.allclose(one.cpu() / scale, other / scale, rtol=0, atol=TOLERANCE, equal_nan=True):
            raise usage_error(
                f"{path}: the network differs from the Keras model by {float((one - other).abs().max() / scale):.1e}"
                " of its largest output; write it in torch and name it as [model] factory"
            )
