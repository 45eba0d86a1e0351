"""The terminal: progress during a run, and one table at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from types import TracebackType

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from edgeprune.devices.validate import printable
from edgeprune.records import (
    Artifact,
    Check,
    Confirmed,
    Explanation,
    Figures,
    Groups,
    History,
    Plan,
    Release,
    Report,
    Result,
    Survey,
    Verdict,
)

SHOWN_LAYERS = 3  # of a group
NO_BASELINE = "none, so nothing is compared with earlier measurements; make one: edgeprune check --update --reason …"


def kinds(figures: Result | Verdict | Explanation | Report) -> list[str]:
    """The words that mark figures of an emulated device, or of a stand-in for a runtime, wherever they appear."""
    return [kind for kind in ("emulated", "simulated") if getattr(figures, kind)]


def mark(figures: Result | Verdict | Explanation | Report) -> str:
    """The same words, as the end of a sentence."""
    return f" ({' and '.join(kinds(figures))}: not the figures of a physical device)" if kinds(figures) else ""


class Watcher:
    """Shows progress: bars on a terminal, elsewhere one line for each finished stage. A context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description:<10}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._progress = Progress(
            *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
        )
        self._task = self._progress.add_task("", total=None, note="", visible=False)
        self._began = time.monotonic()

    def __enter__(self) -> Watcher:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def start(self, stage: str) -> None:
        """A stage begins."""
        self._began = time.monotonic()
        self._progress.reset(self._task, description=stage, total=None, note="", visible=True)

    def step(self, done: int, total: int, note: str) -> None:
        """The stage in progress advances. Without a note only the bar moves."""
        shown = {"note": escape(note)} if note else {}
        self._progress.update(self._task, completed=done, total=total, **shown)  # type: ignore[arg-type]
        if note and not self._console.is_terminal:
            self._console.print(f"{'':<10} {done}/{total}  {note}", markup=False, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """The stage in progress waits for something."""
        self._progress.update(self._task, note=escape(text))
        if not self._console.is_terminal:
            self._console.print(f"{'':<10} {text}", markup=False, highlight=False, soft_wrap=True)

    def done(self, stage: str, note: str) -> None:
        """A stage ended; `note` describes its record."""
        self._progress.update(self._task, visible=False)
        spent = "" if note == "reused" else f" ({time.monotonic() - self._began:.1f} s)"
        self._console.print(f"{stage:<10} {note}{spent}", markup=False, highlight=False, soft_wrap=True)


def show(answer: object, groups: Groups, console: Console) -> None:
    """Print an answer: a table for a run or a plan, one line for each check of a verdict, else the path of the file.

    Args:
        answer: a record, a list of releases, or a path.
        groups: the network's channel groups, which a plan's table names.
        console: where to print.
    """

    def put(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    console.print()
    match answer:
        case Result():
            console.print(table(answer))
            _put_checks(answer.checks, put)
            put(f"\nverdict   {answer.status}{mark(answer)}")
            put(f"artifact  {answer.artifact}")
        case Verdict():
            _put_checks(answer.checks, put)
            put(f"\nverdict   {answer.outcome}{mark(answer)}")
        case Report():
            _put_checks(answer.checks, put)
            for shift in answer.slower:
                put(f"slower    {shift.operator}: {shift.before_ns / 1e3:,.1f} → {shift.after_ns / 1e3:,.1f} µs")
            put(f"\nbaseline  {answer.baseline or NO_BASELINE}")
            put(f"verdict   {answer.outcome}{mark(answer)}")
        case Explanation():
            for part in explanation_tables(answer):
                console.print(part)
            put(explanation_line(answer))
        case Plan():
            console.print(plan_table(answer, groups))
        case Confirmed():
            console.print(plan_table(answer.plan, groups))
        case Artifact():
            put(f"artifact  {answer.files[0]}")
        case list():
            console.print(releases_table(answer))
        case Path():
            put(f"network   {answer}")


def _put_checks(checks: Sequence[Check], put: Callable[[str], None]) -> None:
    for check in checks:
        put(line(check))


def releases_table(releases: Sequence[Release]) -> Table:
    """The releases: what runs where, since when, and with which verdict."""
    shown = Table(box=box.SIMPLE_HEAD)
    for heading in (
        "host",
        "service",
        "release",
        "state",
        "since",
        "runtime",
        "p50, ms",
        "budget, ms",
        "metric",
        "verdict",
    ):
        numeric, unbroken = heading in ("p50, ms", "budget, ms", "metric"), heading in ("host", "release", "since")
        shown.add_column(heading, justify="right" if numeric else "left", no_wrap=unbroken)
    for release in releases:
        since = "" if release.since_s is None else time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(release.since_s))
        cells = [release.host, release.service, release.digest[:12], release.state, since]
        if release.manifest is None:
            shown.add_row(*map(escape, cells), "", "", "", "", f"damaged: {escape(release.damage)}")
            continue
        known, verdict = release.manifest, release.manifest.verdict
        runtime = f"{known.runtime} {known.device.runtime_version}, {known.precision}"
        figures = (f"{verdict.pruned.p50_ms:.3f}", f"{verdict.budget_ms:.3f}", f"{verdict.pruned.metric:.4f}")
        outcome = ", ".join([verdict.outcome, *kinds(verdict)])
        shown.add_row(*(escape(printable(cell, 200)) for cell in (*cells, runtime, *figures, outcome)))
    return shown


def history_table(found: History) -> Table:
    """One row for each check, the oldest first, with the change where a new level begins."""
    unit, scale = ("ms", 1e6) if found.figure.endswith("_ns") else ("", 1.0)
    name = found.figure.removesuffix("_ns") + (f", {unit}" if unit else "")
    shown = Table(box=box.SIMPLE_HEAD, title=f"{found.project} on {found.target}", title_justify="left")
    for heading in ("when", "commit", "artifact", name, "outcome", "change", "note"):
        shown.add_column(heading, justify="right" if heading == name else "left", no_wrap=heading != "note")
    for i, (record, value) in enumerate(zip(found.records, found.values, strict=True)):
        day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(record.created_s))
        cells = [
            day,
            record.commit,
            record.artifact[:12],
            f"{value / scale:,.4g}",
            record.outcome,
            _change(found, i),
            record.note,
        ]
        shown.add_row(*(escape(printable(cell, 200)) for cell in cells))
    return shown


