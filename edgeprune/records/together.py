"""The results and the checks of one network on several targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeprune.records.answer import Answer
from edgeprune.records.result import Result
from edgeprune.records.verdict import Outcome, Report


@dataclass(frozen=True, repr=False)
class Together(Answer):
    """One network on several targets: one plan, one training, and an artifact and a verdict for each target.

    Attributes:
        schema: of the JSON document, as in `Result`.
        status: the worst outcome of all targets.
        binds: the target whose latency, or the figure that, uses the largest share of its limit.
        shares: {target: the confirmed latency's share of the budget}; empty if nothing was cut or no latency has a limit.
        results: of each target.
    """

    schema: int
    status: Outcome
    binds: str
    shares: dict[str, float]
    results: tuple[Result, ...]

    def summary(self) -> dict[str, Any]:
        """See `Answer.summary`."""
        return {"status": self.status, "binds": self.binds}

    def rows(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """See `Answer.rows`: a row for each target."""
        return {
            "targets": [
                {"target": one.target, "status": one.status, "p50_ms": one.pruned.p50_ms} for one in self.results
            ]
        }


@dataclass(frozen=True, repr=False)
class Reports(Answer):
    """The check of one network on several targets: a report of each target's artifact."""

    reports: tuple[Report, ...]

    @property
    def outcome(self) -> Outcome:
        """The worst outcome of all targets."""
        return Outcome.worst(one.outcome for one in self.reports)

    def summary(self) -> dict[str, Any]:
        """See `Answer.summary`."""
        return {"outcome": self.outcome}

    def rows(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """See `Answer.rows`: a row for each check of each target."""
        return {
            "checks": [
                {"target": report.target, "check": check.name, "outcome": check.outcome, "value": check.value}
                for report in self.reports
                for check in report.checks
            ]
        }
