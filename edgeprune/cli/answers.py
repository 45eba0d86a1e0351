"""Print the answer of a command, as a table or one JSON document, after the run has ended."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.cli.options import OfDevice
from edgeprune.errors import EdgepruneError
from edgeprune.limits import LIMITS

if TYPE_CHECKING:
    from edgeprune.pipeline.run import Run


@contextmanager
def opened(options: OfDevice, **more: Any) -> Iterator[tuple[Run, Callable[[Any], None]]]:
    """A context with a run and a function. Progress is shown. Values that the function gets are printed at the end."""
    from rich.console import Console

    from edgeprune import api
    from edgeprune.reports import console
    from edgeprune.stages.result import SCHEMA

    with _only_answer_on_stdout(options.as_json) as stdout:
        screen = Console(emoji=False, stderr=options.as_json, width=None if sys.stdout.isatty() else 120)
        answers: list[Any] = []
        try:
            with (
                console.Watcher(screen) as watch,
                api.opened(
                    options.project, options.target, wait=options.wait, patience=options.patience, watch=watch, **more
                ) as run,
            ):
                yield run, answers.append
                groups = run.value("survey")
        except EdgepruneError as error:
            if options.as_json:
                text = one_line(str(error))
                document = {"schema": SCHEMA, "status": "error", "exit_code": error.exit_code, "error": text}
                stdout.write(json.dumps(document) + "\n")
            raise
        for value in answers:  # when the progress bars are gone
            if options.as_json:
                stdout.write(_document(value) + "\n")
            else:
                console.show(value, groups, screen)


def put(value: Any, as_json: bool, show: Callable[[Any, Any], None]) -> None:
    """Print an answer as JSON, or let `show` print it on a screen."""
    from rich.console import Console

    if as_json:
        print(_document(value))
    else:
        show(value, Console(emoji=False, width=None if sys.stdout.isatty() else 160))


def _document(value: object) -> str:
    """An answer as JSON. A report also has a schema and a status, like a result."""
    from edgeprune.records import Report
    from edgeprune.stages.result import SCHEMA
    from edgeprune.storage import codec

    if isinstance(value, Path):
        return json.dumps({"path": str(value)})
    if isinstance(value, Report):
        return codec.dumps({"schema": SCHEMA, "status": value.outcome, **asdict(value)})
    return codec.dumps(value)


@contextmanager
def _only_answer_on_stdout(as_json: bool) -> Iterator[Any]:
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
