"""Keras models as networks of torch: `[model] keras`. A file is read by Keras on its torch backend, without TensorFlow."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edgeprune.errors import UsageError, first_line, usage_error
from edgeprune.frontends.keras import files
from edgeprune.frontends.keras.build import build, sized
from edgeprune.frontends.keras.compare import difference, examples
from edgeprune.frontends.keras.table import FACTORY
from edgeprune.frontends.keras.write import rewritten
from edgeprune.network.outputs import tensors
from edgeprune.network.preprocessing import preprocess_of
from edgeprune.storage.store import file_sha256


def network(path: Path, inputs: Any = None) -> nn.Module:
    """The network of a Keras file, on the CPU, in eval mode. It takes and returns tensors as the Keras model does.

    Args:
        path: a `.keras` or an `.h5`.
        inputs: example inputs. They give a size to dimensions that the file leaves open.

    Raises:
        UsageError: the file cannot be read, or a layer is not supported.
        SecurityError: the file holds code.
    """
    return copy.deepcopy(_converted(path, _digest(path), _shapes(inputs))[0])


def example_inputs(path: Path) -> tuple[Tensor, ...]:
    """One sample for each input of a Keras file: random numbers from 0 to 1, or zeros if they are integers.

    Raises:
        UsageError: as `network`, or the file leaves a size open.
    """
    given = _converted(path, _digest(path), ())[1]
    if not given:
        raise usage_error(f"{path} leaves a size of its inputs open; give [model] inputs")
    return given


def of_model(model: Any, inputs: Any = None) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network of a Keras model in memory, and one sample for each input; () if a size is open.

    Args:
        model: functional or sequential, on Keras's torch backend.
        inputs: example inputs. They give a size to dimensions that the model leaves open.

    Raises:
        UsageError: Keras runs on another backend, or a layer is not supported.
    """
    files.require_keras()
    with _explained("the Keras model"):
        return _of_model(model, _shapes(inputs))


def write(path: Path, network: nn.Module, target: Path) -> None:
    """Write a pruned network as a Keras file.

    Args:
        path: the Keras file that the network was made from.
        network: has the names of the original's tensors, and smaller tensors.
        target: the file to write.

    Raises:
        UsageError: the model cannot be rebuilt from its configuration. The message says why.
    """
    if preprocess_of(network) is not None:
        raise usage_error(
            f"{path} is not written again: [preprocess] is no part of it; use Rescaling or Normalization in it"
        )
    with _explained(str(path)):
        rewritten(files.load(path), network, target)


def _digest(path: Path) -> str:
    return file_sha256(path) if path.is_file() else ""


def _shapes(inputs: Any) -> tuple[tuple[int, ...], ...]:
    """The shapes of example inputs, in order."""
    return tuple(tuple(tensor.shape) for tensor in tensors(inputs) or ()) if inputs is not None else ()


@lru_cache(maxsize=2)
def _converted(path: Path, sha256: str, shapes: tuple[tuple[int, ...], ...]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network, and example inputs; none if a size is open. `sha256` makes a changed file another one."""
    model = files.load(path)
    with _explained(str(path)):
        return _of_model(model, shapes)


def _of_model(model: Any, shapes: tuple[tuple[int, ...], ...]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network of a Keras model, compared with it, and example inputs."""
    model = sized(model, shapes)
    found = build(model).module.eval()
    wrong = difference(model, found)
    if wrong is not None:
        raise UsageError(f"the network is not equal to the Keras model: {wrong}; {FACTORY}")
    return found, examples(model)


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """A context in which Keras is called. Its errors are one line that begins with `where`."""
    try:
        with files.silent():
            yield
    except UsageError as error:
        raise usage_error(f"{where}: {error}") from error
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # Keras raises any of these for sizes or a configuration that do not fit.
        raise usage_error(f"{where}: Keras raises {first_line(error)}; {FACTORY}") from error
