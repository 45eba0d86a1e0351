"""The rules of `verify` and `check`: pure functions of samples, limits and records. Each returns a `Check`.

The pytest plugin uses them too. Statistics are in `latency.stats`; docs/ci.md explains each check.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgeprune.latency import stats
from edgeprune.records import Budget, Check, Interval, Measurement, Outcome, Precision, Samples
from edgeprune.records.budget import time_text
from edgeprune.stages.verdicts import comparable


@dataclass(frozen=True)
class Schedule:
    """How much is measured: fresh processes a round, and rounds at most while a check is inconclusive.

    `confidence` is the level of each round's interval.
    """

    processes: int
    rounds: int
    confidence: float = 0.95


@dataclass(frozen=True)
class Policy:
    """The constants of all verdicts, each with its reason. No project file sets them, except `[check] slowdown`."""

    # A verdict may deploy an artifact, so `verify` measures most: processes of each artifact. Each of ten looks at growing
    # samples has an error of 1.06 %, so that all together err in 5 % at most (Pocock 1977, table 1).
    verify: Schedule = Schedule(8, 10, 1 - 0.0106)
    # A check runs on every commit. An order-statistic interval of a median at 95 % needs six processes.
    check: Schedule = Schedule(6, 3)
    # Processes that load both artifacts: a slowdown is a few percent, so a round needs more of them.
    slowdown: Schedule = Schedule(10, 3)
    # Times by operator only rank operators. A median of three processes is enough.
    profiled: int = 3
    # The error of all rounds of a check together. Each round's bounds have a share of it (Bonferroni): see `sure`.
    error: float = 0.05
    # If a decision needs more processes than these, the note advises to quiet the device.
    most_processes: int = 1000
    # A slowdown of this share passes. Equal artifacts were measured to differ by 0.2 % (benchmarks/README.md).
    floor: float = 0.03
    # The same on a device whose clock counts instructions. Equal artifacts were measured to differ by 0.07 % there.
    emulated_floor: float = 0.005
    # If the clock is not pinned, a difference of this share between sessions may be drift. More is inconclusive.
    free_clock: float = 0.25
    # `verify`: the pruned network's p90 may exceed the original network's by noise only.
    tail: float = 1.05
    # A process's peak memory is mostly the runtime's, and varies.
    memory: float = 1.05
    # `check`: an artifact may grow a little when it is built again. In `verify` the pruned artifact may not be larger.
    size: float = 1.05
    # A metric is a mean of many numbers: its last digits are rounding.
    rounding: float = 1e-9
    # An operator is reported as slower if it adds this share of the network's time.
    shifted: float = 0.01

    @property
    def sure(self) -> float:
        """The confidence of a quantile's bound in each round of a check, so that all rounds err in `error` at most."""
        return 1 - self.error / self.check.rounds

    def allowed_slowdown(self, asked: float | None, emulated: bool) -> float:
        """The slowdown that passes: the project's if it gives one, else the device's default."""
        return asked or (self.emulated_floor if emulated else self.floor)


POLICY = Policy()


@dataclass(frozen=True)
class Tolerance:
    """How far an artifact's outputs may be from the fp32 network's.

    Attributes:
        relative: the largest error, relative to the largest output.
        cosine: the least cosine similarity of all outputs together.
        agreement: the least share of samples with the same class.
    """

    relative: float
    cosine: float
    agreement: float


# Rounding explains errors up to these. The metric decides what they cost in accuracy.
TOLERANCES: Mapping[Precision, Tolerance] = {
    "fp32": Tolerance(1e-3, 0.9999, 0.99),
    "fp16": Tolerance(2e-2, 0.999, 0.98),
    "int8": Tolerance(0.3, 0.98, 0.9),
    "int8-dynamic": Tolerance(0.3, 0.98, 0.9),
}


@dataclass(frozen=True)
class Timed:
    """An artifact's samples and, where budgets are shares of it, the original network's, interleaved with them.

    `same` is whether both are one artifact. `discarded` is how many disturbed processes were discarded. `confidence` is the
    level of the intervals of medians and ratios.
    """

    samples: Samples
    original: Samples | None = None
    same: bool = False
    discarded: int = 0
    confidence: float = 0.95


# ------------------------------------------------------------------------------------------------------- budgets


def budgets(asked: Sequence[Budget], timed: Timed) -> list[Check]:
    """A check for each budget. Where several budgets are of one quantile, their check names include the budget."""
    quantiles = [one.quantile for one in asked]
    found = [budget(one, timed) for one in asked]
    return [
        replace(check, name=f"{check.name} ({one})") if quantiles.count(one.quantile) > 1 else check
        for one, check in zip(asked, found, strict=True)
    ]


def budget(asked: Budget, timed: Timed) -> Check:
    """Decide a latency budget: a time or a share of the original network's latency, of any quantile.

    A share is decided on the ratio of interleaved processes, which drift of the machine does not change. If both artifacts are
    one, the share is 100 %. Raises `ValueError` for a share without the original network's samples.
    """
    if asked.fraction is None:
        return _time(asked, timed)
    if timed.original is None:
        raise ValueError(f"a budget of {asked} needs samples of the original network")
    return _share(asked, asked.fraction, timed, timed.original)


