"""Keras models as networks of torch: `[model] keras`. A file is read by Keras on its torch backend, without TensorFlow."""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path

from torch import Tensor, nn

from edgeprune.errors import UsageError, usage_error
from edgeprune.frontends.keras import files
from edgeprune.frontends.keras.build import build
from edgeprune.frontends.keras.compare import difference, examples
from edgeprune.frontends.keras.write import write as write
from edgeprune.storage.store import file_sha256


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
            found = build(model).module.eval()
            wrong = difference(model, found)
    except UsageError as error:
        raise usage_error(f"{path}: {error}") from error
    if wrong is not None:
        raise usage_error(
            f"{path}: the network is not equal to the Keras model: {wrong};"
            " write the network in torch and name it as [model] factory"
        )
    return found, examples(model)
