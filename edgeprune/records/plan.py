"""Scores, plans and their confirmation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from edgeprune.records.device import Interval
from edgeprune.records.network import Groups


@dataclass(frozen=True)
class Scores:
    """What a group's units are worth: `units[group][unit]` ≥ 0, the expected loss of removing that unit alone.

    `curves[group][k - 1]`, where it was measured, is the expected loss when the best k units are kept; where not, the
    scores of those that go are added up. `blocks[block]` likewise is what is lost with a whole block.
    """

    criterion: str
    units: dict[str, tuple[float, ...]]
    curves: dict[str, tuple[float, ...]] = field(default_factory=dict)
    blocks: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in [*self.units.items(), *self.curves.items(), ("the blocks", tuple(self.blocks.values()))]:
            if any(not math.isfinite(v) or v < 0 for v in values):
                raise ValueError(f"the scores of {name} must be finite and not negative")
        for group, curve in self.curves.items():
            if len(curve) != len(self.units[group]) or curve[-1] != 0 or sorted(curve, reverse=True) != list(curve):
                raise ValueError(f"the loss curve of {group} must fall with every unit kept, to zero when all are")


@dataclass(frozen=True)
class Plan:
    """Which units each group keeps, what that should cost in time and loss, and the proof that nothing beats it.

    `gap` is (loss − bound) / max(|loss|, tiny): at most 1e-3 by contract.
    """

    keep: dict[str, tuple[int, ...]]
    predicted: Interval
    baseline: Interval
    budget_ns: float
    loss: float
    bound: float
    gap: float
    profile: str

    @property
    def widths(self) -> dict[str, int]:
        """Units kept a group."""
        return {group: len(units) for group, units in self.keep.items()}

    def cuts(self, groups: Groups) -> bool:
        """Whether anything goes."""
        return any(len(self.keep[group.name]) < group.width for group in groups.free)


@dataclass(frozen=True)
class Round:
    """One plan measured: what it was predicted to take, and what its network took, unpruned beside it.

    Plans of the same `turn` of the loop were measured together.
    """

    turn: int
    widths: dict[str, int]
    predicted_ns: float
    measured: Interval
    budget_ns: float

    @property
    def share(self) -> float:
        """The share of the budget that the measured latency uses."""
        return self.measured.mid / self.budget_ns

    @property
    def safe(self) -> bool:
        """Whether the whole interval is within the budget, so that measuring again is unlikely to say otherwise."""
        return self.measured.high <= self.budget_ns


@dataclass(frozen=True)
class Confirmed:
    """A plan whose latency was measured, and all plans that were on the way to it."""

    plan: Plan
    rounds: tuple[Round, ...]

    @property
    def turns(self) -> int:
        """How often plans were measured; 0 where nothing was cut."""
        return max((1 + measured.turn for measured in self.rounds), default=0)


@dataclass(frozen=True)
class Epoch:
    """One epoch of training: mean loss, validation metric after it, last learning rate. Epoch 0 is before training."""

    epoch: int
    loss: float | None
    metric: float
    learning_rate: float | None = None
