"""The verify verb: does the artifact compute what the network computes, as fast as was asked, on the device?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune import network as nets
from edgeprune import project as user
from edgeprune import stats
from edgeprune.bench import Bench
from edgeprune.errors import UsageError
from edgeprune.limits import LIMITS
from edgeprune.types import Artifact, Budget, Check, Figures, Outcome, Project, Samples, Verdict

RELATIVE = 1e-3  # largest error of an fp32 artifact, relative to the largest output
COSINE = 0.9999
AGREEMENT = 0.99
TAIL = 1.05  # the tail may not be worse than the unpruned network's, but for noise
MEMORY = 1.05  # likewise for a process's peak memory, most of which is the runtime
PROCESSES = 8  # fresh processes of each artifact, a round
ROUNDS = 4  # of more processes while the answer is inconclusive


def verify(
    project: Project,
    bench: Bench,
    inputs: tuple[Tensor, ...],
    networks: tuple[nn.Module, nn.Module],
    artifacts: tuple[Artifact, Artifact],
    macs: tuple[int, int],
    scratch: Path,
) -> Verdict:
    """Hold the pruned artifact against the torch network, the metric limit and the budget.

    `networks`, `artifacts` and `macs` are (unpruned, pruned). `inputs` are the example inputs of the artifacts' fixed shape.
    The metric is computed through the artifacts on the test set, or the validation set where none is given: on all of it, or
    on as much as the slower artifact does in the time that `LIMITS.metric_s` allows. Latencies come from fresh processes of
    both artifacts, interleaved; more are started while the answer is open.
    """
    budget = project.budget
    samples = _time(bench, budget, artifacts, inputs, scratch)
    split = "test" if project.test else "valid"
    stacked, targets = _stack(project, split, inputs)
    total = len(targets)
    seconds = LIMITS.emulated_metric_s if bench.device.emulated else LIMITS.metric_s
    calls = max(1, int(seconds * 1e9 / max(stats.latency(s).mid for s in samples)))
    stacked, targets = [column[:calls] for column in stacked], targets[: calls * inputs[0].shape[0]]
    outputs = [_outputs(bench, artifact, stacked, inputs, len(targets)) for artifact in artifacts]
    metric = user.metric_function(project)
    metrics = [_finite(project, metric(torch.from_numpy(o), targets)) for o in outputs]
    budget_ns = budget.resolve(stats.latency(samples[0]).mid)
    checks = [
        *_numerics(networks[1], stacked, outputs[1]),
        Check(
            "metric_drop",
            Outcome.PASS if metrics[0] - metrics[1] <= project.max_metric_drop + 1e-9 else Outcome.FAIL,
            metrics[0] - metrics[1],
            project.max_metric_drop,
            f"unpruned minus pruned, both through their artifacts, on {_of(len(targets), total)} {split} samples",
        ),
        *_latency(budget, budget_ns, samples, artifacts[0].sha256 == artifacts[1].sha256, bench.discarded),
        _at_most("size_bytes", artifacts[1].size_bytes, artifacts[0].size_bytes),
        _at_most("peak_memory_bytes", _peak(samples[1]), round(MEMORY * _peak(samples[0]))),
    ]
    figures = [
        Figures(
            stats.latency(s, 0.5).mid / 1e6,
            stats.latency(s, 0.9).mid / 1e6,
            value,
            nets.parameters(network),
            count,
            artifact.size_bytes,
        )
        for s, value, network, count, artifact in zip(samples, metrics, networks, macs, artifacts, strict=True)
    ]
    return Verdict(
        artifacts[1].sha256, budget_ns / 1e6, figures[0], figures[1], tuple(checks), emulated=bench.device.emulated
    )


def _of(count: int, total: int) -> str:
    return f"the {total}" if count == total else f"the first {count} of {total}"


def _at_most(name: str, value: int, limit: int) -> Check:
    return Check(name, Outcome.PASS if value <= limit else Outcome.FAIL, value, limit)


def _peak(samples: Samples) -> int:
    return int(np.median([run.peak_memory_bytes for run in samples.runs]))


def _finite(project: Project, value: float) -> float:
    if not math.isfinite(value):
        raise UsageError(f"{project.path}: [data] metric gives {value}; it must be a finite number")
    return float(value)


# ------------------------------------------------------------------------------------------------------ outputs


def _stack(project: Project, split: str, inputs: tuple[Tensor, ...]) -> tuple[list[np.ndarray], Tensor]:
    """All samples of a split in calls of the artifact's batch size: inputs (calls, batch, …), targets (samples, …)."""
    columns: list[list[Tensor]] = [[] for _ in inputs]
    targets = []
    for batch, target in user.batches(project, split):
        for column, tensor in zip(columns, batch, strict=True):
            column.append(tensor)
        targets.append(target)
    size = inputs[0].shape[0]
    stacked = []
    for column, example in zip(columns, inputs, strict=True):
        samples = torch.cat(column)
        if samples.shape[1:] != example.shape[1:]:
            raise UsageError(
                f"{project.path}: [data] {split} gives inputs of shape {tuple(samples.shape[1:])},"
                f" [model] inputs of {tuple(example.shape[1:])}; they must be the same"
            )
        missing = -len(samples) % size
        whole = torch.cat([samples, samples[:1].expand(missing, *samples.shape[1:])])
        stacked.append(whole.reshape(-1, size, *samples.shape[1:]).contiguous().numpy())
    return stacked, torch.cat(targets)


