"""Print the answer of a command, as a table or one JSON document, after the run has ended."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from edgeprune.cli.options import OfDevice, OfRun
from edgeprune.errors import UsageError
from edgeprune.limits import LIMITS

if TYPE_CHECKING:
    from rich.console import Console

    from edgeprune.pipeline.run import Run

LINE_WIDTH, TABLE_WIDTH = 120, 160  # characters, where the output is no terminal


@contextmanager
def opened(options: OfDevice, **more: Any) -> Iterator[tuple[Run, Callable[[Any], None]]]:
    """A context with a run and a function. Progress is shown. Values that the function gets are printed at the end."""
    from edgeprune.api import verbs
    from edgeprune.pipeline.request import Quiet
    from edgeprune.reports import console
    from edgeprune.reports.progress import Watcher

    with only_answer_on_stdout(options.as_json) as stdout:
        shown = screen(sys.stderr if options.as_json else sys.stdout, LINE_WIDTH)
        answers: list[Any] = []
        with (
            nullcontext(Quiet()) if options.quiet else Watcher(shown) as watch,
            verbs.opened(
                options.project,
                options.target or "local",
                wait=options.wait,
                patience=options.patience,
                precision=options.precision.value if isinstance(options, OfRun) and options.precision else None,
                watch=watch,
                **more,
            ) as run,
        ):
            yield run, answers.append
            groups = run.value("groups")
        for value in answers:  # when the progress bars are gone
            if options.as_json:
                stdout.write(_document(value) + "\n")
            else:
                console.show(value, groups, shown)


def screen(stream: TextIO, width: int) -> Console:
    """A console on stdout or stderr. `width` is that of its tables where they go to a file."""
    from rich.console import Console

    return Console(emoji=False, stderr=stream is sys.stderr, width=None if stream.isatty() else width)


def put(value: Any, as_json: bool, show: Callable[[Any, Any], None]) -> None:
    """Print an answer as JSON, or let `show` print it on a screen."""
    if as_json:
        print(_document(value))
    else:
        show(value, screen(sys.stdout, TABLE_WIDTH))


def _document(value: object) -> str:
    """An answer as JSON. A report also has a schema and a status, like a result."""
    from edgeprune.records import Cut, Fleet, FleetFacts, Report, Reports
    from edgeprune.stages.result import SCHEMA
    from edgeprune.storage import codec

    if isinstance(value, Path):
        return json.dumps({"path": str(value)})
    if isinstance(value, Cut):
        return codec.dumps(value.to_dict())
    if isinstance(value, Report):
        return codec.dumps({"schema": SCHEMA, "status": value.outcome, **asdict(value)})
    if isinstance(value, Reports):
        each = [{"status": one.outcome, **asdict(one)} for one in value.reports]
        return codec.dumps({"schema": SCHEMA, "status": value.outcome, "results": each})
    if isinstance(value, Fleet | FleetFacts):
        status = "error" if value.exit_code else "pass"
        return codec.dumps({"schema": SCHEMA, "status": status, "exit_code": value.exit_code, **asdict(value)})
    return codec.dumps(value)


@contextmanager
def only_answer_on_stdout(as_json: bool) -> Iterator[Any]:
    """With `--json`, only the answer goes to stdout. All output of the user's code and the runtimes goes to stderr."""
    if not as_json:
        yield sys.stdout
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(kept), "w") as stdout:
            yield stdout
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def one_line(text: str) -> str:
    """The text as one line of bounded length, without control characters. It may quote a device or a file."""
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= LIMITS.message_chars else text[: LIMITS.message_chars] + "…"


def require_places(exports: Iterable[Path]) -> None:
    """Raises `UsageError` for a path that cannot be written, before anything is measured."""
    for path in exports:
        if path.is_dir() or not os.access(path.absolute().parent, os.W_OK):
            raise UsageError(
                f"--export {str(path)!r}: cannot be written; give the path of a file in a folder that you can write to"
            )


def write_export(path: Path, text: str) -> None:
    """Write a file that the user requested. Raises `UsageError` if it cannot be written."""
    from edgeprune.storage.store import write_atomic

    try:
        write_atomic(path, text.encode())
    except OSError as error:
        raise UsageError(f"--export {str(path)!r}: cannot be written: {error.strerror}; give another path") from error
