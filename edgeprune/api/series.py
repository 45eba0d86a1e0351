"""Fronts and comparisons: several plans or runs at once. The functions are public, as those of `verbs`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from edgeprune.api import verbs
from edgeprune.pipeline.request import Given, read_project
from edgeprune.records import Comparison, Front

if TYPE_CHECKING:
    from edgeprune.reports.pictures import Picture

ORIGINAL = "100%"  # a budget for stages that only ask whether there is one


@dataclass(frozen=True, repr=False)
class PlannedFront(Front):
    """A front that draws itself."""

    def plot(self) -> Picture:
        """A picture of the expected loss against the predicted latency. It needs the extra `report`."""
        from edgeprune.reports import pictures

        return pictures.front(self.points, knee=None if self.knee is None else self.points[self.knee])


def front(project: Given, target: str = "local", points: int = 20, **options: Unpack[verbs.Options]) -> PlannedFront:
    """Predict the loss over the whole range of latency, before anything is trained, to choose a budget by.

    Stages that are missing run first: the survey, the scores and the profile. The device is used only for the profile.

    Args:
        project: an `edgeprune.Project`, or the path of an `edgeprune.toml` or of its folder.
        target: a target's name, or the path of its file.
        points: how many exact plans, evenly spaced from the least latency that any plan reaches to the original network's.
        **options: see `edgeprune.verbs.Options`.

    Returns:
        The plans, the fastest one first, and the knee. `plot()` draws them.

    Example:
        >>> front = edgeprune.front("examples/digits")
        >>> front.points[front.knee].share
        0.069
    """
    from edgeprune.stages.series import front as stage

    if options.get("budget") is None and read_project(project).budget.latency is None:
        options["budget"] = ORIGINAL
    with verbs.opened(project, target, **options) as run:
        return PlannedFront(**vars(stage.front(run, points)))


def compare(runs: Sequence[Path | str]) -> Comparison:
    """Compare finished runs with the first one. It needs no project and no torch.

    Args:
        runs: run folders, such as "runs/local", whose last verdict counts, or folders of verdicts in them; or one folder that
            holds run folders.

    Returns:
        The figures of each run, with ratios and their intervals. `why_no_ratio` says where latencies cannot be compared.

    Raises:
        UsageError: a run cannot be read, or there are fewer than two.

    Example:
        >>> edgeprune.compare(["runs/local", "runs/local-openvino"]).runs[1].latency_ratio
        Interval(low=0.81, mid=0.83, high=0.84)
    """
    from edgeprune.stages.series import compare as stage

    return stage.compare([Path(run) for run in runs])


__all__ = ["compare", "front"]
