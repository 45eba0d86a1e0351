"""`check` on what is deployed: is it healthy on every host, and is the service within its budgets by its own metrics?

The metrics are those of `runner.py --metrics`, in Prometheus' text format. Quantiles are of the last calls of each process.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from edgeprune.devices import fleet
from edgeprune.devices.fleet import Turn
from edgeprune.devices.releasing import open_host
from edgeprune.devices.validate import printable
from edgeprune.errors import DeviceError, InconclusiveError, UsageError
from edgeprune.latency import stats
from edgeprune.records import Budget, Check, Facts, FleetFacts, HostFacts, Outcome, Target
from edgeprune.records.budget import time_text
from edgeprune.stages.releases.signers import facts_of

ROW = re.compile(r'([a-zA-Z_:][\w:]{0,99})(?:\{((?:[a-z_]\w{0,49}="[^"\\]{0,200}",?){0,20})\})? (\S{1,40})')
LABEL = re.compile(r'([a-z_]\w*)="([^"]*)"')
ROWS = 5000
MOST_ERRORS = 0.01  # of all calls


@dataclass
class Process:
    """The figures of one process that serves; quantiles are in seconds."""

    release: str
    name: str
    calls: float = 0.0
    errors: float = 0.0
    window: float = 0.0
    quantiles: dict[float, float] = field(default_factory=dict)


def check(target: Target, service: str, budgets: Sequence[Budget], wait_s: float = 0.0) -> FleetFacts:
    """Judge the metrics of a service on every host of a target: a row for each process and budget.

    Raises:
        UsageError: there is no budget, or one that is a share: metrics have no original network to compare with.
    """
    if not budgets:
        raise UsageError('there is no budget to judge metrics by; give one, such as --budget "p99 20 ms"')
    shares = [str(budget) for budget in budgets if budget.ns is None]
    if shares:
        raise UsageError(f'a budget of {shares[0]} needs the original network; give a time, such as --budget "12 ms"')
    hosts = target.each_host
    worked = fleet.each(hosts, partial(_judged_on, service=service, budgets=budgets, wait_s=wait_s))
    found = facts_of(hosts, worked)
    return replace(found, hosts=tuple(map(_with_outcome, found.hosts)))


def _judged_on(turn: Turn, service: str, budgets: Sequence[Budget], wait_s: float) -> tuple[Facts, ...]:
    with open_host(turn.name, turn.target, wait_s, turn.left_s) as host:
        processes = parsed(host.metrics(service))
    if not processes:
        raise InconclusiveError(
            f"no process serves {service}: it must load the release by its runner.py and make calls"
        )
    return tuple(_fact(one, check) for one in processes for check in judged(one, budgets))


def _fact(one: Process, check: Check) -> Facts:
    return {
        "process": one.name,
        "release": one.release,
        "check": check.name,
        "outcome": str(check.outcome),
        "value": f"{check.value:.6g}",
        "limit": f"{check.limit:.6g}",
        "note": check.note,
    }


def _with_outcome(host: HostFacts) -> HostFacts:
    """The host, with the first of its worst checks as its error."""
    for outcome in (Outcome.FAIL, Outcome.INCONCLUSIVE):
        worst = next((fact for fact in host.facts if fact["outcome"] == outcome), None)
        if worst and not host.error:
            text = f"{worst['check']} of process {worst['process']} is {worst['value']}, limit {worst['limit']} ({outcome})"
            return replace(host, error=text, exit_code=outcome.exit_code)
    return host


def judged(one: Process, budgets: Sequence[Budget]) -> Iterator[Check]:
    """The checks of one process."""
    for budget in budgets:
        q, limit_ns = budget.quantile, budget.resolve(0)
        name = f"latency_p{100 * q:.0f}_ms"
        if q not in one.quantiles:
            yield Check(name, Outcome.INCONCLUSIVE, 0.0, limit_ns / 1e6, "it made no call yet")
            continue
        ns, wanted = 1e9 * one.quantiles[q], stats.needed(q) if q > 0.5 else stats.needed(0.5)
        outcome = Outcome.PASS if ns <= limit_ns else Outcome.FAIL
        note = f"{time_text(ns, limit_ns)}, of the last {one.window:.0f} calls"
        if one.window < wanted:
            outcome, note = Outcome.INCONCLUSIVE, f"{note}; this quantile needs {wanted}"
        yield Check(name, outcome, ns / 1e6, limit_ns / 1e6, note)
    share = one.errors / max(1.0, one.calls + one.errors)
    outcome = Outcome.PASS if share <= MOST_ERRORS else Outcome.FAIL
    yield Check(
        "call_errors", outcome, share, MOST_ERRORS, f"{one.errors:.0f} of {one.calls + one.errors:.0f} calls raised"
    )


def parsed(text: str) -> list[Process]:
    """The processes in Prometheus' text format. Metrics of others are skipped.

    Raises:
        DeviceError: a line is no metric, or a figure no number.
    """
    found: dict[tuple[str, str], Process] = {}
    for line in text.splitlines()[:ROWS]:
        if not line or line.startswith("#"):
            continue
        row = ROW.fullmatch(line)
        if row is None:
            raise DeviceError(f"the metrics cannot be used: {printable(line, 80)}")
        labels = dict(LABEL.findall(row[2] or ""))
        if "process" in labels:
            name, release = printable(labels["process"], 40), printable(labels.get("release", ""), 40)
            _note(found.setdefault((release, name), Process(release, name)), row[1], labels, _number(row[3]))
    return list(found.values())


def _note(one: Process, metric: str, labels: Mapping[str, str], value: float) -> None:
    if metric == "edgeprune_calls_total":
        one.calls = value
    elif metric == "edgeprune_errors_total":
        one.errors = value
    elif metric == "edgeprune_window_calls":
        one.window = value
    elif metric == "edgeprune_call_seconds":
        one.quantiles[_number(labels.get("quantile", ""))] = value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise DeviceError(f"the metrics cannot be used: {printable(text, 40)!r} is not a figure")
    return value
