"""The result of a whole run, as `--json` prints it: a function of the stages' records."""

from __future__ import annotations

from typing import Any

from edgeprune.pipeline.run import LATEST, Run
from edgeprune.records import Result
from edgeprune.stages import compile as compiling
from edgeprune.stages import confirm, survey, verify

SCHEMA = 1  # of the JSON result; changes when a key changes its meaning


def result(run: Run) -> Result:
    """The artifact, its figures and its checks. Runs every stage that is missing. Without a budget there is no plan."""
    verdict, target = run.record(verify.STAGE), run.request.target
    planned = run.value("is_pruned")
    predicted_ns, confirmed_ns, rounds, plan = _planned(run) if planned else (None, None, 0, None)
    artifact = run.record(compiling.STAGE).files[0]
    return Result(
        schema=SCHEMA,
        status=verdict.outcome,
        target=target.name,
        runtime=target.runtime,
        precision=run.value("chosen_precision"),
        emulated=verdict.emulated,
        simulated=verdict.simulated,
        budget_ms=verdict.budget_ms,
        predicted_ms=None if predicted_ns is None else predicted_ns / 1e6,
        confirmed_ms=None if confirmed_ns is None else confirmed_ns / 1e6,
        rounds=rounds,
        metric_name=verdict.metric_name,
        baseline=verdict.baseline,
        pruned=verdict.pruned,
        plan=plan,
        checks=verdict.checks,
        artifact=artifact,
        latest=run.folder / LATEST / artifact.name,
        run=run.folder,
    )


def _planned(run: Run) -> tuple[float | None, float | None, int, dict[str, Any]]:
    """The latency as predicted and as confirmed, in nanoseconds, the confirm rounds, and the plan."""
    confirmed, full = run.record(confirm.STAGE), run.record(survey.STAGE).full()
    plan, own = confirmed.plan, confirmed.on(run.request.target.name if run.common else "")
    whole = None if plan.predicted is None else plan.predicted.mid
    latency = (own.predicted_ns, own.measured.mid) if own else (whole, whole)
    widths = {name: [width, full[name]] for name, width in plan.widths.items()}
    limits = {one.name: [one.value, one.limit] for one in plan.limits}
    return *latency, confirmed.rounds, {"gap": plan.gap, "widths": widths, "binds": plan.binding.name, "limits": limits}
