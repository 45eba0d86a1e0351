"""Commands of the command line: a function of a data class of options becomes a command."""

from __future__ import annotations

import errno
import inspect
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from typing import Any, TypeVar, get_type_hints

import typer
from typer.core import TyperCommand, TyperOption

from edgeprune.cli import logs
from edgeprune.cli.answers import one_line
from edgeprune.cli.options import Options
from edgeprune.errors import EXIT_INTERRUPTED, EdgepruneError, UsageError, quoted

COMMON = {field.name for field in fields(Options)}  # stand last in the help
Given = TypeVar("Given", bound=Options)
# The parser's errors. typer has its own copy of click's classes, and earlier versions use those of click.
REFUSED: type[Exception] = typer.BadParameter.__bases__[0]


class _Command(TyperCommand):
    """A command that refuses an option that is given twice. The parser would use the last one without a word.

    An option that may be repeated also takes several values, `--budget 80% 50%`, if the command has no other words.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if all(isinstance(parameter, TyperOption) for parameter in self.params):
            repeated = {name for one in self.params if getattr(one, "multiple", False) for name in one.opts}
            args = repeat(args, repeated)
        try:
            _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        except REFUSED as error:
            error.ctx = ctx  # type: ignore[attr-defined] # it names the command
            raise
        with _reported("--json" in args):
            for parameter, times in Counter(order).items():
                single = isinstance(parameter, TyperOption) and not (parameter.multiple or parameter.is_flag)
                if times > 1 and single:
                    raise UsageError(
                        f"{parameter.opts[0]} is given {times} times, and {self.name} takes one;"
                        f" give one, or call edgeprune {self.name} once for each"
                    )
        return super().parse_args(ctx, args)


def repeat(args: Sequence[str], repeated: Collection[str]) -> list[str]:
    """Arguments with `--name A B` written as `--name A --name B`, for the options in `repeated`."""
    found: list[str] = []
    name, given = "", False
    for word in args:
        if word.startswith("-"):
            name, given = word.partition("=")[0], "=" in word
        elif name in repeated and given:
            found.append(name)
        else:
            given = True
        found.append(word)
    return found


def command(
    app: typer.Typer, name: str, options: type[Given], text: str | None = None
) -> Callable[[Callable[[Given], None]], None]:
    """Register a command. The fields of the data class `options` are its options; `text` or the docstring is its help.

    With `--json`, an error is also printed as a JSON document.
    """
    hints = get_type_hints(options, include_extras=True)

    def register(function: Callable[[Given], None]) -> None:
        def called(**given: Any) -> None:
            asked = options(**given)
            logs.listen(asked.verbose, asked.quiet)
            with _interruptible(), _reported(getattr(asked, "as_json", False)):
                function(asked)

        parameters = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.default is MISSING else field.default,
                annotation=hints[field.name],
            )
            for field in sorted(fields(options), key=lambda field: field.name in COMMON)
        ]
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = hints
        app.command(name, cls=_Command, help=text or inspect.getdoc(function))(called)

    return register


def called(app: typer.Typer) -> int:
    """Run the command of `sys.argv`, and return its exit code.

    Raises:
        UsageError: the parser refuses an argument, or the system a path. typer would print several lines, and nothing as JSON.
        BrokenPipeError: the program that reads the output has ended.
    """
    try:
        return app(standalone_mode=False, prog_name="edgeprune") or 0
    except SystemExit as error:
        if error.code == 1:  # typer and rich do this, and for nothing else
            raise BrokenPipeError from error
        raise
    except REFUSED as error:
        with _reported("--json" in sys.argv):
            raise UsageError(_refusal(error)) from error
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        with _reported("--json" in sys.argv):
            raise UsageError(f"{quoted(str(error.filename))}: the path is too long; give another one") from error


def _refusal(error: Any) -> str:
    """What the parser refuses, as one line with the next step."""
    text = " ".join(error.format_message().split()).removesuffix(".").replace("Value error, ", "")
    path = getattr(error.ctx, "command_path", "edgeprune")
    return f"{path}: {text[:1].lower()}{text[1:]}{' See' if text.endswith('?') else '; see'} {path} --help"


@contextmanager
def _interruptible() -> Iterator[None]:
    """A context in which Ctrl-C ends the command with a line and its own exit code."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def discard_output() -> None:
    """Discard what is still written to stdout, which nothing reads."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _reported(as_json: bool) -> Iterator[None]:
    """With `--json`, an error is also a JSON document on stdout."""
    try:
        yield
    except EdgepruneError as error:
        if as_json:
            from edgeprune.stages.result import SCHEMA

            text = one_line(str(error))
            document = {"schema": SCHEMA, "status": "error", "exit_code": error.exit_code, "error": text}
            print(json.dumps(document), flush=True)
        raise
