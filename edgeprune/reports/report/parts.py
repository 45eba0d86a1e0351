"""Parts of a report: tables, pictures and lines of text. Every text from a record passes through `text`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from edgeprune.devices.validate import printable
from edgeprune.records import Interval
from edgeprune.records.budget import time_text
from edgeprune.reports.pictures import Picture
from edgeprune.reports.tables import Rows

CELL_CHARS = 400
ROWS = 300  # of a table
KILO, MEGA = 1e3, 1e6


@dataclass(frozen=True)
class Table:
    """A table. Columns in `numeric` are aligned to the right."""

    kind: ClassVar[str] = "table"
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()
    more: int = 0  # rows that are left out
    is_folded: bool = False  # shown when the reader asks for it


@dataclass(frozen=True)
class Figure:
    """A picture, with the same figures as a table."""

    kind: ClassVar[str] = "figure"
    title: str
    picture: Picture
    table: Table


@dataclass(frozen=True)
class Line:
    """A line of text, or a command."""

    kind: ClassVar[str] = "line"
    text: str
    is_command: bool = False


Part = Table | Figure | Line


@dataclass(frozen=True)
class Section:
    """A question, its answer in a sentence or two, and the parts that show it."""

    id: str
    question: str
    answer: str
    parts: Sequence[Part] = field(default_factory=tuple)


def text(value: Any) -> str:
    """A value as a cell: printable, on one line, of bounded length."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, list | tuple):
        return printable(", ".join(map(text, value)), CELL_CHARS)
    return "" if value is None else printable(str(value), CELL_CHARS)


def table(caption: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """A table of dictionaries with the same keys. Columns of numbers are aligned to the right, and empty ones are left out."""
    head = tuple(name for name in (rows[0] if rows else ()) if any(row[name] not in ("", None) for row in rows))
    numeric = frozenset(
        i
        for i, name in enumerate(head)
        if any(_is_number(row[name]) for row in rows) and all(map(_fits, _of(rows, name)))
    )
    shown = tuple(tuple(text(row[name]) for name in head) for row in rows[:ROWS])
    return Table(caption, tuple(map(text, head)), shown, numeric, max(0, len(rows) - ROWS))


def pairs(caption: str, values: Mapping[str, Any]) -> Table:
    """A table of names and values."""
    rows = tuple((text(name), text(value) or "none") for name, value in values.items())
    return Table(caption, (), rows)


def rows_table(caption: str, rows: Rows) -> Table:
    """A table of texts, whose first row is its head. All columns but the first are aligned to the right."""
    head, *body = (tuple(map(text, row)) for row in rows)
    return Table(caption, head, tuple(body), frozenset(range(1, len(head))))


def folded(found: Table) -> Table:
    """The table, shown when the reader asks for it."""
    return replace(found, is_folded=True)


def figure(title: str, picture: Picture) -> Figure:
    """A picture with its table."""
    return Figure(title, picture, table(title, picture.rows))


def time(ns: float, like: float) -> str:
    """A latency in the unit of `like`; both in nanoseconds."""
    return time_text(ns, like)


def times(found: Interval, like: float) -> str:
    """A latency with its interval, in the unit of `like`; all in nanoseconds."""
    low, mid, high = (time_text(ns, like) for ns in (found.low, found.mid, found.high))
    return f"{mid} ({low.split()[0]} to {high.split()[0]})"


def share(new: float, old: float) -> str:
    """A ratio in percent; empty if the old figure is zero."""
    return f"{100 * new / old:.1f}%" if old else ""


def percents(ratio: Interval) -> str:
    """A ratio in percent, with its interval."""
    return f"{100 * ratio.mid:.1f}% ({100 * ratio.low:.1f} to {100 * ratio.high:.1f})"


def count(number: int, one: str, many: str = "") -> str:
    """A number, and what it counts in the singular or plural."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def bytes_text(size: float) -> str:
    """Bytes as text: "42.8 kB", "65.0 MB"."""
    return f"{size / MEGA:,.1f} MB" if size >= MEGA else f"{size / KILO:,.1f} kB"


def _of(rows: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    return [row[name] for row in rows]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fits(value: Any) -> bool:
    return _is_number(value) or value in ("", None)
