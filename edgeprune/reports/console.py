"""The terminal: the answer of a command, as tables and lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from edgeprune.devices.validate import printable
from edgeprune.records import (
    Artifact,
    BundleFiles,
    Check,
    Cut,
    Explanation,
    Figures,
    Fleet,
    Front,
    Groups,
    History,
    Outcome,
    Plan,
    Report,
    Reports,
    Result,
    Survey,
    Together,
    Verdict,
)
from edgeprune.records.budget import date_text, time_text

SHOWN_LAYERS = 3  # of a group
COLOURS = {Outcome.PASS: "green", Outcome.FAIL: "red", Outcome.INCONCLUSIVE: "yellow"}
NO_BASELINE = "none, so nothing is compared with earlier measurements; make one: edgeprune check --update --reason …"


def kinds(figures: Result | Verdict | Explanation | Report | Front) -> list[str]:
    """The words that mark figures of an emulated device, or of a stand-in for a runtime, wherever they appear."""
    return [kind for kind in ("emulated", "simulated") if getattr(figures, kind)]


def mark(figures: Result | Verdict | Explanation | Report | Front) -> str:
    """The same words, as the end of a sentence."""
    return f" ({' and '.join(kinds(figures))}: not the figures of a physical device)" if kinds(figures) else ""


def show(answer: object, groups: Groups, console: Console) -> None:
    """Print an answer: a table for a run or a plan, one line for each check of a verdict, else the path of the file.

    Args:
        answer: a record, or a path.
        groups: the network's channel groups, which a plan's table names.
        console: where to print.
    """

    def put(text: str | Text) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    console.print()
    match answer:
        case Result():
            console.print(table(answer))
            _put_checks(answer.checks, put)
            console.print()
            put(_verdict(answer.status, answer))
            put(f"artifact  {answer.latest}")
            _put_next(answer.checks, put, answer)
        case Together():
            for one in answer.results:
                show(one, groups, console)
            shares = ", ".join(f"{name} {100 * share:.1f}%" for name, share in answer.shares.items())
            of_budget = f" ({shares} of the budget)" if shares else ""
            put(f"\none network for {len(answer.results)} targets; {answer.binds} binds{of_budget}")
        case Verdict():
            _put_checks(answer.checks, put)
            console.print()
            put(_verdict(answer.outcome, answer))
            _put_next(answer.checks, put)
        case Report():
            _put_checks(answer.checks, put)
            for shift in answer.slower:
                put(f"slower    {shift.operator}: {shift.before_ns / 1e3:,.1f} → {shift.after_ns / 1e3:,.1f} µs")
            put(f"\nbaseline  {answer.baseline or NO_BASELINE}")
            put(_verdict(answer.outcome, answer))
        case Reports():
            for report in answer.reports:
                put(f"target    {report.target}")
                show(report, groups, console)
            put(f"\n{len(answer.reports)} targets: {answer.outcome}")
        case Explanation():
            for part in explanation_tables(answer):
                console.print(part)
            put(explanation_line(answer))
        case Plan():
            console.print(plan_table(answer, groups))
        case Cut():
            console.print(plan_table(answer.confirmed.plan, groups))
            put(f"network   {answer.network}")
            put(
                f"to train it yourself: edgeprune.load({str(answer.network)!r}, MODEL); then: edgeprune verify --weights FILE,"
                " with the options of this command"
            )
        case BundleFiles():
            for bundle in answer.bundles:
                put(f"bundle    {bundle.path}" + (f"@{bundle.digest}" if bundle.digest else ""))
        case Artifact():
            put(f"artifact  {answer.files[0]}")
        case Fleet():
            from edgeprune.reports import fleet

            fleet.show(answer, console)
        case Path():
            put(f"network   {answer}")


def _put_checks(checks: Sequence[Check], put: Callable[[Text], None]) -> None:
    for check in checks:
        put(_coloured(line(check), check.outcome, 0))


def _put_next(checks: Sequence[Check], put: Callable[[str], None], result: Result | None = None) -> None:
    """What to do about a verdict that is no pass."""
    failed = [check for check in checks if check.outcome is Outcome.FAIL]
    if any(check.name == "metric_drop" for check in failed):
        put("next      train longer ([finetune] epochs), raise the budget, or allow more: [budget] max_metric_drop")
    elif result is not None and any(_was_confirmed(check, result) for check in failed):
        put("next      other work disturbed the plan's measurements: run again with --fresh when the device is quiet")
    elif not failed and any(check.outcome is Outcome.INCONCLUSIVE for check in checks):
        put("next      run the same command again: it keeps these measurements and takes only more of them")


def _was_confirmed(check: Check, result: Result) -> bool:
    """Whether a check is of the latency budget, and the plan was within it when it was confirmed."""
    if result.budget_ms is None or result.confirmed_ms is None:
        return False
    return (
        check.name.startswith("latency") and result.confirmed_ms <= result.budget_ms and check.limit <= result.budget_ms
    )


def _verdict(outcome: Outcome, answer: Result | Verdict | Report) -> Text:
    label = "verdict   "
    return _coloured(f"{label}{outcome}{mark(answer)}", outcome, len(label))


def _coloured(text: str, outcome: Outcome, at: int) -> Text:
    """A line with the outcome, which stands at `at`, in its colour."""
    shown = Text(text)
    shown.stylize(f"bold {COLOURS[outcome]}", at, at + len(outcome))
    return shown


def history_table(found: History) -> Table:
    """One row for each check, the oldest first, with the change where a new level begins."""
    timed, name = found.figure.endswith("_ns"), found.figure.removesuffix("_ns")
    shown = Table(box=box.SIMPLE_HEAD, title=f"{found.project} on {found.target}", title_justify="left")
    for heading in ("when", "commit", "artifact", name, "outcome", "change", "note"):
        shown.add_column(heading, justify="right" if heading == name else "left", no_wrap=heading != "note")
    for i, (record, value) in enumerate(zip(found.records, found.values, strict=True)):
        day = date_text(record.created_s)
        cells = [
            day,
            record.commit,
            record.artifact[:12],
            time_text(value) if timed else f"{value:,.4g}",
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

    def time(ms: float) -> str:
        return time_text(1e6 * ms, 1e6 * before.p50_ms)

    rows: list[tuple[str, str, str, str]] = [
        ("latency p50", time(before.p50_ms), time(after.p50_ms), _share(after.p50_ms, before.p50_ms)),
        ("latency p90", time(before.p90_ms), time(after.p90_ms), _share(after.p90_ms, before.p90_ms)),
        *_planned(result, time),
        (result.metric_name, f"{before.metric:.4f}", f"{after.metric:.4f}", f"{after.metric - before.metric:+.4f}"),
        *(_count(name, key, before, after) for name, key in COUNTS),
    ]
    for row in rows:
        shown.add_row(*row)
    return shown


def _planned(result: Result, time: Callable[[float], str]) -> Iterator[tuple[str, str, str, str]]:
    """The rows of the budget and of the plan. A network that was not pruned has none."""
    before = result.baseline.p50_ms
    if result.budget_ms is not None:
        yield "budget", "", time(result.budget_ms), _share(min(result.budget_ms, before), before)
    if result.predicted_ms is not None:
        yield "predicted", "", time(result.predicted_ms), ""
    if result.confirmed_ms is not None:
        yield "confirmed", "", time(result.confirmed_ms), f"{result.rounds} round{'s' * (result.rounds != 1)}"


COUNTS = (("parameters", "parameters"), ("MACs", "macs"), ("size, bytes", "size_bytes"), ("operators", "operators"))


def _count(name: str, key: str, before: Figures, after: Figures) -> tuple[str, str, str, str]:
    old, new = getattr(before, key), getattr(after, key)
    return name, f"{old:,}", f"{new:,}", _share(new, old)


def _share(new: float, old: float) -> str:
    return f"{100 * new / old:.1f}%"


def line(check: Check) -> str:
    """One check in one line: outcome, name, value, limit and note."""
    note = f"  ({check.note})" if check.note else ""
    value, limit = limit_texts(check)
    return f"{check.outcome.value:<12} {check.name:<26} {value}, limit {limit}{note}"


def limit_texts(check: Check) -> tuple[str, str]:
    """The value of a check and its limit, in one unit."""
    if check.name.partition(" ")[0].endswith("_ms"):
        value, limit = (time_text(1e6 * ms, 1e6 * check.limit) for ms in (check.value, check.limit))
        return value, limit
    shape = ",.0f" if check.name.endswith("bytes") else ".4g"
    return f"{check.value:{shape}}", f"{check.limit:{shape}}"
