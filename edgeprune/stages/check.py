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
import torch
from torch import Tensor

from edgeprune.devices.bench import Bench, Measured, until
from edgeprune.devices.transports.base import printable
from edgeprune.frontends import user_code as user
from edgeprune.latency import stats
from edgeprune.limits import LIMITS
from edgeprune.records import (
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
from edgeprune.stages import accuracy

PROCESSES = 6  # fresh ones, a round, in which the artifact is alone
PAIRS = 10  # processes, a round, in which it and the baseline's take turns
ROUNDS = 3  # of more of them while an answer is open
SURE = 1 - 0.05 / ROUNDS  # of a bound in each round, so that one of them all errs in 5 % at most (Bonferroni)
MOST = 1000  # processes: what would take more is not decided by more of them
PROFILED = 3  # processes for times by operator
FLOOR = 0.03  # a slowdown that is let pass
EMULATED_FLOOR = 0.005  # where the clock counts instructions
FREE = 0.25  # what the clock of a machine whose frequency is free may explain between two sessions
WARMER_MC = 15_000  # thousandths of a degree, between two sessions
GROWTH = 1.05  # of memory and of size
SHIFTED = 0.01  # of the network, by which an operator is slower that is worth naming
DEVICE_FACTS = ("machine", "cpu", "cores", "system", "runtime", "runtime_version", "emulated", "simulated")
POLICY = ("governor", "power_mode", "clocks_pinned")  # of clocks, among a device's conditions
SYSTEM = ("os", "firmware")  # among them too; a baseline from before they were told does not have them


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
) -> tuple[Measurement, Samples | None, list[Check]]:
    """The artifact on the device, alone, with its metric, on as many samples as `known` has where that is given; the times
    of the `reference`, of which budgets may be shares, interleaved with it; where there is no metric, the check that fails for
    it. `files` are the example `inputs` for the device.
    """
    models = [artifact.files[0]] + ([reference.files[0]] if reference else [])
    taken = timed(bench, models, files, budgets)
    split = "test" if project.test else "valid"
    torch.manual_seed(project.seed)  # the data may shuffle
    if known is not None:  # the same samples, however long they take today: others are no comparison
        stacked, targets = user.stacked(project, split, inputs, known.count)
    else:
        typical_ns = stats.latency(taken[0]).mid
        seconds = LIMITS.emulated_metric_s if bench.device.emulated else LIMITS.check_metric_s
        stacked, targets, _ = accuracy.samples(project, bench, split, inputs, artifact, typical_ns, seconds)
    metric, failed = None, list[Check]()
    try:
        outputs = accuracy.outputs_of(bench, artifact, stacked, len(targets))
        metric = accuracy.metric(project, bench, artifact, split, len(inputs[0]), outputs, targets)
    except accuracy.NotFinite as error:
        failed = [error.check("metric_not_finite")]
    measurement = Measurement(
        artifact=artifact.sha256,
        files=tuple(file.name for file in artifact.files),
        precision=artifact.precision,
        threads=target.threads,
        dla=target.dla,
        device=bench.device,
        samples=taken[0],
        size_bytes=artifact.size_bytes,
        metric=metric,
        data=_content([*stacked, targets.numpy()]),
        count=len(targets),
    )
    return measurement, taken[1] if reference else None, failed


def timed(bench: Bench, models: Sequence[Path], files: Sequence[Path], budgets: Sequence[Budget]) -> list[Samples]:
    """Fresh processes of the first model and, interleaved, of a second that budgets are shares of: more while a budget is
    open, for some rounds."""

    def take(so_far: list[Samples]) -> list[Samples]:
        return bench.time(models, files, PROCESSES, _runs(budgets, so_far[0]) if so_far else LIMITS.timed_runs_min)

    def decided(taken: list[Samples]) -> bool:
        asked = against_budgets(budgets, taken[0], taken[-1])
        return all(check.outcome is not Outcome.INCONCLUSIVE for check in asked)

    return until(take, decided, ROUNDS)


def _runs(budgets: Sequence[Budget], so_far: Samples) -> int:
    """Runs a process that the quantiles asked for take: twice what bounds them at all, within the time there is."""
    wanted = max(2 * stats.needed(budget.quantile, SURE) for budget in budgets) / PROCESSES
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


def against_budgets(budgets: Sequence[Budget], samples: Samples, reference: Samples) -> list[Check]:
    """A check a budget; where several are of one quantile, their names tell them apart."""
    quantiles = [budget.quantile for budget in budgets]
    found = [against_budget(budget, samples, reference) for budget in budgets]
    return [
        replace(check, name=f"{check.name} ({budget})") if quantiles.count(budget.quantile) > 1 else check
        for budget, check in zip(budgets, found, strict=True)
    ]