def _change(found: History, i: int) -> str:
    """How the level that begins at check `i` differs from the one before; empty if none begins there."""
    if i not in found.changes:
        return ""
    bounds = [0, *found.changes, len(found.values)]
    place = bounds.index(i)
    before, after = (median(found.values[bounds[j] : bounds[j + 1]]) for j in (place - 1, place))
    change = f"{after / before - 1:+.1%}" if before else "changed"
    same = found.records[i].device == found.records[i - 1].device
    return change if same else f"{change}, another device"


def plan_table(plan: Plan, groups: Groups) -> Table:
    """One row for each channel group: the channels it keeps, or why it is locked."""
    shown = Table(box=box.SIMPLE_HEAD)
    for heading in ("group", "keeps", "of", "parameters touched", "locked because"):
        shown.add_column(heading, justify="right" if heading in ("keeps", "of") else "left")
    inner = groups.block_of
    for group in groups.groups:
        kept = len(plan.keep.get(group.name, range(group.width))) or f"removed with {inner[group.name].name}"
        touched = len({slot.parameter for slot in group.slots})
        shown.add_row(escape(group.name), str(kept), str(group.width), str(touched), escape(group.locked or ""))
    return shown


def show_survey(found: Survey, console: Console) -> None:
    """Print each group with its layers and share of the work, and how to lock one."""
    shown = Table(box=box.SIMPLE_HEAD, title=found.project, title_justify="left")
    for heading in ("group", "units", "layers", "MACs", "locked because"):
        shown.add_column(heading, justify="right" if heading in ("units", "MACs") else "left")
    for group in found.groups:
        layers = ", ".join(group.layers[:SHOWN_LAYERS])
        more = f" and {len(group.layers) - SHOWN_LAYERS} more" if len(group.layers) > SHOWN_LAYERS else ""
        cells = (
            group.name,
            str(group.width),
            layers + more,
            f"{group.macs / max(found.macs, 1):.1%}",
            group.locked or "",
        )
        shown.add_row(*(escape(printable(cell, 200)) for cell in cells))
    console.print(shown)
    free = sum(group.locked is None for group in found.groups)
    lines = [
        f"{free} of {len(found.groups)} groups can be cut: up to {1 - found.least_macs / max(found.macs, 1):.0%} of"
        f" {found.macs:,} multiply-accumulates can be removed",
        f"blocks that can be removed: {', '.join(found.blocks) or 'none'}",
    ]
    if found.unknown_operators:
        lines.append(
            f"operators without a rule, which lock the groups that reach them: {', '.join(found.unknown_operators)}"
        )
    lines.append('to lock a group: [prune] lock = ["NAME"], a layer or a pattern such as "head.*"')
    console.print("\n".join(map(printable, lines)), markup=False, highlight=False, soft_wrap=True)


