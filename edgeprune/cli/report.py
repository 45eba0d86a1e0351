"""The report of finished runs, written by the command line."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Sequence
from pathlib import Path

from edgeprune.cli.answers import put
from edgeprune.cli.options import OfReport
from edgeprune.errors import RuntimeMissing, UsageError

NEEDED = "jinja2", "matplotlib"  # of the extra `report`


def report(options: OfReport) -> None:
    """Write the report that a user asks for, and print its path."""
    from edgeprune.reports import report
    from edgeprune.stages.series import finished

    places = finished.found(options.runs or [options.project.parent / "runs"], options.budget)
    path = options.output or _folder(places) / report.NAME
    runs = [finished.read(place) for place in places]
    try:
        report.write(runs, path)
    except UsageError as error:
        if options.output is not None or isinstance(error, RuntimeMissing):
            raise
        raise UsageError(f"{error}; or name another file: -o {report.NAME}") from error
    put(path, options.as_json, lambda written, screen: screen.print(_line(written), markup=False, soft_wrap=True))


def offer(verdict: Path) -> str:
    """The line that says how to write the report of a run."""
    return f"report    edgeprune report {shlex.quote(str(verdict.parent))}"


def of_run(verdict: Path) -> str:
    """Write the report of a run into its run folder, if the extra `report` is installed. Returns the line that names it."""
    if not all(map(importlib.util.find_spec, NEEDED)):
        return f"{offer(verdict)}, after: pip install 'edgeprune[report]'"
    from edgeprune.reports import report
    from edgeprune.stages.series import finished

    return _line(report.write([finished.read(verdict)], _folder([verdict]) / report.NAME))


def _line(path: Path) -> str:
    return f"report    {path}"


def _folder(verdicts: Sequence[Path]) -> Path:
    """The folder of a report: the run folder of one verdict, or the one that holds all run folders, or this folder."""
    if len(verdicts) == 1:
        return verdicts[0].parent
    above = {verdict.parents[1] for verdict in verdicts}
    return above.pop() if len(above) == 1 else Path()
