"""The compile verb: network -> the runtime's artifact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from edgeprune.records import Artifact
from edgeprune.runtimes.base import Calls, Runtime
from edgeprune.runtimes.formats import FORMATS
from edgeprune.storage.store import digest_of


def compile_model(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    folds: Sequence[tuple[str, str]],
    runtime: Runtime,
    precision: str,
    folder: Path,
    source: str,
    samples: Calls = (),
) -> Artifact:
    """Export `model` for inputs of exactly these shapes and convert it for `runtime`, into `folder`.

    `folds` are the (layer, batch-norm) pairs to fold, `precision` is one of the runtime's, `source` is the digest of what the
    model is, `samples` are calls to calibrate an int8 artifact with. Raises `UsageError` where the model cannot be expressed
    and `RuntimeMissing` where the runtime's converter is not installed.
    """
    exported = folder / f"exported.{runtime.format}"
    content = FORMATS[runtime.format].export(model, inputs, folds)
    exported.write_bytes(content)
    files = runtime.convert(exported, folder, precision, samples)
    operators = FORMATS[runtime.format].operators(content)
    return Artifact(files, digest_of(files), runtime.name, precision, source, operators)
