"""The hosts of a fleet, as tables: what runs where, what failed, the keys, and the audit logs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgeprune.devices.validate import printable
from edgeprune.records import Fleet, FleetFacts, HostState, Release
from edgeprune.records.budget import date_text, time_text
from edgeprune.reports.console import kinds

CELL_CHARS = 200
COLOURS = {"done": "green", "unchanged": "green", "failed": "red", "unknown": "red", "not begun": "yellow"}
UNBROKEN = ("host", "step", "release", "since")
NUMERIC = ("no.", "p50", "budget", "metric")
HEADINGS = (
    "host",
    "step",
    "service",
    "release",
    "no.",
    "state",
    "since",
    "runtime",
    "p50",
    "budget",
    "metric",
    "verdict",
)


def show(found: Fleet, console: Console) -> None:
    """Print the table of all hosts, and why hosts were left out."""
    console.print(table(found))
    if found.stopped:
        console.print(printable(found.stopped), markup=False, highlight=False, soft_wrap=True)


def table(found: Fleet) -> Table:
    """Every host: what came of the work there, its releases, and the error if it failed."""
    shown = Table(box=box.SIMPLE_HEAD)
    for heading in HEADINGS:
        right = "right" if heading in NUMERIC else "left"
        shown.add_column(heading, justify=right, no_wrap=heading in UNBROKEN)  # type: ignore[arg-type]
    for host in found.hosts:
        for cells in _rows(host):
            shown.add_row(*cells)
    return shown


def _rows(host: HostState) -> Iterator[list[str]]:
    colour = COLOURS[host.step]
    start = [_cell(host.host), f"[{colour}]{host.step}[/{colour}]"]
    for release in host.releases:
        yield [*start, *map(_cell, _figures(release))]
        start = ["", ""]
    if host.error or not host.releases:
        nothing = "" if host.step in ("not begun", "failed", "unknown") else "no release"
        yield [*start, *[""] * 9, _cell(host.error or nothing)]


def _cell(text: str) -> str:
    return escape(printable(text, CELL_CHARS))


def _figures(release: Release) -> list[str]:
    since = "" if release.since_s is None else date_text(release.since_s)
    cells = [release.service, release.digest[:12], "", release.state, since]
    if release.manifest is None:
        return [*cells, "", "", "", "", f"damaged: {release.damage}"]
    known, verdict = release.manifest, release.manifest.verdict
    cells[2] = str(known.sequence) if known.sequence else ""
    runtime = f"{known.runtime} {known.device.runtime_version}, {known.precision}"
    times = ("" if ms is None else time_text(1e6 * ms) for ms in (verdict.pruned.p50_ms, verdict.budget_ms))
    return [*cells, runtime, *times, f"{verdict.pruned.metric:.4f}", ", ".join([verdict.outcome, *kinds(verdict)])]


def show_facts(found: FleetFacts, columns: Sequence[str], console: Console) -> None:
    """Print what every host reported: a row for each fact, and one for each host that failed."""
    shown = Table(box=box.SIMPLE_HEAD)
    for heading in ("host", *columns):
        shown.add_column(heading, overflow="fold")
    for host in found.hosts:
        for fact in host.facts:
            shown.add_row(_cell(host.host), *(_cell(fact.get(column, "")) for column in columns))
        if host.error or not host.facts:
            shown.add_row(_cell(host.host), _cell(host.error or "nothing"), *[""] * (len(columns) - 1))
    console.print(shown)
