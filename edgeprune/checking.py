"""The check verb: is the artifact still inside its budgets, and no slower, larger or worse than its baseline?

A baseline is a measurement that somebody has declared good; it and its artifact are kept in `profiles/`. Where the artifact is
another one now, both take turns in the same processes, and their ratio decides. Where it is the same, only the device can have
changed, and what was recorded decides as far as such a device repeats itself. See docs/ci.md.
"""

from __future__ import annotations

import hashlib
import math
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from torch import Tensor

from edgeprune import accuracy, stats
from edgeprune.bench import Bench, Measured, until
from edgeprune.limits import LIMITS
from edgeprune.transports.base import printable
from edgeprune.types import (
    Artifact,
    Baseline,
    Budget,
    Check,
    History,
    Interval,
    Measurement,
    Outcome,
    Project,
    Record,
    Report,
    Samples,
    Shift,
    Target,
)

PROCESSES = 6  # fresh ones, a round, in which the artifact is alone
PAIRS = 10  # processes, a round, in which it and the baseline's take turns
ROUNDS = 3  # of more of them while an answer is open
PROFILED = 3  # processes for times by operator
FLOOR = 0.03  # a slowdown that is let pass
EMULATED_FLOOR = 0.005  # where the clock counts instructions
FREE = 0.25  # what the clock of a machine whose frequency is free may explain between two sessions
WARMER_MC = 15_000  # thousandths of a degree, between two sessions
GROWTH = 1.05  # of memory and of size
SHIFTED = 0.01  # of the network, by which an operator is slower that is worth naming
DEVICE_FACTS = ("machine", "cpu", "cores", "system", "runtime", "runtime_version", "emulated", "simulated")
POLICY = ("governor", "power_mode", "clocks_pinned")  # of clocks, among a device's conditions


