"""The result of a whole run, as `--json` prints it: a function of the stages' records."""

from __future__ import annotations

from edgeprune.pipeline.run import LATEST, Run
from edgeprune.records import Result
from edgeprune.stages import compile as compiling
from edgeprune.stages import confirm, survey, verify

SCHEMA = 1  # of the JSON result; changes when a key changes its meaning


def result(run: Run) -> Result:
    """The artifact that meets the budget, its figures and its checks. Runs every stage that is missing."""
    verdict = run.record(verify.STAGE)
    confirmed, groups = run.record(confirm.STAGE), run.record(survey.STAGE)
    plan, own, full = confirmed.plan, confirmed.measurement, groups.full()
    target = run.request.target
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
        predicted_ms=(own.predicted_ns if own else plan.predicted.mid) / 1e6,
        confirmed_ms=(own.measured.mid if own else plan.predicted.mid) / 1e6,
        rounds=confirmed.rounds,
        baseline=verdict.baseline,
        pruned=verdict.pruned,
        plan={"gap": plan.gap, "widths": {name: [width, full[name]] for name, width in plan.widths.items()}},
        checks=verdict.checks,
        artifact=artifact,
        latest=run.folder / LATEST / artifact.name,
        run=run.folder,
    )
