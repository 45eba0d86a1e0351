"""Tables of texts: on a terminal, as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from edgeprune.devices.validate import printable

Rows = list[list[str]]  # of a table; the first one is its head


def table(rows: Rows, title: str | None = None) -> Table:
    """A table for a terminal. The first column is on the left."""
    heading = None if title is None else escape(printable(title))
    shown = Table(box=box.SIMPLE_HEAD, title=heading, title_justify="left")
    for i, name in enumerate(rows[0]):
        shown.add_column(escape(printable(name)), justify="right" if i else "left", overflow="fold")
    for row in rows[1:]:
        shown.add_row(*(escape(printable(cell)) for cell in row))
    return shown


def csv_text(rows: Rows) -> str:
    """A table as CSV. No cell is a formula of a spreadsheet, whatever its text is."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_cell(cell) for cell in row] for row in rows)
    return text.getvalue()


def _cell(text: str) -> str:
    safe = printable(text)
    return f"'{safe}" if safe[:1] in ("=", "+", "-", "@") and not _is_number(safe) else safe


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def markdown(rows: Rows) -> str:
    """A table as Markdown, without an end of line."""
    rule = _line(["---", *["---:"] * (len(rows[0]) - 1)], str)
    return "\n".join([_line(rows[0]), rule, *map(_line, rows[1:])])


def _line(cells: Sequence[str], text: Callable[[str], str] | None = None) -> str:
    return f"| {' | '.join(map(text or escaped, cells))} |"


def escaped(text: str) -> str:
    """Text that Markdown shows unchanged."""
    found = "".join(f"\\{c}" if c in r"\`*_[]<>|#" else c for c in printable(text))
    return found.replace("&", "&amp;")
