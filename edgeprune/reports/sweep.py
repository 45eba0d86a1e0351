"""Fronts, sweeps and comparisons on a terminal, as CSV and as Markdown, and the live table of a sweep."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich import box
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from edgeprune.devices.validate import printable
from edgeprune.errors import UsageError
from edgeprune.pipeline.request import Watch
from edgeprune.records import ComparedRun, Comparison, Front, Interval, Sweep, SweepCell, SweepPoint
from edgeprune.records.budget import time_text
from edgeprune.reports import tables
from edgeprune.reports.console import mark
from edgeprune.reports.progress import NAME_WIDTH
from edgeprune.reports.tables import Rows
from edgeprune.stages.series.sweep import Cell
from edgeprune.storage import codec

if TYPE_CHECKING:
    from edgeprune.reports.pictures import Picture

NAME_CHARS = 60
NO_FIGURE = "–"
NARROW_LATENCIES, NARROW_FIGURES = (0, 1, 2, 3), (0, 4, 5, 6, 7)  # columns of a comparison


def _put(console: Console, lines: Iterator[str]) -> None:
    for line in lines:
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def _interval(one: Interval, factor: float = 1.0, digits: int = 3, unit: str = "") -> str:
    """The estimate and its bounds. Equal bounds are left out."""
    low, mid, high = (f"{factor * value:,.{digits}f}" for value in (one.low, one.mid, one.high))
    return f"{mid}{unit}" + (f" [{low}, {high}]" if low < high or one.low < one.high else "")


def _percent(one: Interval) -> str:
    return _interval(one, 100, 1, "%")


def _fine(values: Sequence[float]) -> tuple[str, float]:
    """The unit of latencies in milliseconds, and the factor to it."""
    return ("µs", 1e3) if min(values) < 0.1 else ("ms", 1.0)


# ---------------------------------------------------------------------------------------------------------- fronts


def show_front(found: Front, console: Console) -> None:
    """Print the plans of a front, and how to use one."""
    rows = front_rows(found)
    console.print(tables.table(rows, f"{found.project} on {found.target} ({found.runtime}, {found.precision})"))
    _put(console, front_notes(found))


def front_rows(found: Front) -> Rows:
    """A row for each plan, the fastest one first."""
    unit, factor = _fine([one.latency_ms.mid for one in found.points])
    blocks = ["blocks removed"] if any(one.removed for one in found.points) else []
    rows = [[f"predicted, {unit}", "of fp32", "expected loss", "channels", *blocks, ""]]
    for i, one in enumerate(found.points):
        note = "knee" if i == found.knee else "original" if i == len(found.points) - 1 else ""
        removed = [printable(", ".join(one.removed), NAME_CHARS)] if blocks else []
        latency = _interval(one.latency_ms, factor)
        rows.append([latency, f"{one.share:.1%}", f"{one.loss:.4g}", str(one.channels), *removed, note])
    return rows


def front_notes(found: Front) -> Iterator[str]:
    """What the table leaves open, line by line."""
    yield f"each plan is proved to have the least expected loss of its latency; nothing is trained{mark(found)}"
    yield f"nine of ten predictions of unseen networks differ by less than {found.error:.1%}"
    if found.knee is not None:
        one = found.points[found.knee]
        yield f"knee: below {time_text(one.latency_ns)}, the expected loss rises steeply (the largest distance to the chord)"
        yield f"to run a plan: edgeprune run --target {found.target} --budget {100 * one.share:.3g}%"


# ---------------------------------------------------------------------------------------------------------- sweeps


def show_sweep(found: Sweep, console: Console) -> None:
    """Print the networks of each target, the fastest one first, then the cells without a verdict."""
    for title, rows in sweep_tables(found):
        console.print(tables.table(rows, title))
    _put(console, sweep_notes(found))


def sweep_tables(found: Sweep) -> Iterator[tuple[str, Rows]]:
    """A title and a table for each target."""
    for target, points in found.fronts.items():
        if points:
            cells = {(cell.precision, cell.budget): cell for cell in found.cells if cell.target == target}
            yield f"{found.project} on {target}", _front_table(points, list(cells.values()), found.metric_name)


def _front_table(points: Sequence[SweepPoint], cells: Sequence[SweepCell], metric: str) -> Rows:
    unit, factor = _fine([one.latency_ms.mid for one in points])
    rows = [["network", f"p50, {unit}", "of fp32", metric, "bytes", "verdict"]]
    for one in points:
        cells_of = [
            f"{one.latency_ms.mid * factor:,.3f}",
            _percent(one.share),
            f"{one.metric:.4f}",
            f"{one.size_bytes:,}",
        ]
        words = (one.status if one.budget else "", "*" if one.best else "")
        rows.append([one.label, *cells_of, " ".join(filter(None, words))])
    for cell in cells:
        if cell.result is None:
            rows.append([cell.budget, *[NO_FIGURE] * 4, f"error {cell.exit_code}"])
    return rows


def sweep_notes(found: Sweep) -> Iterator[str]:
    """What the tables leave open, line by line."""
    yield "*: no other network of the target is faster and as accurate"
    yield "p50 is the share of fp32, as each run measured it, times the usual latency of the original network"
    for cell in found.cells:
        if cell.error:
            yield f"{name_of(cell)}: {cell.error}"
    yield from found.notes
    yield from sorted(
        {f"{cell.target}:{mark(cell.result)}" for cell in found.cells if cell.result and mark(cell.result)}
    )
    if any(cell.status in ("error", "inconclusive") for cell in found.cells):
        yield "next: the same command again reuses what is finished, and tries only the rest"


def name_of(cell: SweepCell) -> str:
    """A short name of a cell."""
    return Cell(cell.target, cell.precision, cell.budget).name


def picture(found: Sweep) -> Picture:
    """The metric against the measured latency. Raises `UsageError` if nothing was measured."""
    from edgeprune.reports import pictures

    def drawn(points: Sequence[SweepPoint]) -> list[pictures.Marked]:
        latencies = [Interval(1e6 * one.low, 1e6 * one.mid, 1e6 * one.high) for one in (p.latency_ms for p in points)]
        return [pictures.Marked(p.label, latency, p.metric) for p, latency in zip(points, latencies, strict=True)]

    pruned = {name: drawn([p for p in points if p.budget]) for name, points in found.fronts.items()}
    others = [one for points in found.fronts.values() for one in drawn([p for p in points if not p.budget])]
    if not any(pruned.values()) and not others:
        raise UsageError("no run of this sweep has a verdict, so there is nothing to draw; see its errors")
    return pictures.comparison({name: own for name, own in pruned.items() if own}, others, found.metric_name)


def sweep_csv(found: Sweep) -> str:
    """A line for each network. Figures that are not known are empty."""
    head = [
        "target",
        "network",
        "precision",
        "budget",
        "status",
        "share",
        "share_low",
        "share_high",
        "p50_ms",
        "metric",
    ]
    rows = [[*head, "size_bytes", "best", "error"]]
    for target, points in found.fronts.items():
        for one in points:
            shares = map(repr, (one.share.mid, one.share.low, one.share.high, one.latency_ms.mid, one.metric))
            texts = [target, one.label, one.precision, one.budget or "", one.status, *shares, str(one.size_bytes)]
            rows.append([*texts, "yes" if one.best else "no", ""])
    for cell in found.cells:
        if cell.result is None:
            rows.append([cell.target, name_of(cell), cell.precision or "", cell.budget, "error", *[""] * 7, cell.error])
    return tables.csv_text(rows)


def sweep_markdown(found: Sweep) -> str:
    """The tables that are printed, and the notes."""
    parts = [f"**{tables.escaped(title)}**\n\n{tables.markdown(rows)}" for title, rows in sweep_tables(found)]
    return "\n\n".join([*parts, "\n".join(f"- {tables.escaped(line)}" for line in sweep_notes(found))]) + "\n"


def exporter(path: Path) -> Callable[[Sweep], str]:
    """How a file of this name is written. Raises `UsageError` if no kind of export has such a name."""
    for ending, write in EXPORTS.items():
        if path.name.endswith(ending):
            return write
    raise UsageError(f"--export {str(path)!r}: name it {', '.join('*' + ending for ending in EXPORTS)}")


EXPORTS: Mapping[str, Callable[[Sweep], str]] = {
    ".json": lambda found: codec.dumps(found.to_dict()) + "\n",
    ".csv": sweep_csv,
    ".md": sweep_markdown,
}


class SweepBoard:
    """The live table of a sweep. Where the output is no terminal, each finished stage and each cell is a line."""

    def __init__(self, console: Console) -> None:
        self._console, self._states, self._made = console, dict[str, str](), set[tuple[str, str]]()
        self._live = Live(get_renderable=self._table, console=console, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def begin(self, cells: Sequence[Cell]) -> None:
        """The sweep begins."""
        self._states |= {cell.name: "waits" for cell in cells}

    def enter(self, name: str) -> Watch:
        """A cell begins, or what cells share."""
        return _CellWatch(self, name)

    def end(self, cell: Cell, ended: SweepCell) -> None:
        """The cell ended."""
        found = ended.result
        if found is None or ended.share is None:
            text = f"error {ended.exit_code}: {ended.error}"
        else:
            text = (
                f"{ended.status}: {time_text(1e6 * found.pruned.p50_ms)}, {ended.share.mid:.1%} of the original network"
            )
            text += f", {found.metric_name} {found.pruned.metric:.4f}"
        self.put(cell.name, text)
        self.line(cell.name, text)

    def put(self, name: str, text: str) -> None:
        """Show the state of a cell in the table."""
        self._states[name] = text

    def is_new(self, name: str, stage: str) -> bool:
        """Whether no line has told yet that a stage of a cell is there: a cell runs in parts, which reuse its stages."""
        known = (name, stage) in self._made
        self._made.add((name, stage))
        return not known

    def line(self, name: str, text: str) -> None:
        """Print a line, where there is no live table."""
        if self._live is None:
            self._console.print(printable(f"{name:<24} {text}"), markup=False, highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        shown = Table(box=box.SIMPLE_HEAD)
        shown.add_column("run", no_wrap=True)
        shown.add_column("state", overflow="ellipsis", no_wrap=True)
        for name, text in self._states.items():
            shown.add_row(escape(printable(name)), escape(printable(text)))
        return shown


class _CellWatch:
    """The progress of one cell on a board. See `pipeline.request.Watch`."""

    def __init__(self, board: SweepBoard, name: str) -> None:
        self._board, self._name, self._stage, self._began = board, name, "", time.monotonic()

    def start(self, stage: str) -> None:
        """See `Watch`."""
        self._stage, self._began = stage, time.monotonic()
        self._board.put(self._name, stage)

    def step(self, done: int, total: int, note: str) -> None:
        """See `Watch`."""
        self._board.put(self._name, f"{self._stage} {done}/{total} {note}".strip())

    def note(self, text: str) -> None:
        """See `Watch`."""
        self._board.put(self._name, f"{self._stage}: {text}")
        self._board.line(self._name, text)

    def done(self, stage: str, note: str) -> None:
        """See `Watch`."""
        self._board.put(self._name, f"{stage} done")
        spent = "" if note == "reused" else f" ({time.monotonic() - self._began:.1f} s)"
        if self._board.is_new(self._name, stage) or spent:
            self._board.line(self._name, f"{stage:<{NAME_WIDTH}} {note}{spent}")


# ------------------------------------------------------------------------------------------------------ comparisons


def show_comparison(found: Comparison, console: Console) -> None:
    """Print a row for each run, then what cannot be compared. A table that is too wide for the console becomes two."""
    rows = comparison_rows(found)
    whole = tables.table(rows)
    if Measurement.get(console, console.options.update(max_width=10 * console.width), whole).maximum <= console.width:
        console.print(whole)
    else:
        without = [[*row[:2], row[2].partition(" [")[0], *row[3:]] for row in rows]  # ratios have intervals, too
        for columns in (NARROW_LATENCIES, NARROW_FIGURES):
            console.print(tables.table([[row[i] for i in columns] for row in without]))
    _put(console, comparison_notes(found))


def comparison_rows(found: Comparison) -> Rows:
    """A row for each run."""
    unit, factor = _fine([one.p50_ms.mid for one in found.runs])
    metric = found.runs[0].metric_name
    rows = [["run", "verdict", f"p50, {unit}", "of first", metric, "difference", "parameters", "size, bytes"]]
    for i, one in enumerate(found.runs):
        ratio = "first" if not i else NO_FIGURE if one.latency_ratio is None else _percent(one.latency_ratio)
        difference = "" if not i else NO_FIGURE if one.metric_difference is None else f"{one.metric_difference:+.4f}"
        counts = (f"{one.parameters:,}", f"{one.size_bytes:,}")
        rows.append(
            [one.label, one.status, _interval(one.p50_ms, factor), ratio, f"{one.metric:.4f}", difference, *counts]
        )
    return rows


def comparison_notes(found: Comparison) -> Iterator[str]:
    """What the table leaves open, line by line."""
    for one in found.runs[1:]:
        if one.why_no_ratio:
            yield f"{one.label}: no ratio of latencies: {one.why_no_ratio}"
        elif not one.shared_ratio:
            yield f"{one.label}: measured at another time, and not beside the same original network: drift is in the ratio"
        if one.why_no_difference:
            yield f"{one.label}: no difference of metrics: {one.why_no_difference}"
    for one in found.runs:
        yield from (f"{one.label}: {check.outcome} {check.name}" for check in one.checks if check.outcome != "pass")


def comparison_csv(found: Comparison) -> str:
    """A line for each run. Figures that are not known are empty."""
    head = ["label", "folder", "project", "target", "runtime", "device", "precision", "budget", "status"]
    head += ["p50_ms", "p50_low_ms", "p50_high_ms", "p90_ms", "latency_ratio", "ratio_low", "ratio_high"]
    head += ["metric", "metric_difference", "parameters", "macs", "size_bytes", "why_no_ratio", "why_no_difference"]
    return tables.csv_text([head, *map(_compared_line, found.runs)])


def _compared_line(one: ComparedRun) -> list[str]:
    ratio, p50 = one.latency_ratio, one.p50_ms
    texts = [one.label, str(one.folder), one.project, one.target, one.runtime, one.device, one.precision]
    texts += [one.budget or "", one.status, *map(repr, (p50.mid, p50.low, p50.high, one.p90_ms))]
    texts += ["", "", ""] if ratio is None else map(repr, (ratio.mid, ratio.low, ratio.high))
    texts += [repr(one.metric), "" if one.metric_difference is None else repr(one.metric_difference)]
    return [*texts, *map(str, (one.parameters, one.macs, one.size_bytes)), one.why_no_ratio, one.why_no_difference]


def comparison_markdown(found: Comparison) -> str:
    """The table that is printed, and the notes."""
    notes = "\n".join(f"- {tables.escaped(line)}" for line in comparison_notes(found))
    return tables.markdown(comparison_rows(found)) + (f"\n\n{notes}" if notes else "") + "\n"
