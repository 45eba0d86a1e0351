"""What an artifact computes on its device, and how long it takes: outputs, the metric of them, and times."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.devices.bench import Bench
from edgeprune.frontends import data
from edgeprune.frontends.data import Metric, NotFinite, Split
from edgeprune.limits import LIMITS
from edgeprune.network.outputs import Structure, tensors
from edgeprune.records import Artifact, Check, Outcome, Precision, Samples
from edgeprune.stages import verdict

TOP1 = "top1_agreement"  # the check of the largest value in each row


@dataclass(frozen=True)
class Timer:
    """Times models on a device, with the example inputs as files."""

    device: Bench
    files: Sequence[Path]

    def time(self, models: Sequence[Path], processes: int, runs: int = LIMITS.timed_runs_min) -> list[Samples]:
        """Fresh processes of each model, interleaved, with at least `runs` timings each. See `Bench.time`."""
        return self.device.time(models, self.files, processes, runs)

    def compare(self, models: Sequence[Path], processes: int) -> list[Samples]:
        """Processes that load all models, whose runs are interleaved. See `Bench.compare`."""
        return self.device.compare(models, self.files, processes)


@dataclass(frozen=True)
class Evaluation:
    """How the metric is computed: on which split, in calls like the example inputs, in an order that follows from the seed.

    `inputs` are (batch, ...) each. `most` caps the samples; None uses as many as the device's time allows.
    """

    split: Split
    metric: Metric
    inputs: tuple[Tensor, ...]
    seed: int
    most: int | None = None

    @property
    def outputs(self) -> int:
        """How many tensors the model returns."""
        return len(self.metric.structure.names)

    def read(self) -> Calls:
        """The split's samples, at most `most`."""
        with self.split.repeatable(self.seed):
            inputs, targets = data.stacked(self.split, self.inputs, self.most)
        return Calls(inputs, targets, len(targets))


@dataclass(frozen=True)
class Calls:
    """Samples of a split as calls of an artifact.

    Attributes:
        inputs: an array for each input, (calls, batch, ...). The last call is filled up.
        targets: (samples, ...), as many as are used.
        total: how many samples were read.
    """

    inputs: Sequence[np.ndarray]
    targets: Tensor
    total: int

    @property
    def count(self) -> int:
        """How many samples are used."""
        return len(self.targets)

    @property
    def share(self) -> str:
        """How many samples of how many, in words."""
        return f"the {self.total}" if self.count == self.total else f"the first {self.count} of {self.total}"

    @property
    def content(self) -> str:
        """A digest of inputs and targets."""
        sha = hashlib.sha256()
        for array in (*self.inputs, self.targets.numpy()):
            sha.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        return sha.hexdigest()

    def first(self, calls: int) -> Calls:
        """The first calls only."""
        size = self.inputs[0].shape[1]
        return Calls([array[:calls] for array in self.inputs], self.targets[: calls * size], self.total)


def affordable(device: Bench, artifact: Artifact, calls: Calls, latency_ns: float, seconds: float) -> Calls:
    """As many of the calls as the artifact computes in the time allowed, at least one.

    Args:
        device: runs the artifact; an emulated one has `LIMITS.emulated_metric_s` instead of `seconds`.
        artifact: what computes them.
        calls: all of them.
        latency_ns: the artifact's latency.
        seconds: of the device's time.
    """
    allowed_s = LIMITS.emulated_metric_s if device.device.emulated else seconds
    call_ns = device.call_ns(artifact.files[0], calls.inputs, latency_ns)
    return calls.first(max(1, int(allowed_s * 1e9 / call_ns)))


def metric_of(device: Bench, artifact: Artifact, evaluation: Evaluation, calls: Calls) -> float:
    """The project's metric of an artifact on these calls. Raises as `outputs_of` and `metric` do."""
    outputs = outputs_of(device, artifact, calls.inputs, calls.count, evaluation.outputs)
    return metric(device, artifact, evaluation, outputs, calls.targets)


def metric(
    device: Bench, artifact: Artifact, evaluation: Evaluation, outputs: Sequence[np.ndarray], targets: Tensor
) -> float:
    """The project's metric of an artifact.

    Args:
        device: runs the artifact, if the metric is in closed loop. The artifact then acts in the split's episodes.
        artifact: what is evaluated.
        evaluation: the metric, and the batch size of calls in closed loop.
        outputs: what the artifact computed, (samples, ...) each.
        targets: (samples, ...).

    Raises:
        NotFinite: the metric is not a finite number.
        UsageError: the user's function fails.
    """

    def policy(*inputs: np.ndarray) -> list[np.ndarray]:
        calls = data.calls(inputs, len(evaluation.inputs[0]))
        return outputs_of(device, artifact, calls, len(inputs[0]), evaluation.outputs)

    if evaluation.metric.in_closed_loop:
        return evaluation.metric.of_policy(policy, evaluation.split.name)
    return evaluation.metric([torch.from_numpy(array) for array in outputs], targets)


def outputs_of(
    device: Bench, artifact: Artifact, inputs: Sequence[np.ndarray], count: int, outputs: int
) -> list[np.ndarray]:
    """The artifact's first outputs on the first `count` samples of the calls.

    Args:
        device: runs the artifact.
        artifact: what computes.
        inputs: an array for each input, (calls, batch, ...).
        count: how many samples are real; the last call may be filled up.
        outputs: how many outputs to return.

    Returns:
        (samples, ...) each.

    Raises:
        NotFinite: some outputs are not finite.
    """
    found = device.outputs(artifact.files[0], inputs, outputs)
    flat = [array.reshape(-1, *array.shape[2:])[:count] for array in found]
    bad = int(sum((~np.isfinite(array.reshape(count, -1))).any(1) for array in flat).astype(bool).sum())
    if bad:
        what = f"{artifact.files[0].name} gives outputs that are not finite on {bad} of {count} real samples"
        raise NotFinite(f"{what}; check the model's ranges", bad)
    return flat


def computed(network: nn.Module, inputs: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """What torch computes on the first `count` samples of the same calls: (samples, ...) each."""
    with torch.no_grad():
        calls = [
            tensors(network.eval()(*(torch.from_numpy(column[i]) for column in inputs))) for i in range(len(inputs[0]))
        ]
    return [torch.cat(column).numpy()[:count] for column in zip(*calls, strict=True)]


def compared(
    expected: Sequence[np.ndarray], got: Sequence[np.ndarray], precision: Precision, structure: Structure
) -> list[Check]:
    """Compare an artifact's outputs with torch's. Of each check, an output that fails it counts.

    Only outputs with real numbers are compared, if there are any, since a tie may move an index. For the same reason, only the
    largest value of the main output must be the same.

    Args:
        expected: torch's outputs, (samples, ...) each.
        got: the artifact's.
        precision: the artifact's.
        structure: names the outputs.
    """
    real = [i for i, array in enumerate(expected) if array.dtype.kind == "f"] or list(range(len(expected)))
    found: dict[str, Check] = {}
    for i in real:
        checks = [c for c in verdict.outputs(expected[i], got[i], precision) if i == structure.main or c.name != TOP1]
        for check in checks:
            note = f"output {structure.names[i]}" + (f", {check.note}" if check.note else "")
            shown = replace(check, note=note) if len(real) > 1 else check
            if check.name not in found or found[check.name].outcome is Outcome.PASS is not check.outcome:
                found[check.name] = shown
    return list(found.values())