def against_budget(budget: Budget, samples: Samples, reference: Samples) -> Check:
    """A budget's check; of a share where `reference` is what it is a share of, both interleaved."""
    q, processes = budget.quantile, len(samples.runs)
    name, mid = f"latency_p{100 * q:.0f}_ms", stats.latency(samples, q).mid
    limit = budget.resolve(stats.latency(reference, q).mid)
    if budget.fraction is not None:
        fewest = min((samples, reference), key=_count)
        if _count(fewest) < stats.needed(q, SURE):
            return Check(name, Outcome.INCONCLUSIVE, mid / 1e6, limit / 1e6, _too_few(fewest, q))
        share = stats.ratio(samples, reference, q)
        note = f"{_percent(share)} of the unpruned, limit {budget}{undecided(share, budget.fraction, processes)}"
        return Check(name, stats.decide(share, budget.fraction), mid / 1e6, limit / 1e6, note)
    interval = stats.latency(samples) if q == 0.5 else stats.quantile(samples, q, SURE)
    if interval is None:
        return Check(name, Outcome.INCONCLUSIVE, mid / 1e6, limit / 1e6, _too_few(samples, q))
    note = f"{interval.low / 1e6:.4g} to {interval.high / 1e6:.4g} ms at 95% confidence, {processes} processes"
    note += undecided(interval, limit, processes)
    return Check(name, stats.decide(interval, limit), interval.mid / 1e6, limit / 1e6, note)


def _count(samples: Samples) -> int:
    return sum(len(run.times_ns) for run in samples.runs)


def _too_few(samples: Samples, q: float) -> str:
    """Why there is no bound of a quantile, and what to do."""
    taken, least = _count(samples), stats.needed(q, SURE)
    if taken < least:
        return f"takes {least} times for 95% confidence, and there was time for {taken}"
    return (
        f"takes {least} independent times for 95% confidence; the {taken} taken tell as much as"
        f" {stats.independent(samples, q)}, since processes differ: quiet or pin the device"
    )


def undecided(interval: Interval, limit: float, processes: int) -> str:
    """What would decide where the limit is inside the interval, whose width shrinks with the root of the processes; else
    nothing."""
    if stats.decide(interval, limit) is not Outcome.INCONCLUSIVE:
        return ""
    inside = interval.mid <= limit
    gap, width = abs(limit - interval.mid), interval.high - interval.mid if inside else interval.mid - interval.low
    if processes * width**2 <= MOST * gap**2:
        most = math.ceil(processes * (width / gap) ** 2)
        return f"; some {max(most, processes + 1)} processes would decide it: run again, on a device that is quiet or pinned"
    return f"; no number of runs separates {100 * gap / limit:.2g}% from the limit: quiet or pin the device, or move the limit"


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
    processes = len(taken[0].runs)
    note = f"{_percent(ratio)} of the baseline's artifact; {processes} processes in which both take turns"
    return Check("slowdown", outcome, ratio.mid, 1 + floor, note + undecided(ratio, 1 + floor, processes))


def against_recorded(now: Measurement, then: Measurement, floor: float, lost: str = "") -> Check:
    """The slowdown against what was recorded: as sure as the device repeats itself from one session to the next.

    Where its frequency is free, a quarter may be the machine's; what may be beyond that is not decided. Nor is what may be
    beyond `floor` where the artifact is another one, to which no machine owes that quarter; `lost` is why the baseline's
    own takes no turns with it.
    """
    a, b = stats.latency(now.samples), stats.latency(then.samples)
    ratio = Interval(a.low / b.high, a.mid / b.mid, a.high / b.low)
    why = f"; the baseline's artifact is not there to take turns with: {lost}" if lost else ""
    note = f"{_percent(ratio)} of what was recorded{why}"
    if repeats(now):
        outcome, other = stats.decide(ratio, 1 + floor), moved(now, then)
        note += undecided(ratio, 1 + floor, len(now.samples.runs))
        if other and outcome is Outcome.FAIL:
            outcome, note = Outcome.INCONCLUSIVE, f"{note}, but {other}"
        return Check("slowdown", outcome, ratio.mid, 1 + floor, note)
    limit = 1 + (floor if lost else FREE)
    outcome = Outcome.PASS if ratio.high <= limit else Outcome.INCONCLUSIVE
    note += ", by a machine whose clock is free; pin it for less: governor performance"
    return Check("slowdown", outcome, ratio.mid, limit, note)


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
    told = [name for name in SYSTEM if name in then.conditions]
    facts += [(name, then.conditions.get(name), now.conditions.get(name)) for name in (*POLICY, *told)]
    if repeats(now) and repeats(then):
        before, after = (_number(m, "frequency_khz") for m in (then, now))
        if before and after and abs(after / before - 1) > 0.02:
            facts.append(("frequency_khz", before, after))
    return tuple(f"{name} was {_fact(before)}, is {_fact(after)}" for name, before, after in facts if before != after)