def _time(asked: Budget, timed: Timed) -> Check:
    q, limit_ns = asked.quantile, asked.resolve(0)
    median = stats.latency(timed.samples, confidence=timed.confidence)
    found = median if q == 0.5 else stats.quantile(timed.samples, q, POLICY.sure)
    if found is None:
        value_ns, outcome, note = _mid_ns(timed.samples, q), Outcome.INCONCLUSIVE, _too_few(timed.samples, q)
    else:
        value_ns, outcome = found.mid, stats.decide(found, limit_ns)
        note = f"{time_text(found.low, limit_ns)} to {time_text(found.high, limit_ns)} at 95% confidence"
        note += undecided(found, limit_ns, len(timed.samples.runs))
    return Check(_name(q), outcome, value_ns / 1e6, limit_ns / 1e6, note + _processes(timed))


def _share(asked: Budget, fraction: float, timed: Timed, original: Samples) -> Check:
    q = asked.quantile
    fewest = min((timed.samples, original), key=_count)
    if timed.same:  # two measurements of one artifact cannot decide a share of 100 %
        outcome, note = (Outcome.PASS if fraction >= 1 else Outcome.FAIL), "it is the original network's artifact"
    elif _count(fewest) < stats.needed(q, POLICY.sure):
        outcome, note = Outcome.INCONCLUSIVE, _too_few(fewest, q)
    else:
        share = stats.ratio(timed.samples, original, q, timed.confidence)
        outcome = stats.decide(share, fraction)
        note = f"{_percent(share)} of the original network, limit {asked}"
        note += undecided(share, fraction, len(timed.samples.runs))
    limit_ns = asked.resolve(_mid_ns(original, q))
    return Check(_name(q), outcome, _mid_ns(timed.samples, q) / 1e6, limit_ns / 1e6, note + _processes(timed))


def tail(pruned: Samples, original: Samples, confidence: float = 0.95) -> Check:
    """The pruned network's p90 must not exceed the original network's by more than noise; both are interleaved."""
    found = stats.ratio(pruned, original, 0.9, confidence)
    limit_ns = POLICY.tail * _mid_ns(original, 0.9)
    note = f"{_percent(found)} of the original network's, limit {100 * POLICY.tail:.0f}%"
    return Check(_name(0.9), stats.decide(found, POLICY.tail), _mid_ns(pruned, 0.9) / 1e6, limit_ns / 1e6, note)


def undecided(interval: Interval, limit: float, processes: int) -> str:
    """What would decide an inconclusive check, as the end of a note; empty for a decided one.

    The interval's width shrinks with the root of the number of processes.
    """
    if stats.decide(interval, limit) is not Outcome.INCONCLUSIVE:
        return ""
    passing = interval.mid <= limit
    gap, width = abs(limit - interval.mid), interval.high - interval.mid if passing else interval.mid - interval.low
    if processes * width**2 <= POLICY.most_processes * gap**2:
        wanted = max(math.ceil(processes * (width / gap) ** 2), processes + 1)
        return f"; about {wanted} processes would decide it: quiet or pin the device, and run again"
    return f"; no number of runs separates {100 * gap / limit:.2g}% from the limit: quiet or pin the device, or move the limit"


def _name(q: float) -> str:
    return f"latency_p{100 * q:.0f}_ms"


def _mid_ns(samples: Samples, q: float) -> float:
    return stats.latency(samples, q).mid


def _count(samples: Samples) -> int:
    return sum(len(run.times_ns) for run in samples.runs)


def _percent(ratio: Interval) -> str:
    return f"{100 * ratio.low:.1f} to {100 * ratio.high:.1f}%"


def _too_few(samples: Samples, q: float) -> str:
    """Why a quantile has no bound, and what to do."""
    taken, least = _count(samples), stats.needed(q, POLICY.sure)
    if taken < least:
        return f"95% confidence needs {least} timings, and there was time for {taken}"
    return (
        f"95% confidence needs {least} independent timings; processes differ, so that the {taken} taken count as"
        f" {stats.independent(samples, q)}: quiet or pin the device"
    )


def _processes(timed: Timed) -> str:
    """How an artifact was measured, as the end of a note."""
    runs = timed.samples.runs
    note = f"; {len(runs)} processes" + (" each, interleaved" if timed.original else "")
    if timed.discarded:
        note += f"; {timed.discarded} disturbed ones discarded"
    if any(run.copies_ns for run in runs):
        copies_ms = np.median([run.copies_ns for run in runs]) / 1e6
        note += f"; times of the GPU, copies to it and back take {copies_ms:.4g} ms more"
    if any(run.fallbacks for run in runs):
        note += f"; the GPU ran {max(run.fallbacks for run in runs)} layers that the DLA cannot run"
    return note


