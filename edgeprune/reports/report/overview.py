"""The table and the picture of all runs of a report, and what keeps them from being compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeprune.latency.stats import median_interval
from edgeprune.records import Comparison, Interval, Outcome
from edgeprune.records.budget import time_text
from edgeprune.reports import pictures
from edgeprune.reports.pictures import Marked
from edgeprune.reports.report.parts import Line, Part, Section, figure, rows_table, text
from edgeprune.reports.report.sections import CONFIDENCE, View
from edgeprune.reports.sweep import comparison_notes, comparison_rows
from edgeprune.stages.series import compare


def overview(views: Sequence[View]) -> Section:
    """A row for each run, compared with the first one, a picture of all, and a line for each thing that cannot be compared."""
    found = compare.of_runs([view.run for view in views])
    passed = sum(view.verdict.outcome is Outcome.PASS for view in views)
    fastest = min(found.runs, key=lambda one: one.p50_ms.mid)
    answer = (
        f"{passed} of {len(views)} runs pass. The fastest network is that of {text(fastest.label)}, at"
        f" {time_text(1e6 * fastest.p50_ms.mid)}. All are compared with the first run, {text(found.runs[0].label)}."
    )
    marked = [f"{view.title}: the figures are {' and '.join(view.marks)}" for view in views if view.marks]
    notes = [Line(f"{note}.") for note in (*comparison_notes(found), *marked)]
    return Section(
        "all", "All runs", answer, [rows_table("Runs", comparison_rows(found)), *_picture(views, found), *notes]
    )


def _picture(views: Sequence[View], found: Comparison) -> list[Part]:
    """The metric of each run against its latency, beside the original networks; nothing if fewer than two can be compared."""
    alike = [(view, run) for view, run in zip(views, found.runs, strict=True) if not run.why_no_difference]
    if len(alike) < 2:
        return []
    series: dict[str, list[Marked]] = {}
    originals: dict[str, Marked] = {}
    for view, run in alike:
        series.setdefault(f"{run.target} {run.precision}", []).append(Marked(run.label, _ns(run.p50_ms), run.metric))
        times = np.array([one.median_ns for one in view.evidence.original])
        latency, metric = median_interval(times, CONFIDENCE), view.verdict.baseline.metric
        originals.setdefault(run.target, Marked(f"original, {run.target}", latency, metric))
    drawn = pictures.comparison(series, list(originals.values()), alike[0][1].metric_name)
    return [figure(f"The {text(alike[0][1].metric_name)} against the measured latency", drawn)]


def _ns(ms: Interval) -> Interval:
    return Interval(1e6 * ms.low, 1e6 * ms.mid, 1e6 * ms.high)
