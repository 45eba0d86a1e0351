"""The verify verb: does the artifact compute what the network computes, as fast as was asked, on the device?

And, before that, which precision is worth having: the fastest whose metric holds.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from edgeprune.devices.bench import Bench, until
from edgeprune.errors import DeviceError
from edgeprune.latency import stats
from edgeprune.limits import LIMITS
from edgeprune.network import surgery as nets
from edgeprune.records import (
    Artifact,
    Budget,
    Candidate,
    Check,
    Choice,
    Figures,
    Outcome,
    Project,
    Samples,
    Verdict,
)
from edgeprune.stages import accuracy

TAIL = 1.05  # the tail may not be worse than the unpruned network's, but for noise
MEMORY = 1.05  # likewise for a process's peak memory, most of which is the runtime
PROCESSES = 8  # fresh processes of each artifact, a round
ROUNDS = 4  # of more processes while the answer is inconclusive

log = logging.getLogger("edgeprune")


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
    slowest_ns = max(stats.latency(s).mid for s in samples)
    stacked, targets, total = accuracy.samples(
        project, bench, split, inputs, artifacts[0], slowest_ns, _metric_s(bench)
    )
    outputs = [accuracy.outputs_of(bench, artifact, stacked, len(targets)) for artifact in artifacts]
    metrics = [
        accuracy.metric(project, bench, artifact, split, len(inputs[0]), output, targets)
        for artifact, output in zip(artifacts, outputs, strict=True)
    ]
    where = "in closed loop" if project.closed_loop else f"on {_of(len(targets), total)} {split} samples"
    budget_ns = budget.resolve(stats.latency(samples[0]).mid)
    checks = [
        *accuracy.numerics(accuracy.computed(networks[1], stacked, len(targets)), outputs[1], artifacts[1].precision),
        Check(
            "metric_drop",
            Outcome.PASS if metrics[0] - metrics[1] <= project.max_metric_drop + 1e-9 else Outcome.FAIL,
            metrics[0] - metrics[1],
            project.max_metric_drop,
            f"unpruned minus pruned, both through their artifacts, {where}",
        ),
        *_latency(budget, budget_ns, samples, artifacts[0].sha256 == artifacts[1].sha256, bench.discarded),
        accuracy.below("size_bytes", artifacts[1].size_bytes, artifacts[0].size_bytes),
        accuracy.below("peak_memory_bytes", samples[1].peak_memory_bytes, round(MEMORY * samples[0].peak_memory_bytes)),
    ]
    figures = [
        Figures(
            stats.latency(s, 0.5).mid / 1e6,
            stats.latency(s, 0.9).mid / 1e6,
            value,
            nets.parameters(network),
            count,
            artifact.size_bytes,
            artifact.operators,
        )
        for s, value, network, count, artifact in zip(samples, metrics, networks, macs, artifacts, strict=True)
    ]
    return Verdict(
        artifacts[1].sha256,
        budget_ns / 1e6,
        figures[0],
        figures[1],
        tuple(checks),
        emulated=bench.device.emulated,
        simulated=bench.device.simulated,
    )


def _metric_s(bench: Bench) -> float:
    return LIMITS.emulated_metric_s if bench.device.emulated else LIMITS.metric_s


def _of(count: int, total: int) -> str:
    return f"the {total}" if count == total else f"the first {count} of {total}"


def fastest(
    project: Project,
    bench: Bench,
    inputs: tuple[Tensor, ...],
    reference: Artifact,
    candidates: Mapping[str, Artifact],
    scratch: Path,
) -> Choice:
    """The fastest of the candidates, `{precision: the unpruned network}`, whose metric holds against the fp32 `reference`.

    Measured in turns on the device; the metric is computed as `verify` does, on the validation set. See `best`.

    Raises `DeviceError` where the device can run none; one of several that it cannot run is left out with a warning.
    """
    files = bench.save_inputs([tensor.numpy() for tensor in inputs], scratch)
    runnable = {"fp32": reference}
    for precision in (name for name in candidates if name != "fp32"):
        try:
            bench.measure([[candidates[precision].files[0]]], files)
        except DeviceError as error:
            if len(candidates) == 1:
                raise
            log.warning("%s is left out: %s", precision, error)
        else:
            runnable[precision] = candidates[precision]
    taken = bench.compare([artifact.files[0] for artifact in runnable.values()], files, PROCESSES)
    times = dict(zip(runnable, taken, strict=True))
    slowest_ns = max(stats.latency(samples).mid for samples in taken)
    stacked, targets, _ = accuracy.samples(project, bench, "valid", inputs, reference, slowest_ns, _metric_s(bench))
    metrics = {
        precision: accuracy.metric(
            project,
            bench,
            artifact,
            "valid",
            len(inputs[0]),
            accuracy.outputs_of(bench, artifact, stacked, len(targets)),
            targets,
        )
        for precision, artifact in runnable.items()
    }
    measured = tuple(Candidate(name, stats.latency(times[name]), metrics[name]) for name in runnable)
    found = {name: times[name] for name in candidates if name in runnable}
    if not found:
        raise DeviceError(f"the device can run none of {', '.join(candidates)}")
    return Choice(best(found, metrics, metrics["fp32"] - project.max_metric_drop), measured)


def best(times: Mapping[str, Samples], metrics: Mapping[str, float], least: float) -> str:
    """The fastest with a metric of at least `least`, where none of them has it the one with the best metric.

    `times` are of the same processes. One that is not surely faster than those before it is not taken for them.
    """
    holds = [name for name in times if metrics[name] >= least - 1e-9]
    if not holds:
        return max(times, key=metrics.__getitem__)
    chosen = holds[0]
    for name in holds[1:]:
        if stats.ratio(times[name], times[chosen]).high < 1:
            chosen = name
    return chosen


# ------------------------------------------------------------------------------------------------------ latency


def _time(
    bench: Bench, budget: Budget, artifacts: tuple[Artifact, Artifact], inputs: tuple[Tensor, ...], scratch: Path
) -> tuple[Samples, Samples]:
    files = bench.save_inputs([tensor.numpy() for tensor in inputs], scratch)
    models = [artifact.files[0] for artifact in artifacts]
    unpruned, pruned = until(
        lambda _: bench.time(models, files, PROCESSES),
        lambda both: _against_budget(budget, (both[0], both[1]))[0] is not Outcome.INCONCLUSIVE,
        ROUNDS,
    )
    return unpruned, pruned


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
    if same and budget.fraction is not None:  # one artifact is all of itself, whatever two measurements of it say
        outcome, text = (Outcome.PASS if budget.fraction >= 1 else Outcome.FAIL), "it is the unpruned artifact"
    else:
        outcome, text = _against_budget(budget, samples)
    note = f"{text}; {len(samples[1].runs)} processes each, interleaved"
    if discarded:
        note += f"; {discarded} disturbed ones discarded"
    runs = samples[1].runs
    if any(run.copies_ns for run in runs):
        note += f"; on the GPU; copies to it and back: {np.median([run.copies_ns for run in runs]) / 1e6:.4g} ms more"
    if any(run.fallbacks for run in runs):
        note += f"; {max(run.fallbacks for run in runs)} layers fell back from the DLA to the GPU"
    checks = [Check("latency_p50_ms", outcome, stats.latency(samples[1]).mid / 1e6, budget_ns / 1e6, note)]
    if not same:  # against itself, a tail can only be inconclusive
        tail = stats.ratio(samples[1], samples[0], q=0.9)
        limit = TAIL * stats.latency(samples[0], 0.9).mid / 1e6
        note = f"no worse than the unpruned tail; {100 * tail.low:.1f} to {100 * tail.high:.1f}% of it"
        checks.append(
            Check("latency_p90_ms", stats.decide(tail, TAIL), stats.latency(samples[1], 0.9).mid / 1e6, limit, note)
        )
    return checks