# ------------------------------------------------------------------------------------------------------ slowdown


def slowdown(now: Samples, baseline: Samples, allowed: float) -> Check:
    """The slowdown against the baseline's artifact, from processes that loaded both.

    Args:
        now: the artifact's samples.
        baseline: those of the baseline's artifact; process i of each is one process.
        allowed: the share of the baseline's latency by which the artifact may be slower.
    """
    ratio, processes = stats.ratio(now, baseline), len(now.runs)
    note = f"{_percent(ratio)} of the baseline's artifact, interleaved in {processes} processes"
    note += undecided(ratio, 1 + allowed, processes)
    return Check("slowdown", stats.decide(ratio, 1 + allowed), ratio.mid, 1 + allowed, note)


def slowdown_recorded(now: Measurement, then: Measurement, allowed: float, missing: str = "") -> Check:
    """The slowdown against a baseline's recorded times.

    It is as certain as the device repeats its times in another session. On a clock that is not pinned, `POLICY.free_clock` may
    be drift: larger slowdowns are inconclusive. If the artifact is not the baseline's, nothing above `allowed` passes there.

    Args:
        now: today's measurement.
        then: the baseline's.
        allowed: the share by which the artifact may be slower.
        missing: why the baseline's artifact cannot be measured; empty if it is the same artifact.
    """
    a, b = stats.latency(now.samples), stats.latency(then.samples)
    ratio = Interval(a.low / b.high, a.mid / b.mid, a.high / b.low)
    note = f"{_percent(ratio)} of the recorded baseline"
    if missing:
        note += f"; the baseline's artifact cannot be measured beside it: {missing}"
    if comparable.repeats(now):
        limit = 1 + allowed
        outcome, moved = stats.decide(ratio, limit), comparable.moved(now, then)
        note += undecided(ratio, limit, len(now.samples.runs))
        if moved and outcome is Outcome.FAIL:
            outcome, note = Outcome.INCONCLUSIVE, f"{note}, but {moved}"
    else:
        limit = 1 + (allowed if missing else POLICY.free_clock)
        outcome = Outcome.PASS if ratio.high <= limit else Outcome.INCONCLUSIVE
        note += "; the clock is not pinned: set the governor to performance to decide smaller slowdowns"
    return Check("slowdown", outcome, ratio.mid, limit, note)


# ---------------------------------------------------------------------------------------- metric, size, outputs


def metric_drop(before: float, now: float, allowed: float, note: str, name: str = "metric") -> Check:
    """The metric may fall by at most `allowed`; NaN fails. `name` is the metric's; its first word names the check."""
    drop = before - now
    outcome = Outcome.PASS if drop <= allowed + POLICY.rounding else Outcome.FAIL
    first, _, more = name.partition(" ")
    return Check(f"{first}_drop", outcome, drop, allowed, f"{name}: {note}" if more else note)


def growth(name: str, now: int, before: int, factor: float) -> Check:
    """A count of bytes may grow to at most `factor` times what it was."""
    return at_most(name, now, round(factor * before))


def outputs(expected: np.ndarray, got: np.ndarray, precision: Precision) -> list[Check]:
    """Compare an artifact's outputs with torch's.

    If torch's are all zero, no error is relative to them and they have no direction: the absolute error decides.

    Args:
        expected: torch's outputs, (samples, ...).
        got: the artifact's outputs, of the same shape.
        precision: the artifact's; see `TOLERANCES`.
    """
    limit = TOLERANCES[precision]
    expected, got = expected.astype(np.float64), got.astype(np.float64)  # no product overflows
    error, scale = float(np.abs(expected - got).max()), float(np.abs(expected).max())
    checks = [at_most("output_max_abs_error", error, limit.relative * scale, "against torch, on every sample")]
    if scale:
        lengths = float(np.linalg.norm(expected) * np.linalg.norm(got))
        cosine = float((expected * got).sum()) / lengths if lengths else 0.0  # zeros have no direction
        checks += [
            at_most("output_max_relative_error", error / scale, limit.relative, "of the largest output"),
            at_least("output_cosine", cosine, limit.cosine),
        ]
    if expected.ndim == 2:
        agreement = float((expected.argmax(1) == got.argmax(1)).mean())
        checks.append(at_least("top1_agreement", agreement, limit.agreement, "with torch"))
    return checks


def not_finite(name: str, count: int, note: str) -> Check:
    """The check that fails because `count` numbers are not finite."""
    return at_most(name, count, 0, note)


def at_most(name: str, value: float, limit: float, note: str = "") -> Check:
    """A check that passes up to the limit; NaN fails."""
    return Check(name, Outcome.PASS if value <= limit else Outcome.FAIL, value, limit, note)


def at_least(name: str, value: float, limit: float, note: str = "") -> Check:
    """A check that passes from the limit on; NaN fails."""
    note = f"at least; {note}" if note else "at least"
    return Check(name, Outcome.PASS if value >= limit else Outcome.FAIL, value, limit, note)
