"""The table of all runs of a report, and what keeps them from being compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgeprune.records import Outcome
from edgeprune.reports.report.parts import Line, Section, bytes_text, share, table, text
from edgeprune.reports.report.sections import View

DATA = "[data] test samples"  # labels of what a verdict reads
METRIC = "[data] metric"


def overview(views: Sequence[View]) -> Section:
    """A row for each run, and a line for each thing in which they differ and should not."""
    passed = sum(view.verdict.outcome is Outcome.PASS for view in views)
    fastest = min(views, key=lambda view: view.verdict.pruned.p50_ms)
    answer = (
        f"{passed} of {len(views)} runs pass. The fastest network is that of {fastest.title}:"
        f" {fastest.ms(fastest.verdict.pruned.p50_ms)}."
    )
    notes = [Line(f"Not comparable: {why}.") for why in differences(views)]
    return Section("all", "All runs", answer, [*notes, table("Runs", [_row(view) for view in views])])


def _row(view: View) -> dict[str, str]:
    made, before, after = view.run.made, view.verdict.baseline, view.verdict.pruned
    return {
        "run": view.title,
        "verdict": ", ".join([view.verdict.outcome.value, *view.marks]),
        "runtime": f"{made.runtime}, {view.run.compile.precision}",
        "budget": text(made.budget) or "none",
        "latency p50": view.ms(after.p50_ms),
        "of the original": share(after.p50_ms, before.p50_ms),
        text(view.verdict.metric_name): f"{after.metric:.4f} ({after.metric - before.metric:+.4f})",
        "size": bytes_text(after.size_bytes),
    }


def differences(views: Sequence[View]) -> Iterator[str]:
    """What differs between the runs so that a figure of one says nothing about another."""
    made = [view.run.made for view in views]
    devices = {one.device.identity for one in made if one.device is not None}
    if len({one.project for one in made}) > 1:
        yield "the runs are of different projects"
    if any(len({str(view.run.reads.get(label)) for view in views}) > 1 for label in (DATA, METRIC)):
        yield "the metrics are of different test data or of different functions"
    if len(devices) > 1:
        yield "the latencies are of different devices or runtimes; compare each with its own original network"
