"""The figures of `edgeprune bench`: tables, CSV, Markdown, raw times, and a trace of the operators."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from edgeprune.devices.validate import printable
from edgeprune.errors import UsageError
from edgeprune.records import Benchmark, FileComparison, FileFigures, Interval, OperatorChange, Samples
from edgeprune.reports import tables as tables_of
from edgeprune.reports.tables import Rows
from edgeprune.stages.bench import LEAST_ROUNDS
from edgeprune.storage import codec

COLUMNS = 4  # files beside each other in one table
SHOWN_OPERATORS = 30  # of a table
SHOWN_CHANGES = 10
NAME_CHARS = 60


def show(found: Benchmark, console: Console) -> None:
    """Print the figures, then the comparisons, then the operators."""

    def put(line: str) -> None:
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    for title, rows in tables(found):
        for line in title:
            put(line)
        console.print(tables_of.table(rows))
    for line in notes(found):
        put(line)


def tables(found: Benchmark) -> Iterator[tuple[list[str], Rows]]:
    """Pairs of a title, in lines, and a table."""
    for start in range(0, len(found.files), COLUMNS):
        part = found.files[start : start + COLUMNS]
        yield _devices(part), _figures(part)
    for one in found.comparisons:
        pair = f"{one.first} (first) and {one.second} (second)"
        if one.operators:
            where = "kinds of operators, as executed" if one.executed else "operators that differ, in the files"
            yield [f"{where}: {pair}"], _changes("kind", one.operators)
        if one.nodes:
            yield [f"nodes whose times differ most: {pair}"], _changes("node", one.nodes)
    for row in found.files:
        if row.operators:
            yield [f"{row.label}: operators, as {row.runtime} times them"], _operators(row)


def notes(found: Benchmark) -> Iterator[str]:
    """What the tables leave open, line by line."""
    for one in found.comparisons:
        yield f"{one.second} takes {_ratio(one.ratio)} of the time of {one.first} (p50): {_sense(one)}"
        if not one.operators and not one.executed:
            yield "both hold the same operators; --layers times each of them"
    for row in found.files:
        yield from _flaws(row)
    if any(row.too_few for row in found.files):
        yield "more timings: --time 2m"
    if any(row.disturbed for row in found.files):
        yield "disturbed figures are too high: stop other work, or have edgeprune wait for a calm moment: --patience 10m"


def _flaws(row: FileFigures) -> Iterator[str]:
    """What is wrong with the figures of a row."""
    if row.processes == 1:
        yield f"{row.label}: only one process was measured, so its median has no interval"
    for name, why in row.too_few.items():
        yield f"{row.label}: no {name}, for there are only {why}"
    if row.discarded:
        yield f"{row.label}: disturbed processes, discarded: {row.discarded}"
    if row.disturbed:
        reasons = ", ".join(sorted(set(row.disturbed)))
        yield f"{row.label}: disturbed processes, used all the same: {len(row.disturbed)} of {row.processes} ({reasons})"
    for kind in ("emulated", "simulated"):
        if getattr(row, kind):
            yield f"{row.label}: {kind}: not the figures of a physical device"


def _devices(part: Sequence[FileFigures]) -> list[str]:
    known = dict.fromkeys(
        f"{row.target}: {row.runtime} {row.runtime_version}, {row.threads} thread{'s' * (row.threads > 1)}, {row.cpu}"
        for row in part
    )
    return list(known)


def _figures(part: Sequence[FileFigures]) -> Rows:
    fine = min(row.p50_ms.mid for row in part) < 0.1
    unit, factor = ("µs", 1e3) if fine else ("ms", 1.0)

    def latency(name: str) -> Callable[[FileFigures], str]:
        return lambda row: _interval(row.latency_ms[name], factor) if name in row.latency_ms else "too few timings"

    figures: Mapping[str, Callable[[FileFigures], str]] = {
        f"p50, {unit}": latency("p50"),
        f"p90, {unit}": latency("p90"),
        f"p99, {unit}": latency("p99"),
        "throughput, 1/s": lambda row: _interval(row.throughput_per_s),
        "load, ms": lambda row: "not reported" if row.load_ms is None else _interval(row.load_ms),
        "peak memory, MB": lambda row: f"{row.peak_memory_bytes / 1e6:,.1f}",
        "energy of a call, mJ": lambda row: (
            "none" if row.energy_mj is None else f"{_interval(row.energy_mj)} by {row.rails}"
        ),
        "size, bytes": lambda row: f"{row.size_bytes:,}",
        "batch × streams": lambda row: f"{row.batch} × {row.streams}",
        "timings, processes": lambda row: f"{row.timings:,} in {row.processes}",
    }
    return [["", *(row.label for row in part)], *([name, *map(text, part)] for name, text in figures.items())]


def _interval(one: Interval, factor: float = 1.0) -> str:
    """The estimate and its bounds. A single process has no bounds."""
    low, mid, high = (factor * value for value in (one.low, one.mid, one.high))
    digits = 0 if mid >= 1000 else 1 if mid >= 100 else 2 if mid >= 10 else 3
    return f"{mid:,.{digits}f}" + (f" [{low:,.{digits}f}, {high:,.{digits}f}]" if low < high else "")


def _ratio(one: Interval) -> str:
    return f"{one.mid:.3f}" + (f" [{one.low:.3f}, {one.high:.3f}]" if one.low < one.high else "")


def _sense(one: FileComparison) -> str:
    """Which one is faster, if enough processes agree."""
    if one.pairs < LEAST_ROUNDS:
        return f"no verdict, for there are only {one.pairs} of {LEAST_ROUNDS} pairs of processes; more: --time 2m"
    if one.ratio.low <= 1 <= one.ratio.high:
        return "no difference that these timings can show"
    return f"{1 - one.ratio.mid:.1%} less" if one.ratio.mid < 1 else f"{one.ratio.mid - 1:.1%} more"


def _changes(what: str, changes: Sequence[OperatorChange]) -> Rows:
    head = [what, "first", "second"]
    if changes[0].first_us is not None:
        head += ["first, µs", "second, µs", "difference, µs"]
    rows = [head]
    for change in changes[:SHOWN_CHANGES]:
        rows.append([_name(change.name), str(change.first_count), str(change.second_count), *_spent(change)])
    return rows + _more(len(changes) - SHOWN_CHANGES, len(head))


def _spent(change: OperatorChange) -> list[str]:
    if change.first_us is None or change.second_us is None:
        return []
    return [f"{change.first_us:,.1f}", f"{change.second_us:,.1f}", f"{change.second_us - change.first_us:+,.1f}"]


def _operators(row: FileFigures) -> Rows:
    """The operators that take the longest; equal ones keep the order of execution."""
    longest = sorted(row.operators, key=lambda one: -one.us)
    rows = [["operator", "kind", "µs", "share"]]
    for one in longest[:SHOWN_OPERATORS]:
        rows.append([_name(one.name), _name(one.kind), f"{one.us:,.1f}", f"{one.share:.1%}"])
    return rows + _more(len(longest) - SHOWN_OPERATORS, 4)


def _more(count: int, columns: int) -> Rows:
    return [[f"and {count} more, see --export", *[""] * (columns - 1)]] if count > 0 else []


def _name(text: str) -> str:
    return printable(text, NAME_CHARS)


# --------------------------------------------------------------------------------------------------------- exports


def exporter(path: Path) -> Callable[[Benchmark, Sequence[Samples]], str]:
    """How a file of this name is written.

    Raises:
        UsageError: no kind of export has such a name.
    """
    for ending, write in EXPORTS.items():
        if path.name.endswith(ending):
            return write
    raise UsageError(f"--export {str(path)!r}: name it {', '.join('*' + ending for ending in EXPORTS)}")


def needs_layers(path: Path) -> bool:
    """Whether an export of this name holds operators."""
    return path.name.endswith(WITH_LAYERS)


def trace(found: Benchmark, samples: Sequence[Samples]) -> str:
    """The operators in the order of execution, as Chrome's trace format: a process for each row."""
    events: list[dict[str, object]] = []
    for pid, row in enumerate(found.files):
        name = f"{row.label}: {row.runtime} {row.runtime_version}"
        events.append({"name": "process_name", "ph": "M", "pid": pid, "tid": 0, "args": {"name": name}})
        at = 0.0
        for one in row.operators:
            where = {"pid": pid, "tid": 0, "ts": round(at, 3), "dur": round(one.us, 3)}
            events.append(
                {"name": one.name, "cat": one.kind, "ph": "X", **where, "args": {"kind": one.kind, "share": one.share}}
            )
            at += one.us
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ns"}, indent=1) + "\n"


