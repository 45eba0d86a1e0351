"""Scores, plans and their confirmation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

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
class MeasuredPlan:
    """A plan whose network was measured, interleaved with the original network, in a confirm round (from 0)."""

    round: int
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
        """Whether the whole interval is within the budget, so that another measurement is likely to agree."""
        return self.measured.high <= self.budget_ns


@dataclass(frozen=True)
class Confirmed:
    """A plan whose latency was measured, and all plans that were measured on the way to it."""

    plan: Plan
    measured: tuple[MeasuredPlan, ...]

    @property
    def rounds(self) -> int:
        """How many confirm rounds it took; 0 where nothing was cut."""
        return max((1 + one.round for one in self.measured), default=0)

    @property
    def own(self) -> MeasuredPlan | None:
        """The measurement of the confirmed plan; None where nothing was cut."""
        return next((one for one in self.measured if one.widths == self.plan.widths), None)


@dataclass(frozen=True)
class Epoch:
    """One epoch of training: mean loss, validation metric after it, last learning rate. Epoch 0 is before training."""

    epoch: int
    loss: float | None
    metric: float
    learning_rate: float | None = None


@dataclass(frozen=True)
class Pruned:
    """The pruned network, proved and refitted: `untrained` is best without training, training begins at `start`.

    Both are files that `edgeprune.load` reads. `parameters` are its parameters and the original network's.
    """

    untrained: Path
    start: Path
    parameters: tuple[int, int]
    refitted: bool


@dataclass(frozen=True)
class Tuned:
    """The pruned network after fine-tuning, a file that `edgeprune.load` reads, and the history of all epochs.

    Without training the history is empty, and `reason` says why.
    """

    network: Path
    history: tuple[Epoch, ...]
    reason: str = ""

    @property
    def best(self) -> Epoch:
        """The epoch whose weights were kept: the best on the validation metric, the first of equals."""
        return max(self.history, key=lambda epoch: (epoch.metric, -epoch.epoch))
