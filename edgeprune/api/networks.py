"""Answers that hold a network: it is loaded when it is first used."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.records import Cut, Project, Result, TargetPrecision
from edgeprune.records.answer import plain
from edgeprune.reports.html import html

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, repr=False)
class Compressed(Result):
    """The result of a whole run, with the network.

    Attributes:
        network: the file of the pruned, fine-tuned network; see `edgeprune.load`. None if nothing was pruned.
        project: the project.
        verdict: the folder of the verdict, from which `report` reads the run.
    """

    network: Path | None
    project: Project
    verdict: Path

    def report(self, path: Path | str | None = None) -> Path:
        """Write the report of the run, one HTML file, and return its path.

        Args:
            path: the file; by default `report.html` in the run folder.

        Raises:
            RuntimeMissing: the extra `report` is not installed.
        """
        from edgeprune.reports import report
        from edgeprune.stages.series import finished

        return report.write([finished.read(self.verdict)], self.run / report.NAME if path is None else Path(path))

    def to_dict(self) -> dict[str, Any]:
        """The result as `--json` prints it."""
        return {field.name: plain(getattr(self, field.name)) for field in fields(Result)}

    def summary(self) -> dict[str, Any]:
        """See `Answer.summary`."""
        names = ("status", "target", "runtime", "precision", "budget_ms")
        return {name: getattr(self, name) for name in names} | {"p50_ms": self.pruned.p50_ms, "artifact": self.artifact}

    def _repr_html_(self) -> str:
        return html(self)

    @cached_property
    def model(self) -> nn.Module:
        """The pruned, fine-tuned network, in eval mode. It is called as the original network is."""
        return _loaded(self.network, self.project)


@dataclass(frozen=True, eq=False, repr=False)
class PrunedNetwork(Cut):
    """A pruned network that was refitted and not yet trained.

    Attributes:
        confirmed: the plan that was confirmed on the device.
        network: its file; see `edgeprune.load`.
        project: the project that it is made from.
        target: the target that it is made for.
        budget: the budget that replaces the project's; None for the project's.
        precision: the one that replaces the target file's; None for the target file's.
    """

    project: Project
    target: str
    budget: str | None
    precision: TargetPrecision | None

    def summary(self) -> dict[str, Any]:
        """See `Answer.summary`."""
        return {
            "project": self.project.name,
            "target": self.target,
            "network": self.network,
            "plan": self.confirmed.plan,
        }

    @cached_property
    def model(self) -> nn.Module:
        """The network, in eval mode. It is called as the original network is. Train this object, then `finish`."""
        return _loaded(self.network, self.project)


def _loaded(path: Path | None, project: Project) -> nn.Module:
    from edgeprune.frontends.model import build_model
    from edgeprune.network import weights

    original = build_model(project)
    return original if path is None else weights.load(path, original)