def measure(
    project: Project,
    target: Target,
    bench: Bench,
    inputs: tuple[Tensor, ...],
    files: Sequence[Path],
    artifact: Artifact,
    budgets: Sequence[Budget],
    reference: Artifact | None,
    known: Measurement | None,
) -> tuple[Measurement, Samples | None]:
    """The artifact on the device, alone, with its metric, on as many samples as `known` has where that is given; and the times
    of the `reference`, of which budgets may be shares, interleaved with it. `files` are the example `inputs` for the device.
    """
    models = [artifact.files[0]] + ([reference.files[0]] if reference else [])
    taken = timed(bench, models, files, budgets)
    split = "test" if project.test else "valid"
    typical_ns = stats.latency(taken[0]).mid
    seconds = LIMITS.emulated_metric_s if bench.device.emulated else LIMITS.check_metric_s
    stacked, targets, _ = accuracy.samples(project, bench, split, inputs, artifact, typical_ns, seconds)
    if known is not None and known.count < len(targets):
        size = inputs[0].shape[0]
        stacked, targets = [column[: -(-known.count // size)] for column in stacked], targets[: known.count]
    outputs = accuracy.outputs(bench, artifact, stacked, len(targets))
    measurement = Measurement(
        artifact=artifact.sha256,
        files=tuple(file.name for file in artifact.files),
        precision=artifact.precision,
        threads=target.threads,
        dla=target.dla,
        device=bench.device,
        samples=taken[0],
        size_bytes=artifact.size_bytes,
        metric=accuracy.metric(project, outputs, targets),
        data=_content([*stacked, targets.numpy()]),
        count=len(targets),
    )
    return measurement, taken[1] if reference else None


def timed(bench: Bench, models: Sequence[Path], files: Sequence[Path], budgets: Sequence[Budget]) -> list[Samples]:
    """Fresh processes of the first model and, interleaved, of a second that budgets are shares of: more while a budget is
    open, for some rounds."""

    def take(so_far: list[Samples]) -> list[Samples]:
        return bench.time(models, files, PROCESSES, _runs(budgets, so_far[0]) if so_far else LIMITS.timed_runs_min)

    def decided(taken: list[Samples]) -> bool:
        asked = [against_budget(budget, taken[0], taken[-1]) for budget in budgets]
        return all(check.outcome is not Outcome.INCONCLUSIVE for check in asked)

    return until(take, decided, ROUNDS)


def _runs(budgets: Sequence[Budget], so_far: Samples) -> int:
    """Runs a process that the quantiles asked for take: twice what bounds them at all, within the time there is."""
    wanted = max(2 * stats.needed(budget.quantile) for budget in budgets) / PROCESSES
    affordable = LIMITS.check_timed_s / PROCESSES / (stats.latency(so_far).mid / 1e9)
    return max(LIMITS.timed_runs_min, min(math.ceil(wanted), int(affordable), LIMITS.timed_runs_max))


def _content(arrays: Sequence[np.ndarray]) -> str:
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def operators(bench: Bench, models: Sequence[Path], files: Sequence[Path]) -> list[dict[str, int]]:
    """Of every model, nanoseconds of each operator by the runtime's profiler: the median over processes they share."""
    found = bench.measure([models] * PROFILED, files, profiled=True)
    return [_by_name([batch[i] for batch in found]) for i in range(len(models))]


def _by_name(measured: Sequence[Measured]) -> dict[str, int]:
    totals: list[dict[str, int]] = []
    for one in measured:
        totals.append({})
        for name, ns in one.nodes:
            shown = printable(name, 200)
            totals[-1][shown] = totals[-1].get(shown, 0) + ns
    names = dict.fromkeys(name for total in totals for name in total)
    return {name: int(np.median([total.get(name, 0) for total in totals])) for name in names}


# ------------------------------------------------------------------------------------------------------- the checks


def against_budget(budget: Budget, samples: Samples, reference: Samples) -> Check:
    """A budget's check; of a share where `reference` is what it is a share of, both interleaved."""
    q = budget.quantile
    name = f"latency_p{100 * q:.0f}_ms"
    mid = stats.latency(samples, q).mid
    if budget.fraction is not None:
        share = stats.ratio(samples, reference, q)
        limit = budget.fraction * stats.latency(reference, q).mid
        note = f"{100 * share.low:.1f} to {100 * share.high:.1f}% of the unpruned, limit {budget}"
        return Check(name, stats.decide(share, budget.fraction), mid / 1e6, limit / 1e6, note)
    assert budget.ns is not None
    interval = stats.latency(samples) if q == 0.5 else stats.quantile(samples, q)
    if interval is None:
        have = sum(len(run.times_ns) for run in samples.runs)
        note = f"takes {stats.needed(q)} times for 95% confidence, and there was time for {have}"
        return Check(name, Outcome.INCONCLUSIVE, mid / 1e6, budget.ns / 1e6, note)
    note = f"{interval.low / 1e6:.4g} to {interval.high / 1e6:.4g} ms at 95% confidence, {len(samples.runs)} processes"
    return Check(name, stats.decide(interval, budget.ns), interval.mid / 1e6, budget.ns / 1e6, note)


def against_other(bench: Bench, models: Sequence[Path], files: Sequence[Path], floor: float) -> Check:
    """The slowdown of the first of two models against the second, in turns in the same processes."""

    def judged(taken: list[Samples]) -> tuple[Interval, Outcome]:
        ratio = stats.ratio(taken[0], taken[1])
        return ratio, stats.decide(ratio, 1 + floor)

    taken = until(
        lambda _: bench.compare(models, files, PAIRS),
        lambda taken: judged(taken)[1] is not Outcome.INCONCLUSIVE,
        ROUNDS,
    )
    ratio, outcome = judged(taken)
    note = f"{_percent(ratio)} of the baseline's artifact; {len(taken[0].runs)} processes in which both take turns"
    return Check("slowdown", outcome, ratio.mid, 1 + floor, note)


def against_recorded(now: Measurement, then: Measurement, floor: float) -> Check:
    """The slowdown against what was recorded: as sure as the device repeats itself from one session to the next.

    Where its frequency is free, a quarter may be the machine's; what is beyond that is not decided either.
    """
    a, b = stats.latency(now.samples), stats.latency(then.samples)
    ratio = Interval(a.low / b.high, a.mid / b.mid, a.high / b.low)
    if repeats(now):
        outcome, other, note = (
            stats.decide(ratio, 1 + floor),
            moved(now, then),
            f"{_percent(ratio)} of what was recorded",
        )
        if other and outcome is Outcome.FAIL:
            outcome, note = Outcome.INCONCLUSIVE, f"{note}, but {other}"
        return Check("slowdown", outcome, ratio.mid, 1 + floor, note)
    outcome = Outcome.PASS if ratio.low <= 1 + FREE else Outcome.INCONCLUSIVE
    note = f"{_percent(ratio)} of what was, by a machine whose clock is free; pin it for less: governor performance"
    return Check("slowdown", outcome, ratio.mid, 1 + FREE, note)


def _percent(ratio: Interval) -> str:
    return f"{100 * ratio.low:.1f} to {100 * ratio.high:.1f}%"


def repeats(measured: Measurement) -> bool:
    """Whether the device takes as long tomorrow: its clock counts instructions, or is pinned."""
    state = measured.conditions
    pinned = state.get("governor") == "performance" or bool(state.get("clocks_pinned"))
    return measured.device.emulated or pinned


def stale(now: Measurement, then: Measurement) -> tuple[str, ...]:
    """What has changed since the baseline, so that times cannot be compared."""
    facts = [(name, getattr(then.device, name), getattr(now.device, name)) for name in DEVICE_FACTS]
    facts += [(name, getattr(then, name), getattr(now, name)) for name in ("threads", "dla", "precision")]
    facts += [(name, then.conditions.get(name), now.conditions.get(name)) for name in POLICY]
    if repeats(now) and repeats(then):
        before, after = (m.conditions.get("frequency_khz") for m in (then, now))
        if before and after and abs(int(after) / int(before) - 1) > 0.02:
            facts.append(("frequency_khz", before, after))
    return tuple(f"{name} was {_fact(before)}, is {_fact(after)}" for name, before, after in facts if before != after)


def _fact(value: object) -> str:
    return "not told" if value is None else printable(str(value), 100)


def moved(now: Measurement, then: Measurement) -> str:
    """What makes recorded times of this session and of the baseline's differ that turns do not mind, or nothing."""
    if now.device.serial != then.device.serial:
        return "another device of the same kind"
    before, after = (m.conditions.get("temperature_mc") for m in (then, now))
    if before is not None and after is not None and abs(int(after) - int(before)) > WARMER_MC:
        return f"the temperature was {int(before) / 1000:.0f} °C, is {int(after) / 1000:.0f} °C"
    return ""


def held(project: Project, now: Measurement, then: Measurement, comparable: bool) -> list[Check]:
    """Metric, size and, on a device where it is `comparable`, memory against the baseline's."""
    drop = then.metric - now.metric
    if now.data == then.data:
        outcome = Outcome.PASS if drop <= project.max_metric_drop + 1e-9 else Outcome.FAIL
        note = f"the baseline's minus this one's, on {now.count} samples"
    else:
        outcome, note = Outcome.INCONCLUSIVE, "the data has changed since the baseline; make a new one: --update"
    checks = [
        Check("metric_drop", outcome, drop, project.max_metric_drop, note),
        accuracy.below("size_bytes", now.size_bytes, round(GROWTH * then.size_bytes)),
    ]
    if comparable:
        limit = round(GROWTH * then.samples.peak_memory_bytes)
        checks.append(accuracy.below("peak_memory_bytes", now.samples.peak_memory_bytes, limit))
    return checks


def shifts(before: Mapping[str, int], after: Mapping[str, int], most: int = 5) -> tuple[Shift, ...]:
    """The operators that take longer, by at least `SHIFTED` of all, those first that add most."""
    least = SHIFTED * sum(before.values())
    found = [Shift(name, before.get(name, 0), ns) for name, ns in after.items() if ns - before.get(name, 0) > least]
    return tuple(sorted(found, key=lambda one: one.before_ns - one.after_ns)[:most])


def check(
    project: Project,
    target: Target,
    bench: Bench,
    files: Sequence[Path],
    artifact: Artifact,
    now: Measurement,
    checks: Sequence[Check],
    baseline: Baseline | None,
    kept: Path | None,
) -> Report:
    """What `now` is against the `baseline`, added to the `checks` that need none; `kept` is the baseline's artifact,
    `files` are the example inputs."""
    report = Report(
        project=project.name,
        target=target.name,
        artifact=now.artifact,
        checks=tuple(checks),
        baseline="none; make one: edgeprune check --update --reason …",
        emulated=bench.device.emulated,
        simulated=bench.device.simulated,
    )
    if baseline is None:
        return report
    then = baseline.measured
    report = replace(report, baseline=_told(baseline))
    gone = stale(now, then)
    if gone:
        note = f"stale: {'; '.join(gone)}; if that is meant to be: edgeprune check --update --reason …"
        found = Check("baseline", Outcome.INCONCLUSIVE, len(gone), 0, note)
        return replace(report, stale=gone, checks=(*checks, found, *held(project, now, then, comparable=False)))
    floor = project.slowdown or (EMULATED_FLOOR if bench.device.emulated else FLOOR)
    models = [artifact.files[0]] + ([kept] if kept and then.artifact != now.artifact else [])
    slowdown = against_other(bench, models, files, floor) if models[1:] else against_recorded(now, then, floor)
    slower: tuple[Shift, ...] = ()
    if slowdown.outcome is Outcome.FAIL:
        after, *before = operators(bench, models, files)
        slower = shifts(before[0] if before else baseline.layer_ns, after)
    return replace(report, slower=slower, checks=(*checks, slowdown, *held(project, now, then, comparable=True)))


def _told(baseline: Baseline) -> str:
    day = time.strftime("%Y-%m-%d", time.gmtime(baseline.created_s))
    commit = f", commit {baseline.commit}" if baseline.commit else ""
    return f"of {day}{commit}: {baseline.reason}"


# --------------------------------------------------------------------------------------------- history and baselines


def record(measured: Measurement, outcome: Outcome, commit: str, created_s: int, note: str) -> Record:
    """What the history keeps of a check."""
    return Record(
        created_s,
        commit,
        measured.artifact,
        measured.device.identity,
        outcome,
        stats.latency(measured.samples),
        stats.latency(measured.samples, 0.9),
        measured.samples.peak_memory_bytes,
        measured.size_bytes,
        measured.metric,
        note,
    )


def history(project: str, target: Target, records: Sequence[Record], figure: str) -> History:
    """A figure of records, and where it changed its level; a device of another kind begins a new one by itself."""
    floor = EMULATED_FLOOR if target.emulated else FLOOR
    values = tuple(_figure(one, figure) for one in records)
    starts = [i for i in range(1, len(records)) if records[i].device != records[i - 1].device]
    bounds = [0, *starts, len(records)]
    found = set(starts)
    for begin, end in pairwise(bounds):
        part = values[begin:end]
        if all(value > 0 for value in part):
            found |= {begin + at for at in stats.changes(part, floor)}
    return History(project, target.name, figure, tuple(records), values, tuple(sorted(found)))


def _figure(one: Record, figure: str) -> float:
    value = getattr(one, figure)
    return float(value.mid if isinstance(value, Interval) else value)


def commit_of(folder: Path) -> str:
    """The commit that is checked out in a folder, with "+" where files differ from it; empty outside a repository."""
    git = ["git", "-C", str(folder)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
        if head.returncode or not re.fullmatch(r"[0-9a-f]{40,64}", head.stdout.strip()):
            return ""
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, timeout=30, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return head.stdout.strip()[:12] + ("+" if changed.stdout.strip() else "")
