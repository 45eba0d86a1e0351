"""The answer of a whole run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune.records.verdict import Check, Figures, Outcome


@dataclass(frozen=True)
class Result:
    """What a whole run answers; `--json` prints it. `schema` changes when a key changes its meaning."""

    schema: int
    status: Outcome
    target: str
    runtime: str
    precision: str
    emulated: bool
    simulated: bool
    budget_ms: float
    predicted_ms: float
    confirmed_ms: float
    rounds: int
    baseline: Figures
    pruned: Figures
    plan: dict[str, Any]
    checks: tuple[Check, ...]
    artifact: Path
    run: Path
