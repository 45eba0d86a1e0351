"""Answers of the command line: a table or one JSON document, once a run has ended."""

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
    """A run with its progress shown, and a function that prints the answer at the end."""
    from rich.console import Console

    from edgeprune import api
    from edgeprune.reports import console
    from edgeprune.stages.result import SCHEMA

    with _stdout_keptone_line(options.as_json) as stdout:
        screen = Console(stderr=options.as_json, width=None if sys.stdout.isatty() else 120)
        answers: list[Any] = []
        try:
            with (
                console.Watcher(screen) as watch,
                api.opened(options.project, options.target, wait=options.wait, watch=watch, **more) as run,
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
    """Print an answer: as JSON, or as `show` does on a screen."""
    from rich.console import Console

    if as_json:
        print(_document(value))
    else:
        show(value, Console(width=None if sys.stdout.isatty() else 160))


def _document(value: object) -> str:
    """An answer as JSON. A report has a schema and a status, as a result does."""
    from edgeprune.records import Report
    from edgeprune.stages.result import SCHEMA
    from edgeprune.storage import codec

    if isinstance(value, Path):
        return json.dumps({"path": str(value)})
    if isinstance(value, Report):
        return codec.dumps({"schema": SCHEMA, "status": value.outcome, **asdict(value)})
    return codec.dumps(value)


@contextmanager
def _stdout_keptone_line(as_json: bool) -> Iterator[Any]:
    """With `--json`, what the user's code and the runtimes print goes to stderr; only the answer reaches stdout."""
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
    """One line without control characters, of bounded length: it may quote a device or a file."""
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= LIMITS.message_chars else text[: LIMITS.message_chars] + "…"
