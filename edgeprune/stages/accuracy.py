"""What an artifact computes on its device: its outputs on real samples, the metric they give, and how far they are from what
the network computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.devices.bench import Bench
from edgeprune.errors import UsageError
from edgeprune.frontends import user_code as user
from edgeprune.records import Artifact, Check, Outcome, Project


@dataclass(frozen=True)
class Tolerance:
    """How far an artifact may be from the fp32 network: largest error relative to the largest output, cosine of all outputs,
    share of samples with the same class."""

    relative: float
    cosine: float
    agreement: float


class NotFinite(UsageError):
    """Outputs, or the metric of them, that are no finite numbers: `count` of them. A check fails for it, other verbs end."""

    def __init__(self, message: str, count: int = 1) -> None:
        super().__init__(message)
        self.count = count

    def check(self, name: str) -> Check:
        """The check that fails for it: how many there are, and none is the limit."""
        return below(name, self.count, 0, str(self))


# What rounding explains, and no more: what it costs in accuracy is the metric's to say.
TOLERANCES = {
    "fp32": Tolerance(1e-3, 0.9999, 0.99),
    "fp16": Tolerance(2e-2, 0.999, 0.98),
    "int8": Tolerance(0.3, 0.98, 0.9),
    "int8-dynamic": Tolerance(0.3, 0.98, 0.9),
}


def samples(
    project: Project,
    bench: Bench,
    split: str,
    inputs: tuple[Tensor, ...],
    artifact: Artifact,
    slowest_ns: float,
    seconds: float,
) -> tuple[list[np.ndarray], Tensor, int]:
    """Calls and targets of a split, as many as `seconds` of the device's time allow, and how many there are."""
    stacked, targets = user.stacked(project, split, inputs)
    calls = max(1, int(seconds * 1e9 / bench.call_ns(artifact.files[0], stacked, slowest_ns)))
    return [column[:calls] for column in stacked], targets[: calls * inputs[0].shape[0]], len(targets)


def metric(
    project: Project, bench: Bench, artifact: Artifact, split: str, size: int, outputs: np.ndarray, targets: Tensor
) -> float:
    """The project's metric: of an artifact's outputs (samples, …), or of the artifact itself in closed loop on its device, in
    the episodes of the split, in calls of `size` samples. Raises `NotFinite` where it is no finite number.
    """

    def policy(*inputs: np.ndarray) -> np.ndarray:
        return outputs_of(bench, artifact, user.calls(inputs, size), len(inputs[0]))

    try:
        if project.closed_loop is not None:
            return user.closed_loop(project, policy, split)
        return user.metric_function(project)(torch.from_numpy(outputs), targets)
    except UsageError as error:
        if error.__cause__ is not None:  # what the user's function raised
            raise
        raise NotFinite(str(error)) from None


def outputs_of(bench: Bench, artifact: Artifact, stacked: Sequence[np.ndarray], count: int) -> np.ndarray:
    """The artifact's first output on every sample: (samples, …). Raises `NotFinite` where some are no finite numbers."""
    result = bench.outputs(artifact.files[0], stacked)[0]
    flat: np.ndarray = result.reshape(-1, *result.shape[2:])[:count]
    bad = int((~np.isfinite(flat.reshape(len(flat), -1))).any(1).sum())
    if bad:
        told = f"{artifact.files[0].name} gives outputs that are not finite on {bad} of {len(flat)} real samples"
        raise NotFinite(f"{told}; check the model's ranges", bad)
    return flat


def computed(network: nn.Module, stacked: Sequence[np.ndarray], count: int) -> np.ndarray:
    """What torch makes of the same calls: (samples, …)."""
    with torch.no_grad():
        calls = [network.eval()(*(torch.from_numpy(column[i]) for column in stacked)) for i in range(len(stacked[0]))]
    wanted: np.ndarray = torch.cat(calls).numpy()[:count]
    return wanted


def numerics(wanted: np.ndarray, got: np.ndarray, precision: str) -> list[Check]:
    """Outputs (samples, …) of an artifact held against those that torch computed.

    Where torch's are all zero, no error is relative to them and nothing has their direction: the absolute error alone decides.
    """
    limit = TOLERANCES[precision]
    wanted, got = wanted.astype(np.float64), got.astype(np.float64)  # in which no product overflows
    error = float(np.abs(wanted - got).max())
    scale = float(np.abs(wanted).max())
    checks = [below("output_max_abs_error", error, limit.relative * scale, "against torch, on every sample")]
    if scale:
        lengths = float(np.linalg.norm(wanted) * np.linalg.norm(got))
        cosine = float((wanted * got).sum()) / lengths if lengths else 0.0  # of zeros, which have no direction
        checks += [
            below("output_max_relative_error", error / scale, limit.relative, "of the largest output"),
            above("output_cosine", cosine, limit.cosine),
        ]
    if wanted.ndim == 2:
        agreement = float((wanted.argmax(1) == got.argmax(1)).mean())
        checks.append(above("top1_agreement", agreement, limit.agreement, "with torch"))
    return checks


def below(name: str, value: float, limit: float, note: str = "") -> Check:
    """A check that passes at most at the limit; NaN fails."""
    return Check(name, Outcome.PASS if value <= limit else Outcome.FAIL, value, limit, note)


def above(name: str, value: float, limit: float, note: str = "") -> Check:
    """A check that passes at least at the limit; NaN fails."""
    note = f"at least; {note}" if note else "at least"
    return Check(name, Outcome.PASS if value >= limit else Outcome.FAIL, value, limit, note)
