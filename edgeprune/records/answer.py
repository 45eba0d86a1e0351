"""What verbs return: a record that prints as one short line, and as tables in a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import StrEnum
from html import escape
from pathlib import Path
from typing import Any

from edgeprune.records.device import Interval

TEXT_CHARS = 40  # of a text in a short line
ROWS = 40  # of a table


class Answer:
    """A record that a verb returns."""

    def to_dict(self) -> dict[str, Any]:
        """The record as dictionaries, lists, texts and numbers."""
        found: dict[str, Any] = plain(self)
        return found

    def summary(self) -> dict[str, Any]:
        """The values of the short line, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    def rows(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Tables below the first one, by their titles: a dictionary for each row."""
        found = {}
        for name, value in self.summary().items():
            if isinstance(value, tuple) and value and all(map(is_dataclass, value)):
                found[name] = [_row(one) for one in value]
        return found

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={_short(v)}' for name, v in self.summary().items())})"

    def _repr_html_(self) -> str:
        return "".join(_html(self))


def plain(value: Any) -> Any:
    """A value with records as dictionaries, tuples as lists, and paths and enums as texts."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    return str(value) if isinstance(value, StrEnum) else value


def _row(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _short(value: Any) -> str:
    """A value in a few characters: of a collection only how many items it has, of a record only its type."""
    if isinstance(value, StrEnum):
        return repr(str(value))
    if isinstance(value, str):
        return repr(value if len(value) <= TEXT_CHARS else f"{value[:12]}…")
    if isinstance(value, Interval):
        return f"{value.mid:.6g}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Path):
        return repr(str(value))
    if isinstance(value, list | tuple | Mapping):
        return f"<{len(value)}>"
    return f"<{type(value).__name__}>" if is_dataclass(value) and not isinstance(value, Answer) else repr(value)


def _html(answer: Answer) -> Iterator[str]:
    tables = answer.rows()
    yield f"<b>{type(answer).__name__}</b><table>"
    for name, value in answer.summary().items():
        if name not in tables:
            shown = _row(value) if is_dataclass(value) and not isinstance(value, Answer) else {"": value}
            cells = (f"{inner}: {_cell(one)}" if inner else _cell(one) for inner, one in shown.items())
            yield f"<tr><th style='text-align:left'>{escape(name)}</th><td>{', '.join(cells)}</td></tr>"
    yield "</table>"
    for title, rows in tables.items():
        yield f"<b>{escape(title)}</b><table><tr>"
        yield "".join(f"<th>{escape(name)}</th>" for name in rows[0])
        for row in rows[:ROWS]:
            yield "</tr><tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row.values())
        yield "</tr></table>" + (f"and {len(rows) - ROWS} more" if len(rows) > ROWS else "")


def _cell(value: Any) -> str:
    return escape(str(value) if isinstance(value, str | Path) else _short(value))
