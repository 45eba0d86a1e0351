"""The history of checks: one record for each check, and the checks at which a figure changed its level."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from edgeprune.pipeline.request import Request
from edgeprune.records import History, Interval, Measurement, Outcome, Record
from edgeprune.storage import baselines


def of_request(request: Request, figure: str) -> History:
    """A figure over the checks of a project on a target. Raises `UsageError` if nothing was checked yet."""
    project, target = request.project, request.target
    records = baselines.history(baselines.history_path(request.profiles, project.name))
    return history(project.name, target.name, target.emulated, records, figure)


def record(measured: Measurement, outcome: Outcome, commit: str, created_s: int, note: str) -> Record:
    """What the history keeps of a check.

    Args:
        measured: what was measured.
        outcome: of all checks.
        commit: the project's; empty outside a repository.
        created_s: when, in seconds since 1970.
        note: the reason, if the measurement became the baseline.
    """
    from edgeprune.latency import stats

    return Record(
        created_s=created_s,
        commit=commit,
        artifact=measured.artifact,
        device=measured.device.identity,
        outcome=outcome,
        p50_ns=stats.latency(measured.samples),
        p90_ns=stats.latency(measured.samples, 0.9),
        peak_memory_bytes=measured.samples.peak_memory_bytes,
        size_bytes=measured.size_bytes,
        metric=measured.metric,
        note=note,
    )


def history(project: str, target: str, emulated: bool, records: Sequence[Record], figure: str) -> History:
    """A figure of the records that have it, and the indices at which its level changes. Another kind of device begins a level.

    Args:
        project: its name.
        target: its name.
        emulated: whether the target is emulated. Smaller changes are then found.
        records: the oldest first.
        figure: a field of `Record`.
    """
    from edgeprune.latency.changes import changes
    from edgeprune.stages.verdicts.verdict import POLICY

    floor = POLICY.allowed_slowdown(None, emulated)
    records = [one for one in records if getattr(one, figure) is not None]  # an artifact may have had no metric
    values = tuple(_value(one, figure) for one in records)
    starts = [i for i in range(1, len(records)) if records[i].device != records[i - 1].device]
    found = set(starts)
    for begin, end in pairwise([0, *starts, len(records)]):
        part = values[begin:end]
        if all(value > 0 for value in part):
            found |= {begin + at for at in changes(part, floor)}
    return History(project, target, figure, tuple(records), values, tuple(sorted(found)))


def _value(one: Record, figure: str) -> float:
    value = getattr(one, figure)
    return float(value.mid if isinstance(value, Interval) else value)


def commit_of(folder: Path) -> str:
    """The commit that is checked out in a folder, with "+" if files differ from it; empty outside a repository."""
    git = ["git", "-C", str(folder)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
        if head.returncode or not re.fullmatch(r"[0-9a-f]{40,64}", head.stdout.strip()):
            return ""
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, timeout=30, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return head.stdout.strip()[:12] + ("+" if changed.stdout.strip() else "")