def _number(measured: Measurement, condition: str) -> float | None:
    """A condition that is a number; None where the device did not tell it, or as something else."""
    value = measured.conditions.get(condition)
    return None if isinstance(value, str) else value


def _fact(value: object) -> str:
    return "not told" if value is None else printable(str(value), 100)


def moved(now: Measurement, then: Measurement) -> str:
    """What makes recorded times of this session and of the baseline's differ that turns do not mind, or nothing."""
    if now.device.serial != then.device.serial:
        return "another device of the same kind"
    before, after = (_number(m, "temperature_mc") for m in (then, now))
    if before is not None and after is not None and abs(after - before) > WARMER_MC:
        return f"the temperature was {before / 1000:.0f} °C, is {after / 1000:.0f} °C"
    return ""


def held(project: Project, now: Measurement, then: Measurement, comparable: bool) -> list[Check]:
    """Metric, size and, on a device where it is `comparable`, memory against the baseline's."""
    checks = [accuracy.below("size_bytes", now.size_bytes, round(GROWTH * then.size_bytes))]
    if now.metric is not None and then.metric is not None:  # a baseline has one; without one of today's, a check failed
        drop = then.metric - now.metric
        if now.data == then.data:
            outcome = Outcome.PASS if drop <= project.max_metric_drop + 1e-9 else Outcome.FAIL
            note = f"the baseline's minus this one's, on {now.count} samples"
        else:
            outcome, note = Outcome.INCONCLUSIVE, "the data has changed since the baseline; make a new one: --update"
        checks.insert(0, Check("metric_drop", outcome, drop, project.max_metric_drop, note))
    if comparable:
        limit = round(GROWTH * then.samples.peak_memory_bytes)
        checks.append(accuracy.below("peak_memory_bytes", now.samples.peak_memory_bytes, limit))
    return checks


def shifts(before: Mapping[str, int], after: Mapping[str, int], most: int = 5) -> tuple[tuple[Shift, ...], str]:
    """The operators that take longer, by at least `SHIFTED` of all, those first that add most. Where none adds as much, the
    one that adds most, and what to say of it."""
    slower = [Shift(name, before.get(name, 0), ns) for name, ns in after.items() if ns > before.get(name, 0)]
    slower.sort(key=lambda one: one.before_ns - one.after_ns)
    found = [one for one in slower if one.after_ns - one.before_ns > SHIFTED * sum(before.values())]
    if found:
        return tuple(found[:most]), ""
    if not slower:
        return (), "the profiler sees no operator that takes longer"
    return tuple(slower[:1]), f"spread evenly over {len(slower)} operators"


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
    lost: str,
) -> Report:
    """What `now` is against the `baseline`, added to the `checks` that need none; `kept` is the baseline's artifact, `lost`
    why there is none, `files` are the example inputs."""
    report = Report(
        project=project.name,
        target=target.name,
        artifact=now.artifact,
        checks=tuple(checks),
        baseline="",
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
    other = then.artifact != now.artifact
    models = [artifact.files[0]] + ([kept] if kept and other else [])
    if models[1:]:
        slowdown = against_other(bench, models, files, floor)
    else:
        slowdown = against_recorded(now, then, floor, lost if other else "")
    slower: tuple[Shift, ...] = ()
    if slowdown.outcome is Outcome.FAIL:
        after, *before = operators(bench, models, files)
        slower, said = shifts(before[0] if before else baseline.layer_ns, after)
        slowdown = replace(slowdown, note=f"{slowdown.note}; {said}") if said else slowdown
    return replace(report, slower=slower, checks=(*checks, slowdown, *held(project, now, then, comparable=True)))


def _told(baseline: Baseline) -> str:
    day = time.strftime("%Y-%m-%d", time.gmtime(baseline.created_s))
    commit = f", commit {printable(baseline.commit, 100)}" if baseline.commit else ""
    return f"of {day}{commit}: {printable(baseline.reason, LIMITS.message_chars)}"


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
    records = [one for one in records if getattr(one, figure) is not None]  # an artifact may have had no metric
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
