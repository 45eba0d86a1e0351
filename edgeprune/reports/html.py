"""Results in a notebook: what the terminal shows, as HTML."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from edgeprune.records import Result
from edgeprune.reports.console import line, mark, table

WIDTH = 120  # characters
FORMAT = "<pre style=\"line-height:normal;font-family:Menlo,'DejaVu Sans Mono',consolas,monospace\">{code}</pre>"


def html(result: Result) -> str:
    """The table of a result, its checks, and the verdict."""
    screen = Console(emoji=False, record=True, file=StringIO(), width=WIDTH, force_jupyter=False)
    screen.print(table(result))
    for text in (*map(line, result.checks), f"verdict   {result.status}{mark(result)}"):
        screen.print(text, markup=False, highlight=False, soft_wrap=True)
    return screen.export_html(inline_styles=True, code_format=FORMAT)
