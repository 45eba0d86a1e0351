"""What an artifact computes on its device: its outputs on real samples, the metric they give, and how far they are from what
the network computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune import project as user
from edgeprune.bench import Bench
from edgeprune.errors import UsageError
from edgeprune.types import Artifact, Check, Outcome, Project


@dataclass(frozen=True)
class Tolerance:
    """How far an artifact may be from the fp32 network: largest error relative to the largest output, cosine of all outputs,
    share of samples with the same class."""

    relative: float
    cosine: float
    agreement: float


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


def metric(project: Project, outputs: np.ndarray, targets: Tensor) -> float:
    """The project's metric of outputs (samples, …). Raises `UsageError` where it is no finite number."""
    return user.metric_function(project)(torch.from_numpy(outputs), targets)


def outputs(bench: Bench, artifact: Artifact, stacked: Sequence[np.ndarray], count: int) -> np.ndarray:
    """The artifact's first output on every sample: (samples, …)."""
    result = bench.outputs(artifact.files[0], stacked)[0]
    flat: np.ndarray = result.reshape(-1, *result.shape[2:])[:count]
    if not np.isfinite(flat).all():
        raise UsageError(
            f"{artifact.files[0].name} gives outputs that are not finite on real data; check the model's ranges"
        )
    return flat


def computed(network: nn.Module, stacked: Sequence[np.ndarray], count: int) -> np.ndarray:
    """What torch makes of the same calls: (samples, …)."""
    with torch.no_grad():
        calls = [network.eval()(*(torch.from_numpy(column[i]) for column in stacked)) for i in range(len(stacked[0]))]
    wanted: np.ndarray = torch.cat(calls).numpy()[:count]
    return wanted


def numerics(wanted: np.ndarray, got: np.ndarray, precision: str) -> list[Check]:
    """Outputs (samples, …) of an artifact held against those that torch computed."""
    limit = TOLERANCES[precision]
    error = float(np.abs(wanted - got).max())
    scale = float(np.abs(wanted).max())
    cosine = float((wanted * got).sum() / (np.linalg.norm(wanted) * np.linalg.norm(got)))
    checks = [
        below("output_max_abs_error", error, limit.relative * scale, "against torch, on every sample"),
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
