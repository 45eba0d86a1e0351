"""The tables of docs/models.md: one line for each architecture, which can be written alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

MARK = "<!-- below: written by tests/models -->\n"
REASONS = "## What is locked, and why"
COLUMNS = (
    "groups cut", "of", "removable MACs", "removable latency", "blocks",
    "ORT", "OpenVINO", "TFLite", "ncnn", "ExecuTorch", "Torch-Pruning", "survey",
)  # fmt: skip
MEASURED = "removable latency", "survey"  # cells that differ from run to run


@dataclass(frozen=True)
class Line:
    """An architecture on the page: its cells, and what is locked."""

    title: str
    cells: tuple[str, ...]
    locked: str

    @staticmethod
    def of(title: str, found: dict[str, Any]) -> Line:
        """A line of what a process found. The first cell that is missing says why."""
        reason = found.get("late")
        cells = []
        for column in COLUMNS:
            cells.append(found.get(column) or (f"no: {reason}" if reason else "–"))
            if column not in found:
                reason = None
        return Line(title, tuple(cells), found.get("locked", "not known"))

    @property
    def lasting(self) -> tuple[str, ...]:
        """What must be the same in every run."""
        cells = (cell for column, cell in zip(COLUMNS, self.cells, strict=True) if column not in MEASURED)
        return (*cells, self.locked)

    @property
    def is_cut(self) -> bool:
        """Whether edgeprune offers a group."""
        return self.cells[0].isdigit() and int(self.cells[0]) > 0

    @property
    def peer(self) -> str:
        """Torch-Pruning's cell."""
        return self.cells[COLUMNS.index("Torch-Pruning")]


@dataclass(frozen=True)
class Page:
    """The page: what people wrote, and the lines by title."""

    text: str
    lines: dict[str, Line] = field(default_factory=dict)

    @staticmethod
    def read(content: str) -> Page:
        """The page of a file."""
        text, _, tables = content.partition(MARK)
        table, _, reasons = tables.partition(REASONS)
        why = dict(_rows(reasons))
        rows = _rows(table)
        lines = {
            row[0]: Line(row[0], tuple(row[1:]), why.get(row[0], "")) for row in rows if len(row) == len(COLUMNS) + 1
        }
        return Page(text, lines)

    def written(self, titles: Iterable[str]) -> str:
        """The page as a file, with the lines in this order."""
        lines = [self.lines[title] for title in titles if title in self.lines]
        return "\n".join([self.text + MARK, *_table(lines), "", REASONS, "", *_reasons(lines), ""])


def _table(lines: list[Line]) -> Iterator[str]:
    yield f"| architecture | {' | '.join(COLUMNS)} |"
    yield "|---" * (1 + len(COLUMNS)) + "|"
    yield from (f"| {line.title} | {' | '.join(line.cells)} |" for line in lines)
    ran = sum(line.peer.startswith(("yes", "runs")) for line in lines)
    yield ""
    yield f"Of {len(lines)} architectures edgeprune cuts {sum(line.is_cut for line in lines)}, each proved."
    yield f"Torch-Pruning's pruned network runs for {ran} of them, and is the same as the masked original for"
    yield f"{sum(line.peer == 'yes' for line in lines)}."


def _reasons(lines: list[Line]) -> Iterator[str]:
    yield "| architecture | groups that stay whole, by reason |"
    yield "|---|---|"
    yield from (f"| {line.title} | {line.locked} |" for line in lines)


def _rows(table: str) -> list[list[str]]:
    """The cells of a table, without its head."""
    return [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