def _outputs(
    bench: Bench, artifact: Artifact, stacked: Sequence[np.ndarray], inputs: tuple[Tensor, ...], count: int
) -> np.ndarray:
    """The artifact's first output on every sample: (samples, …)."""
    result = bench.outputs(artifact.files[0], stacked)[0]
    flat: np.ndarray = result.reshape(-1, *result.shape[2:])[:count]
    if not np.isfinite(flat).all():
        raise UsageError(
            f"{artifact.files[0].name} gives outputs that are not finite on real data; check the model's ranges"
        )
    return flat


def _numerics(network: nn.Module, stacked: Sequence[np.ndarray], got: np.ndarray) -> list[Check]:
    with torch.no_grad():
        calls = [network.eval()(*(torch.from_numpy(column[i]) for column in stacked)) for i in range(len(stacked[0]))]
    wanted = torch.cat(calls).numpy()[: len(got)]
    error = float(np.abs(wanted - got).max())
    scale = float(np.abs(wanted).max())
    cosine = float((wanted * got).sum() / (np.linalg.norm(wanted) * np.linalg.norm(got)))
    checks = [
        _below("output_max_abs_error", error, RELATIVE * scale, "against torch, on every sample"),
        _below("output_max_relative_error", error / scale, RELATIVE, "of the largest output"),
        _above("output_cosine", cosine, COSINE),
    ]
    if wanted.ndim == 2:
        agreement = float((wanted.argmax(1) == got.argmax(1)).mean())
        checks.append(_above("top1_agreement", agreement, AGREEMENT, "with torch"))
    return checks


def _below(name: str, value: float, limit: float, note: str = "") -> Check:
    return Check(name, Outcome.PASS if value <= limit else Outcome.FAIL, value, limit, note)


def _above(name: str, value: float, limit: float, note: str = "") -> Check:
    note = f"at least; {note}" if note else "at least"
    return Check(name, Outcome.PASS if value >= limit else Outcome.FAIL, value, limit, note)


# ------------------------------------------------------------------------------------------------------ latency


def _time(
    bench: Bench, budget: Budget, artifacts: tuple[Artifact, Artifact], inputs: tuple[Tensor, ...], scratch: Path
) -> tuple[Samples, Samples]:
    files = bench.save_inputs([tensor.numpy() for tensor in inputs], scratch)
    runs: tuple[Samples, Samples] | None = None
    for _ in range(ROUNDS):
        unpruned, pruned = bench.time([artifact.files[0] for artifact in artifacts], files, PROCESSES)
        if runs is not None:
            unpruned, pruned = Samples(runs[0].runs + unpruned.runs), Samples(runs[1].runs + pruned.runs)
        runs = unpruned, pruned
        if _against_budget(budget, runs)[0] is not Outcome.INCONCLUSIVE:
            break
    assert runs is not None
    return runs


def _against_budget(budget: Budget, samples: tuple[Samples, Samples]) -> tuple[Outcome, str]:
    """A share is decided on the ratio of interleaved pairs, which the machine's drift leaves alone; a time on itself."""
    if budget.fraction is not None:
        interval = stats.ratio(samples[1], samples[0])
        text = f"{100 * interval.low:.1f} to {100 * interval.high:.1f}% of the unpruned, limit {budget}"
        return stats.decide(interval, budget.fraction), text
    interval = stats.latency(samples[1])
    text = f"{interval.low / 1e6:.4g} to {interval.high / 1e6:.4g} ms"
    return stats.decide(interval, float(budget.ns or 0)), text


def _latency(
    budget: Budget, budget_ns: float, samples: tuple[Samples, Samples], same: bool, discarded: int
) -> list[Check]:
    outcome, text = _against_budget(budget, samples)
    note = f"{text}; {len(samples[1].runs)} processes each, interleaved"
    if discarded:
        note += f"; {discarded} disturbed ones discarded"
    checks = [Check("latency_p50_ms", outcome, stats.latency(samples[1]).mid / 1e6, budget_ns / 1e6, note)]
    if not same:  # against itself, a tail can only be inconclusive
        tail = stats.ratio(samples[1], samples[0], q=0.9)
        limit = TAIL * stats.latency(samples[0], 0.9).mid / 1e6
        note = f"no worse than the unpruned tail; {100 * tail.low:.1f} to {100 * tail.high:.1f}% of it"
        checks.append(
            Check("latency_p90_ms", stats.decide(tail, TAIL), stats.latency(samples[1], 0.9).mid / 1e6, limit, note)
        )
    return checks
