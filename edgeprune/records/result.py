"""The result of a whole run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune.records.answer import Answer
from edgeprune.records.target import Precision
from edgeprune.records.verdict import Check, Figures, Outcome


@dataclass(frozen=True, repr=False)
class Result(Answer):
    """The result of a whole run, as `--json` prints it. docs/json.md describes each key."""

    schema: int
    status: Outcome
    target: str
    runtime: str
    precision: Precision
    emulated: bool
    simulated: bool
    budget_ms: float | None
    predicted_ms: float | None
    confirmed_ms: float | None
    rounds: int
    metric_name: str
    baseline: Figures
    pruned: Figures
    plan: dict[str, Any] | None
    checks: tuple[Check, ...]
    artifact: Path
    latest: Path
    run: Path
