"""A report of finished runs: one HTML file without a script, which needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeprune.errors import RuntimeMissing
from edgeprune.reports.pictures import FONT, STYLE
from edgeprune.reports.report import data, overview
from edgeprune.reports.report.sections import View
from edgeprune.stages.finished import Finished
from edgeprune.storage.store import write_atomic

NAME = "report.html"


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
    views = [View(run) for run in runs]
    return pages.get_template("page.html").render(
        views=views,
        overview=overview.overview(views) if len(views) > 1 else None,
        style=Markup(STYLE + f"body{{{FONT}}}"),  # noqa: S704 - constants
        markup=Markup,
        data=Markup(data.embedded(runs)),  # noqa: S704 - escaped there
    )