def explanation_tables(found: Explanation) -> list[Table]:
    """The layers by their share of the latency, and the width step of each group on each target."""
    layers = Table(box=box.SIMPLE_HEAD, title=f"{found.target} ({found.runtime}): layers", title_justify="left")
    for heading in ("layer", "share", "in → out", "points", "µs measured", "steps in, out"):
        layers.add_column(heading, justify="left" if heading == "layer" else "right")
    for layer in sorted(found.layers, key=lambda layer: -layer.share):
        times = [ns / 1e3 for *_, ns in layer.points]
        span = f"{min(times):,.0f} – {max(times):,.0f}" if times else "none"
        steps = ", ".join("–" if step is None else str(step) for step in (layer.input_step, layer.output_step))
        sizes = f"{layer.inputs} → {layer.outputs}"
        layers.add_row(escape(layer.name), f"{layer.share:.1%}", sizes, str(len(layer.points)), span, steps)
    names = list(found.groups[0].steps) if found.groups else []
    groups = Table(box=box.SIMPLE_HEAD, title="groups: candidate widths", title_justify="left")
    for heading in ("group", "width", *names):
        groups.add_column(escape(heading), justify="left" if heading == "group" else "right")
    for group in found.groups:
        cells = [_step(*group.steps[name]) for name in names]
        groups.add_row(escape(group.name), str(group.width), *cells)
    return [layers, groups]


def _step(step: int, dearer: float) -> str:
    widths = "any" if step == 1 else f"multiples of {step}"
    return widths if abs(dearer) < 0.01 else f"{widths}; unaligned {dearer:+.0%}"


def explanation_line(found: Explanation) -> str:
    """How well the latency model predicts, and what no layer explains."""
    errors = f"a median error of {found.median_error:.1%}, 90% of them within {found.error:.1%}"
    lines = [
        f"{found.experiments} experiments; unseen widths are predicted with {errors}.",
        f"The network's latency is the power {found.exponent:.2f} of the sum of its layers;"
        f" {found.overhead:.1%} of it is in no layer.{mark(found)}",
        "A step is the number of channels that cost as much as one of them. Unaligned widths are not multiples of 4.",
    ]
    return "\n".join(lines)


def table(result: Result) -> Table:
    """The result of a run: each figure before and after."""
    before, after = result.baseline, result.pruned
    shown = Table(
        box=box.SIMPLE_HEAD,
        title=f"{result.target} ({', '.join([result.runtime, result.precision, *kinds(result)])})",
        title_justify="left",
    )
    before_in = "before" if result.precision == "fp32" else "before, fp32"
    for heading in ("", before_in, "after", "after / before"):
        shown.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    rows: list[tuple[str, str, str, str]] = [
        ("latency p50, ms", f"{before.p50_ms:.3f}", f"{after.p50_ms:.3f}", _share(after.p50_ms, before.p50_ms)),
        ("latency p90, ms", f"{before.p90_ms:.3f}", f"{after.p90_ms:.3f}", _share(after.p90_ms, before.p90_ms)),
        ("budget, ms", "", f"{result.budget_ms:.3f}", _share(min(result.budget_ms, before.p50_ms), before.p50_ms)),
        ("predicted, ms", "", f"{result.predicted_ms:.3f}", ""),
        ("confirmed, ms", "", f"{result.confirmed_ms:.3f}", f"{result.rounds} round{'s' * (result.rounds != 1)}"),
        ("metric", f"{before.metric:.4f}", f"{after.metric:.4f}", f"{after.metric - before.metric:+.4f}"),
        *(_count(name, key, before, after) for name, key in COUNTS),
    ]
    for row in rows:
        shown.add_row(*row)
    return shown


COUNTS = (("parameters", "parameters"), ("MACs", "macs"), ("size, bytes", "size_bytes"), ("operators", "operators"))


def _count(name: str, key: str, before: Figures, after: Figures) -> tuple[str, str, str, str]:
    old, new = getattr(before, key), getattr(after, key)
    return name, f"{old:,}", f"{new:,}", _share(new, old)


def _share(new: float, old: float) -> str:
    return f"{100 * new / old:.1f}%"


def line(check: Check) -> str:
    """One check in one line: outcome, name, value, limit and note."""
    note = f"  ({check.note})" if check.note else ""
    shape = ",.0f" if check.name.endswith("bytes") else ".4g"
    return f"{check.outcome.value:<12} {check.name:<26} {check.value:{shape}}, limit {check.limit:{shape}}{note}"
