"""A report of finished runs: one HTML file without a script, which needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeprune.errors import RuntimeMissing
from edgeprune.limits import LIMITS
from edgeprune.reports.pictures import DOTS, FONT, STYLE
from edgeprune.reports.report import data, overview
from edgeprune.reports.report.sections import View
from edgeprune.stages.series.finished import Finished
from edgeprune.storage.store import write_atomic

NAME = "report.html"
DETAILED = 4  # runs; with more, they share pictures


def write(runs: Sequence[Finished], path: Path) -> Path:
    """Write the report of finished runs, and return its path.

    Raises:
        RuntimeMissing: jinja2 or matplotlib is not installed.
        UsageError: the file cannot be written.
    """
    write_atomic(path, html(runs).encode())
    return path


def html(runs: Sequence[Finished]) -> str:
    """The report of finished runs as HTML. Raises `RuntimeMissing` if jinja2 or matplotlib is not installed."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise RuntimeMissing("a report needs jinja2; run: pip install 'edgeprune[report]'") from error
    pages = Environment(
        loader=PackageLoader("edgeprune.reports.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    views = _views(runs)
    page = pages.get_template("page.html").render(
        views=views,
        overview=overview.overview(views) if len(views) > 1 else None,
        style=Markup(STYLE + f"body{{{FONT}}}"),  # noqa: S704 - constants
        markup=Markup,
    )
    before, end, after = page.rpartition("</script>")
    most = min(LIMITS.report_json_bytes, LIMITS.report_bytes - len(page.encode()))
    return f"{before}{data.embedded(runs, most)}{end}{after}"


def _views(runs: Sequence[Finished]) -> list[View]:
    """The runs as the report shows them. Of many runs, those of one target share what all would repeat."""
    if len(runs) <= DETAILED:
        return [View(run) for run in runs]
    first: dict[tuple[str, str, str], View] = {}
    views = []
    for run in runs:
        own = run.made.project, run.made.target, run.compile.precision
        views.append(View(run, first.get(own), DOTS // 3))
        first.setdefault(own, views[-1])
    return views
