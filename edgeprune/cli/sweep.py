"""`edgeprune front`, `sweep` and `compare`: several plans or runs at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import typer

from edgeprune.cli.answers import (
    LINE_WIDTH,
    only_answer_on_stdout,
    put,
    require_places,
    screen,
    write_export,
)
from edgeprune.cli.commands import command
from edgeprune.cli.options import OfCompare, OfFront, OfSweep
from edgeprune.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from edgeprune.records import TargetPrecision


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    command(app, "front", OfFront)(front)
    command(app, "sweep", OfSweep)(sweep)
    command(app, "compare", OfCompare)(compare)


@contextmanager
def _screen(as_json: bool) -> Iterator[Console]:
    """Where the progress is shown. With `--json`, only the answer goes to stdout."""
    with only_answer_on_stdout(as_json):
        yield screen(sys.stderr if as_json else sys.stdout, LINE_WIDTH)


def front(options: OfFront) -> None:
    """Predict the loss over the whole range of latency, to choose a budget by. It trains nothing."""
    from edgeprune.api import series
    from edgeprune.pipeline.request import Quiet
    from edgeprune.reports import sweep as reports
    from edgeprune.reports.progress import Watcher

    with _screen(options.as_json) as shown, nullcontext(Quiet()) if options.quiet else Watcher(shown) as watch:
        found = series.front(
            options.project, options.target, options.points, watch=watch, wait=options.wait, patience=options.patience
        )
    put(found, options.as_json, reports.show_front)


def sweep(options: OfSweep) -> None:
    """Run a project over several budgets and targets. What they share runs once."""
    from edgeprune.api import sweeps
    from edgeprune.reports import sweep as reports
    from edgeprune.stages.series import sweep as stage

    exports = {path: reports.exporter(path) for path in options.export or []}
    budgets = [part for text in options.budget for part in text.split(",") if part.strip()]
    targets = options.target or ["local"]
    precisions: list[TargetPrecision] = [one.value for one in options.precision or []]
    if options.dry_run:
        cells = stage.cells(budgets, targets, precisions)
        print("\n".join(sweeps.forecast(options.project, cells)))
        return
    require_places(exports)
    silent = sweeps.Silent()
    with (
        _screen(options.as_json) as shown,
        nullcontext(silent) if options.quiet else reports.SweepBoard(shown) as board,
    ):
        found = sweeps.sweep(
            options.project,
            budgets,
            targets,
            precisions,
            board,
            fresh=options.fresh,
            wait=options.wait,
            patience=options.patience,
            executor=None if options.executor is None else options.executor.value,
            jobs=options.jobs,
            slurm=_pairs(options.slurm or []),
            nproc_per_node=options.nproc_per_node,
        )
    put(found, options.as_json, reports.show_sweep)
    for path, write in exports.items():
        write_export(path, write(found))
    raise typer.Exit(found.exit_code)


def _pairs(words: Sequence[str]) -> dict[str, str]:
    """Values of `--slurm` by their names."""
    found = dict[str, str]()
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"--slurm {word!r} has no value; write: --slurm partition=gpu time=4:00:00")
        found[name] = value
    return found


def compare(options: OfCompare) -> None:
    """Compare finished runs with the first one: figures, ratios and their intervals. It needs no project."""
    from edgeprune.api import series
    from edgeprune.reports import sweep as reports

    if sum((options.as_json, options.markdown, options.csv)) > 1:
        raise UsageError("compare prints one format; give one of --json, --markdown and --csv")
    found = series.compare(options.runs)
    if options.markdown or options.csv:
        print((reports.comparison_markdown if options.markdown else reports.comparison_csv)(found), end="")
    else:
        put(found, options.as_json, reports.show_comparison)
