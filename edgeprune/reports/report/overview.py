"""The table of all runs of a report, and what keeps them from being compared."""

from __future__ import annotations

from collections.abc import Sequence

from edgeprune.records import Outcome
from edgeprune.reports.report.parts import Line, Section, rows_table
from edgeprune.reports.report.sections import View
from edgeprune.reports.sweep import comparison_notes, comparison_rows
from edgeprune.stages import compare


def overview(views: Sequence[View]) -> Section:
    """A row for each run, compared with the first one, and a line for each thing that cannot be compared."""
    found = compare.of_runs([view.run for view in views])
    passed = sum(view.verdict.outcome is Outcome.PASS for view in views)
    fastest = min(found.runs, key=lambda one: one.p50_ms.mid)
    answer = (
        f"{passed} of {len(views)} runs pass. The fastest network is that of {fastest.label}, at"
        f" {fastest.p50_ms.mid:.4g} ms. All are compared with the first run, {found.runs[0].label}."
    )
    marked = [f"{view.title}: the figures are {' and '.join(view.marks)}" for view in views if view.marks]
    notes = [Line(f"{note}.") for note in (*comparison_notes(found), *marked)]
    return Section("all", "All runs", answer, [rows_table("Runs", comparison_rows(found)), *notes])
