"""The result of a whole run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune.records.answer import Answer
from edgeprune.records.device import Device
from edgeprune.records.target import Precision, TargetPrecision
from edgeprune.records.verdict import Check, Figures, Outcome


@dataclass(frozen=True)
class Provenance:
    """How a kept record was made: facts for readers, which are not in its key.

    Attributes:
        created_s: when, in seconds since 1970.
        project: its name.
        file: the name of the project file; empty for a project of objects.
        target: its name.
        runtime: its name.
        precision: as the target gives it.
        budget: as the user gave it; None without a budget.
        device: the device; None if it was not opened yet.
    """

    created_s: int
    project: str
    file: str
    target: str
    runtime: str
    precision: TargetPrecision
    budget: str | None
    device: Device | None


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
