"""The check: is the artifact still within its budgets, and no slower, larger or less accurate than its baseline?

A baseline is a measurement that somebody has declared good. It and its artifact are kept in `profiles/`. See docs/ci.md.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.errors import UsageError
from edgeprune.frontends import functions
from edgeprune.pipeline.run import Run
from edgeprune.records import Baseline, Budget, Outcome, Report, Reports
from edgeprune.stages import bounds
from edgeprune.stages import compile as compiling
from edgeprune.stages.verdicts import history
from edgeprune.storage import baselines

if TYPE_CHECKING:
    from edgeprune.stages.verdicts.accuracy import Timer
    from edgeprune.stages.verdicts.comparison import Measured
    from edgeprune.storage.baselines import Kept

log = logging.getLogger("edgeprune")


@dataclass(frozen=True)
class Options:
    """Options of a check.

    Attributes:
        budgets: replace the project's.
        baseline: the baseline's file, which must exist unless there is a reason; None is the project's, which may be missing.
        reason: why the measurement becomes the baseline; empty if it does not.
    """

    budgets: Sequence[Budget] = ()
    baseline: Path | None = None
    reason: str = ""


def checked(run: Run, options: Options) -> Report | Reports:
    """Check the artifact of a run, or those of all targets of a common run. Each target has its own budget and baseline.

    Raises:
        UsageError: as in `check`, or several targets are given one baseline's file.
    """
    if not run.members:
        return check(run, options)
    if options.baseline is not None:
        raise UsageError("--baseline is the file of one target; check each target by itself, or leave --baseline out")
    return Reports(tuple(check(member, options) for _, member in bounds.targets(run)))


def check(run: Run, options: Options) -> Report:
    """Check the artifact that was compiled last from the current project. If there is none, the stages run.

    With a reason, the artifact and its measurement become the baseline. Every check is added to the history.

    Raises:
        UsageError: a file cannot be read, or the user's code fails.
        DeviceError: the device fails.
    """
    request, watch = run.request, run.request.watch
    project = request.project
    place = baselines.valid_path(options.baseline or baselines.default_path(request.profiles, project.name))
    kept = None if options.reason else _kept(place, required=options.baseline is not None)
    measured, timer = _measured(run, options, kept)
    with functions.of_user(project, "check"):
        from edgeprune.stages.verdicts import comparison

        report = comparison.compare(timer, project, request.target, measured, kept)
    created_s, commit = int(time.time()), history.commit_of(project.folder)
    if options.reason and measured.now.metric is None:
        report = replace(report, baseline="not made, since the metric is not a finite number; fix the artifact first")
    elif options.reason:
        (layer_ns,) = comparison.operators(timer, [measured.artifact.files[0]])
        made = Baseline(project.name, request.target.name, options.reason, commit, created_s, measured.now, layer_ns)
        baselines.declare(place, made, measured.artifact)
        report = replace(report, baseline=f"made now: {options.reason}; {place}")
    record = history.record(measured.now, report.outcome, commit, created_s, options.reason)
    try:
        baselines.remember(baselines.history_path(request.profiles, project.name), record)
    except (UsageError, OSError) as error:  # the check does not need it
        log.warning("this check is missing in the history: %s", error)
    watch.done("check", describe(report))
    return report


def describe(report: Report) -> str:
    """The outcome, and how many checks pass."""
    passed = sum(check.outcome is Outcome.PASS for check in report.checks)
    return f"{report.outcome}: {passed} of {len(report.checks)} checks pass"


def _kept(place: Path, required: bool) -> Kept | None:
    """The baseline at `place`. Only a required one must exist."""
    return baselines.kept(place) if required or place.is_file() else None


def _measured(run: Run, options: Options, kept: Kept | None) -> tuple[Measured, Timer]:
    """Measure the artifact on the device; with a baseline, on the same samples."""
    request = run.request
    section = request.project.check
    own = request.project.budget.latency
    budgets = tuple(dict.fromkeys(options.budgets or section.budget or ((own,) if own else ())))
    artifact, folder = run.last(compiling.STAGE)
    original = run.record(compiling.ORIGINAL) if any(one.fraction is not None for one in budgets) else None
    request.watch.start("check")
    with functions.of_user(request.project, "check"):
        from edgeprune.stages.verdicts import comparison
        from edgeprune.stages.verdicts.accuracy import Evaluation, Timer

        network = run.value("network")
        timer = Timer(run.value("device"), network.files(run.scratch))
        most = kept.baseline.measured.count if kept else None
        evaluation = Evaluation(
            run.value("test"), run.value("metric"), network.inputs, run.value("finetune_seed"), most
        )
        compiled = comparison.Compiled(artifact, *compiling.kept_calls(folder))
        return comparison.measure(timer, evaluation, request.target, compiled, budgets, original), timer