def times(found: Benchmark, samples: Sequence[Samples]) -> str:
    """The figures, and the raw times of every process in nanoseconds."""
    raw = [[run.times_ns for run in one.runs] for one in samples]
    return codec.dumps({**found.to_dict(), "times_ns": raw}) + "\n"


def figures_csv(found: Benchmark, samples: Sequence[Samples]) -> str:
    """One line for each row. Quantiles that could not be estimated are empty."""
    names = ["p50", "p90", "p99"]
    head = ["label", "file", "target", "runtime", "runtime_version", "threads", "batch", "streams"]
    head += [f"{name}{bound}_ms" for name in names for bound in ("", "_low", "_high")]
    head += ["throughput_per_s", "load_ms", "peak_memory_bytes", "size_bytes", "processes", "timings"]
    lines = [head]
    for row in found.files:
        line = [row.label, str(row.file), row.target, row.runtime, row.runtime_version]
        line += map(str, (row.threads, row.batch, row.streams))
        for name in names:
            one = row.latency_ms.get(name)
            line += ["", "", ""] if one is None else [repr(one.mid), repr(one.low), repr(one.high)]
        line += [repr(row.throughput_per_s.mid), "" if row.load_ms is None else repr(row.load_ms.mid)]
        line += map(str, (row.peak_memory_bytes, row.size_bytes, row.processes, row.timings))
        lines.append(line)
    return tables_of.csv_text(lines)


def layers_csv(found: Benchmark, samples: Sequence[Samples]) -> str:
    """One line for each operator of each row, in the order of execution."""
    lines = [["label", "target", "operator", "kind", "us", "share"]]
    for row in found.files:
        lines += [[row.label, row.target, one.name, one.kind, repr(one.us), repr(one.share)] for one in row.operators]
    return tables_of.csv_text(lines)


def markdown(found: Benchmark, samples: Sequence[Samples]) -> str:
    """The tables that are printed."""
    parts = [
        f"**{'; '.join(map(tables_of.escaped, title))}**\n\n{tables_of.markdown(rows)}" for title, rows in tables(found)
    ]
    return "\n\n".join([*parts, "\n".join(f"- {tables_of.escaped(line)}" for line in notes(found))]).strip() + "\n"


WITH_LAYERS = "trace.json", "layers.csv"
EXPORTS: Mapping[str, Callable[[Benchmark, Sequence[Samples]], str]] = {  # by the end of the name, the first that fits
    "trace.json": trace,
    "layers.csv": layers_csv,
    ".json": times,
    ".csv": figures_csv,
    ".md": markdown,
}
