"""Progress during a run: a bar on a terminal and in a notebook, elsewhere a line for each step and each finished stage."""

from __future__ import annotations

import sys
import time
from importlib.util import find_spec
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskProgressColumn, TextColumn
from rich.table import Column, Table
from rich.text import Text

NAME_WIDTH = 10  # of a stage, in characters
BAR_WIDTH = 24
PACE_S = 3600.0  # steps within this time give the time that is left
REDRAW_S = 0.1  # between two drawings of a bar in a notebook


class Watcher:
    """Shows the progress of a run. A context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        # In a notebook, rich draws with ipywidgets. Without them, a bar would appear only at the end.
        self._widget = console.is_jupyter and find_spec("ipywidgets") is not None
        self._live = console.is_terminal or self._widget
        self._drawn = 0.0
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", table_column=Column(min_width=NAME_WIDTH, no_wrap=True)),
            BarColumn(BAR_WIDTH),
            TaskProgressColumn(),
            _Time(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[note]}", markup=False, table_column=Column(ratio=1, overflow="fold")),
            console=console,
            transient=True,
            expand=True,
            disable=not self._live,
            auto_refresh=not self._widget,  # whatever is printed while a thread draws in a widget is lost with the bar
            speed_estimate_period=PACE_S,
            redirect_stderr=sys.stderr.isatty(),  # a warning is printed above the bar; in a file it stays a line of its own
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
        self._progress.remove_task(self._task)
        self._task = self._progress.add_task(stage, total=None, note="")

    def step(self, done: int, total: int, note: str) -> None:
        """The stage in progress advances. Without a note only the bar moves."""
        shown = {"note": note} if note else {}
        self._progress.update(self._task, completed=done, total=total, **shown)  # type: ignore[arg-type]
        self._draw(REDRAW_S)
        if note and not self._live:
            self._put("", f"{done}/{total}  {note}")

    def note(self, text: str) -> None:
        """The stage in progress waits for something."""
        self._progress.update(self._task, note=text)
        self._draw()
        if not self._live:
            self._put("", text)

    def done(self, stage: str, note: str) -> None:
        """A stage ended; `note` describes its record."""
        self._progress.update(self._task, visible=False)
        self._draw()
        spent = "" if note == "reused" else f" ({time.monotonic() - self._began:.1f} s)"
        self._put(stage, note + spent)

    def _draw(self, every_s: float = 0.0) -> None:
        """Draw the bar in a notebook, unless it was drawn in the last `every_s`. On a terminal, a thread of rich draws it."""
        if self._widget and time.monotonic() - self._drawn >= every_s:
            sys.stderr.flush()  # else a warning would go into the widget, whose content is replaced
            self._progress.refresh()
            self._drawn = time.monotonic()

    def _put(self, stage: str, note: str) -> None:
        """Print a line. On a terminal its note wraps at words. Elsewhere it is one line, however long."""
        if not self._live:
            line = f"{stage:<{NAME_WIDTH}} {note}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
            return
        shown = Table.grid(Column(min_width=NAME_WIDTH), Column(ratio=1, overflow="fold"), padding=(0, 1), expand=True)
        shown.add_row(Text(stage), Text(note))
        self._console.print(shown)


class _Time(ProgressColumn):
    """The time that is left, or the elapsed time as long as that is unknown."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        if task.total is None or left is None:
            return Text(clock(task.elapsed or 0.0), style="progress.elapsed")
        return Text(f"{clock(left)} left", style="progress.remaining")


def clock(seconds: float) -> str:
    """A duration as 0:31 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
