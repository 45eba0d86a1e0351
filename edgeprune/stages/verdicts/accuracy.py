"""What an artifact computes on its device, and how long it takes: outputs, the metric of them, and times."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.devices.bench import Bench
from edgeprune.frontends import calls as calls_of
from edgeprune.frontends import data
from edgeprune.frontends.data import Metric, NotFinite, Split
from edgeprune.limits import LIMITS
from edgeprune.network.outputs import Structure, tensors
from edgeprune.records import Artifact, Check, Outcome, Precision, Samples
from edgeprune.stages.verdicts import verdict

TOP1 = "top1_agreement"  # the check of the largest value in each row


@dataclass(frozen=True)
class Timer:
    """Times models on a device, with the example inputs as files."""

    device: Bench
    files: Sequence[Path]

    def time(
        self,
        models: Sequence[Path],
        processes: int,
        runs: int = LIMITS.timed_runs_min,
        timed_s: float = LIMITS.timed_s,
    ) -> list[Samples]:
        """Fresh processes of each model, interleaved, with at least `runs` timings each. See `Bench.time`."""
        return self.device.time(models, self.files, processes, runs, timed_s)

    def compare(self, models: Sequence[Path], processes: int, timed_s: float = LIMITS.timed_s) -> list[Samples]:
        """Processes that load all models, whose runs are interleaved. See `Bench.compare`."""
        return self.device.compare(models, self.files, processes, timed_s)


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
    def output_dims(self) -> tuple[int, ...]:
        """The dimension of each tensor that the model returns, which holds the samples."""
        return self.metric.structure.batch_dims

    @property
    def input_dims(self) -> tuple[int, ...]:
        """The same of each input."""
        return self.split.dims(len(self.inputs))

    @property
    def size(self) -> int:
        """The samples of a call."""
        return self.inputs[0].shape[self.input_dims[0]]

    def read(self) -> Calls:
        """The split's samples, at most `most`."""
        with self.split.repeatable(self.seed):
            inputs, targets = data.stacked(self.split, self.inputs, self.most)
        dim = self.split.target_dim
        return Calls(inputs, targets, targets.shape[dim], self.size, dim)


@dataclass(frozen=True)
class Calls:
    """Samples of a split as calls of an artifact.

    Attributes:
        inputs: an array for each input, (calls, *shape of a call). The last call is filled up.
        targets: of as many samples as are used.
        total: how many samples were read.
        size: samples of a call.
        target_dim: the dimension of the targets that holds the samples.
    """

    inputs: Sequence[np.ndarray]
    targets: Tensor
    total: int
    size: int
    target_dim: int = 0

    @property
    def count(self) -> int:
        """How many samples are used."""
        return self.targets.shape[self.target_dim]

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
        targets = calls_of.first(self.targets, calls * self.size, self.target_dim)
        return replace(self, inputs=[array[:calls] for array in self.inputs], targets=targets)


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
    outputs = outputs_of(device, artifact, calls.inputs, calls.count, evaluation.output_dims)
    return metric(device, artifact, evaluation, outputs, calls.targets)


_KNOWN: WeakKeyDictionary[Split, dict[tuple[str, ...], float]] = WeakKeyDictionary()


def metric_of_original(device: Bench, artifact: Artifact, evaluation: Evaluation, calls: Calls) -> float:
    """As `metric_of`. Runs that share the split, as those of a sweep do, ask the device once."""
    known = _KNOWN.setdefault(evaluation.split, {})
    key = str(artifact.files[0]), artifact.sha256, calls.content, device.device.identity
    if key not in known:
        known[key] = metric_of(device, artifact, evaluation, calls)
    return known[key]


def metric(
    device: Bench, artifact: Artifact, evaluation: Evaluation, outputs: Sequence[np.ndarray], targets: Tensor
) -> float:
    """The project's metric of an artifact.

    Args:
        device: runs the artifact, if the metric is in closed loop. The artifact then acts in the split's episodes.
        artifact: what is evaluated.
        evaluation: the metric, and the batch size of calls in closed loop.
        outputs: what the artifact computed.
        targets: of the same samples.

    Raises:
        NotFinite: the metric is not a finite number.
        UsageError: the user's function fails.
    """

    def policy(*inputs: np.ndarray) -> list[np.ndarray]:
        dims = evaluation.input_dims
        calls, count = calls_of.calls(inputs, evaluation.size, dims), inputs[0].shape[dims[0]]
        return outputs_of(device, artifact, calls, count, evaluation.output_dims)

    if evaluation.metric.in_closed_loop:
        return evaluation.metric.of_policy(policy, evaluation.split.name)
    return evaluation.metric([torch.from_numpy(array) for array in outputs], targets)


def outputs_of(
    device: Bench, artifact: Artifact, inputs: Sequence[np.ndarray], count: int, dims: Sequence[int]
) -> list[np.ndarray]:
    """The artifact's first outputs on the first `count` samples of the calls.

    Args:
        device: runs the artifact.
        artifact: what computes.
        inputs: an array for each input, (calls, *shape of a call).
        count: how many samples are real; the last call may be filled up.
        dims: the dimension that holds the samples, of each output to return.

    Returns:
        An array for each output, with the samples of all calls in that dimension.

    Raises:
        NotFinite: some outputs are not finite.
    """
    found = calls_of.joined(device.outputs(artifact.files[0], inputs, len(dims)), count, dims)
    rows = [np.moveaxis(array, dim, 0).reshape(count, -1) for array, dim in zip(found, dims, strict=True)]
    bad = int(sum((~np.isfinite(array)).any(1) for array in rows).astype(bool).sum())
    if bad:
        what = f"{artifact.files[0].name} gives outputs that are not finite on {bad} of {count} real samples"
        raise NotFinite(f"{what}; check the model's ranges", bad)
    return found


def computed(network: nn.Module, inputs: Sequence[np.ndarray], count: int, dims: Sequence[int]) -> list[np.ndarray]:
    """What torch computes on the first `count` samples of the same calls; see `outputs_of`."""
    with torch.no_grad():
        calls = [
            tensors(network.eval()(*(torch.from_numpy(column[i]) for column in inputs))) for i in range(len(inputs[0]))
        ]
    return calls_of.joined([torch.stack(column).numpy() for column in zip(*calls, strict=True)], count, dims)


def compared(
    expected: Sequence[np.ndarray], got: Sequence[np.ndarray], precision: Precision, structure: Structure
) -> list[Check]:
    """Compare an artifact's outputs with torch's. Of each check, an output that fails it counts.

    Only outputs of `comparable` are compared. A tie may move an index, so only the largest value of the main output must be
    the same.

    Args:
        expected: torch's outputs, (samples, ...) each.
        got: the artifact's.
        precision: the artifact's.
        structure: names the outputs.
    """
    real = comparable(expected)
    found: dict[str, Check] = {}
    for i in real:
        checks = [c for c in verdict.outputs(expected[i], got[i], precision) if i == structure.main or c.name != TOP1]
        for check in checks:
            note = f"output {structure.names[i]}" + (f", {check.note}" if check.note else "")
            shown = replace(check, note=note) if len(real) > 1 else check
            if check.name not in found or found[check.name].outcome is Outcome.PASS is not check.outcome:
                found[check.name] = shown
    return list(found.values())


def comparable(outputs: Sequence[np.ndarray]) -> list[int]:
    """The indices of the outputs with real numbers. All outputs, if there is none: a tie may move an index."""
    return [i for i, array in enumerate(outputs) if array.dtype.kind == "f"] or list(range(len(outputs)))
