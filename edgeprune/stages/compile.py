"""The compile stages: the original network, and the final one, as the target's runtime loads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.pipeline.stage import Output, Stage
from edgeprune.records import Artifact, Groups, Precision
from edgeprune.runtimes.base import Calls, Runtime
from edgeprune.storage.store import digest_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from edgeprune.frontends.data import Split
    from edgeprune.frontends.model import Network
    from edgeprune.stages.final import Final
    from edgeprune.stages.inputs import Calibration

KEPT_SAMPLES = 32  # validation samples that are kept beside an artifact, with the network's outputs
CALLS = "calls"  # the folder of these samples


@dataclass(frozen=True)
class OriginalReads:
    """The network and the runtime."""

    network: Network
    groups: Groups
    runtime: Runtime


@dataclass(frozen=True)
class Reads:
    """The network to compile, the runtime, the precision, and the data for calibration and for checks."""

    network: Network
    groups: Groups
    final: Final
    runtime: Runtime
    chosen_precision: Precision
    calibration: Calibration
    valid: Split
    finetune_seed: int


@dataclass(frozen=True)
class Compiler:
    """Compiles networks for a runtime in a precision. The ranges of int8 artifacts come from the calls in `samples`."""

    runtime: Runtime
    precision: Precision
    samples: Calls = ()

    def compile(
        self, model: nn.Module, inputs: tuple[Tensor, ...], folds: Sequence[tuple[str, str]], folder: Path, source: str
    ) -> Artifact:
        """Export a network for inputs of exactly these shapes, and convert it.

        Args:
            model: the network.
            inputs: example inputs, (batch, ...) each.
            folds: (layer, batch norm) pairs to fold.
            folder: an empty folder for the artifact's files.
            source: digest of what the network was made from.

        Raises:
            UsageError: the model cannot be expressed in the runtime's format.
            RuntimeMissing: the runtime's converter is not installed.
        """
        from edgeprune.runtimes.formats import FORMATS

        form = self.runtime.exported_as(self.precision)
        export, exported = FORMATS[form], folder / f"exported.{form}"
        content = export.export(model, inputs, folds)
        exported.write_bytes(content)
        files = self.runtime.convert(exported, folder, self.precision, self.samples)
        operators = export.operators(content)
        return Artifact(files, digest_of(files), self.runtime.name, self.precision, source, operators)


def run_original(reads: OriginalReads, output: Output) -> Artifact:
    """Compile the original network in fp32. Budgets that are shares, and drops of the metric, refer to this artifact."""
    folder = output.path("model")
    folder.mkdir()
    network = reads.network
    compiler = Compiler(reads.runtime, "fp32")
    return compiler.compile(network.module, network.inputs, reads.groups.folds, folder, reads.groups.network)


def run(reads: Reads, output: Output) -> Artifact:
    """Compile the network, and keep calls that the artifact can be checked by."""
    folder = output.path("model")
    folder.mkdir()
    network, model = reads.network, reads.final.module
    samples = reads.calibration.samples if reads.chosen_precision.startswith("int8") else []
    compiler = Compiler(reads.runtime, reads.chosen_precision, samples)
    made = compiler.compile(model, network.inputs, reads.groups.folds, folder, reads.final.source)
    if reads.final.tuned is not None:
        network.write(model, folder)
    with reads.valid.repeatable(reads.finetune_seed):
        _keep_calls(output.path(CALLS), model, network, reads.valid)
    return made


def describe(artifact: Artifact, reads: Reads | OriginalReads) -> str:
    """The runtime, the precision, the size and the operators."""
    operators = f"{artifact.operators} operators, of {reads.groups.operators} in torch's graph"
    return f"{reads.runtime.name} {artifact.precision}, {artifact.size_bytes / 1e3:.1f} kB, {operators}"


ORIGINAL = Stage("original", OriginalReads, run_original, Artifact, describe)
STAGE = Stage("compile", Reads, run, Artifact, describe, published=lambda artifact: artifact.files[0].parent)


def _keep_calls(folder: Path, model: nn.Module, network: Network, valid: Split) -> None:
    """Keep validation samples and the network's outputs on them. A check of the artifact then needs no torch."""
    import numpy as np

    from edgeprune.frontends import data
    from edgeprune.stages.verdicts import accuracy

    folder.mkdir()
    stacked, targets = data.stacked(valid, network.inputs, KEPT_SAMPLES)
    count, dims = targets.shape[valid.target_dim], network.structure.batch_dims
    for i, column in enumerate(stacked):
        np.save(folder / f"input_{i}.npy", column, allow_pickle=False)
    for i, array in enumerate(accuracy.computed(model, stacked, count, dims)):
        np.save(folder / f"output_{i}.npy", array, allow_pickle=False)


def kept_calls(folder: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The calls that the compile stage keeps in its folder.

    Returns:
        An array for each input, (calls, *shape of a call), and one for each output of the network.
    """
    import numpy as np

    def arrays(name: str) -> list[np.ndarray]:
        paths = sorted((folder / CALLS).glob(f"{name}_*.npy"), key=lambda path: int(path.stem.rpartition("_")[2]))
        return [np.load(path, allow_pickle=False) for path in paths]

    return arrays("input"), arrays("output")
