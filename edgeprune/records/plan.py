"""The trial, scores, plans and their confirmation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeprune.records.answer import Answer
from edgeprune.records.device import Interval
from edgeprune.records.network import Groups


@dataclass(frozen=True)
class Tried:
    """What the trial found before anything was measured.

    Attributes:
        outputs: the names of the tensors that the model returns.
        metric: the original network's, of the first validation samples; None in closed loop.
        samples: how many samples that were.
    """

    outputs: tuple[str, ...]
    metric: float | None
    samples: int


@dataclass(frozen=True)
class Scores:
    """Importance scores: the expected increase of the loss for each removed unit, at least 0.

    Attributes:
        criterion: its name, as in `[prune] importance`.
        units: `units[group][unit]` is the score of removing only this unit.
        curves: `curves[group][k - 1]` is the measured score of keeping the best k units. A group without a measured curve is
            not in it: the scores of its removed units are added up.
        blocks: `blocks[block]` is the measured score of removing the block. Others are added up likewise.
    """

    criterion: str
    units: dict[str, tuple[float, ...]]
    curves: dict[str, tuple[float, ...]] = field(default_factory=dict)
    blocks: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in [*self.units.items(), *self.curves.items(), ("the blocks", tuple(self.blocks.values()))]:
            if any(not math.isfinite(v) or v < 0 for v in values):
                raise ValueError(f"the scores of {name} must be finite and at least 0")
        for group, curve in self.curves.items():
            if len(curve) != len(self.units[group]) or curve[-1] != 0 or sorted(curve, reverse=True) != list(curve):
                raise ValueError(f"the loss curve of {group} must never rise with another unit, and must end at 0")


@dataclass(frozen=True)
class Amount:
    """A figure of a plan, and its limit.

    Attributes:
        figure: as in `Limit`; or "latency", in nanoseconds.
        value: the figure of the pruned network.
        limit: the largest value that the budget allows.
        original: the figure of the original network.
        target: the target of a latency; empty if there is one target only.
    """

    figure: str
    value: float
    limit: float
    original: float
    target: str = ""

    @property
    def name(self) -> str:
        """The figure, and its target if there are several."""
        return f"{self.figure} on {self.target}" if self.target else self.figure

    @property
    def share(self) -> float:
        """The share of the limit that the figure uses."""
        return self.value / self.limit


@dataclass(frozen=True, repr=False)
class Plan(Answer):
    """The units that each group keeps, with the predicted latency, the expected loss, and a proof that it is the least loss.

    Attributes:
        keep: {free group: the units that it keeps, ascending}.
        predicted: the predicted latency of the pruned network; None without a latency budget.
        baseline: the predicted latency of the original network; likewise.
        budget_ns: the latency budget in nanoseconds; likewise.
        loss: the expected increase of the loss.
        bound: no plan within the budget has a smaller expected loss than this.
        gap: (loss − bound) / max(|loss|, tiny), at most 1e-3.
        profile: the digest of the profile that the plan was made from; empty without a latency budget.
        limits: the figures with other limits than one latency, see `binding`.
    """

    keep: dict[str, tuple[int, ...]]
    predicted: Interval | None
    baseline: Interval | None
    budget_ns: float | None
    loss: float
    bound: float
    gap: float
    profile: str
    limits: tuple[Amount, ...] = ()

    @property
    def amounts(self) -> tuple[Amount, ...]:
        """All figures that have limits, the latency first."""
        if self.predicted is None or self.baseline is None or self.budget_ns is None:
            return self.limits
        own = Amount("latency", self.predicted.mid, self.budget_ns, self.baseline.mid)
        return self.limits if any(one.figure == "latency" for one in self.limits) else (own, *self.limits)

    def latency_on(self, target: str) -> Amount:
        """The predicted latency on a target, and its budget; "" is the only target."""
        return next(one for one in self.amounts if one.figure == "latency" and one.target == target)

    def budget_on(self, target: str) -> float | None:
        """The latency budget on a target, whether it is one of several or the only one; None without one."""
        own = (one.limit for one in self.amounts if one.figure == "latency" and one.target in ("", target))
        return next(own, None)

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of several targets that have the same plan; empty if there is one target only."""
        return tuple(one.target for one in self.limits if one.target and one.figure == "latency")

    @property
    def binding(self) -> Amount:
        """The figure that uses the largest share of its limit. A looser limit on any other one changes nothing."""
        return max(self.amounts, key=lambda one: one.share)

    @property
    def widths(self) -> dict[str, int]:
        """{free group: how many units it keeps}."""
        return {group: len(units) for group, units in self.keep.items()}

    def rows(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """See `Answer.rows`: a row for each group."""
        return {"keep": [{"group": group, "keeps": width} for group, width in self.widths.items()]}

    @staticmethod
    def whole(groups: Groups, latency: Interval, baseline: Interval, budget_ns: float, evidence: str) -> Plan:
        """The plan that keeps everything. `latency` meets the budget, by the evidence with this digest."""
        keep = {group.name: tuple(range(group.width)) for group in groups.free}
        return Plan(keep, latency, baseline, budget_ns, 0.0, 0.0, 0.0, evidence)

    def cuts(self, groups: Groups) -> bool:
        """Whether anything is removed."""
        return any(len(self.keep[group.name]) < group.width for group in groups.free)


@dataclass(frozen=True)
class MeasuredPlan:
    """A plan as measured in a confirm round: its network was interleaved with the original network.

    `round` counts from 0. `widths` are as in `Plan.widths`. Latencies and the budget are in nanoseconds. `target` is empty if
    there is one target only.
    """

    round: int
    widths: dict[str, int]
    predicted_ns: float
    measured: Interval
    budget_ns: float
    target: str = ""

    @property
    def share(self) -> float:
        """The share of the budget that the measured latency uses."""
        return self.measured.mid / self.budget_ns

    @property
    def safe(self) -> bool:
        """Whether the whole interval is within the budget. Another measurement is then likely to be within it, too."""
        return self.measured.high <= self.budget_ns


@dataclass(frozen=True, repr=False)
class Confirmed(Answer):
    """A plan whose latency was measured, and the measurements of all plans that were tried."""

    plan: Plan
    measured: tuple[MeasuredPlan, ...]

    @property
    def rounds(self) -> int:
        """How many confirm rounds it took; 0 if nothing was cut."""
        return max((1 + one.round for one in self.measured), default=0)

    @property
    def measurement(self) -> MeasuredPlan | None:
        """The measurement of the confirmed plan, on the target that binds; None if nothing was cut."""
        return max(self.measurements, key=lambda one: one.share, default=None)

    @property
    def binds(self) -> str:
        """The target whose latency, or the figure that, uses the largest share of its limit."""
        figure, own = self.plan.binding, self.measurement
        return own.target if own is not None and figure.figure == "latency" else figure.name

    def of(self, target: str) -> Confirmed:
        """What was measured on one target, whether it is one of several or the only one."""
        return replace(self, measured=tuple(one for one in self.measured if one.target in ("", target)))

    def on(self, target: str) -> MeasuredPlan | None:
        """The measurement of the confirmed plan on a target; "" is the only one. None if nothing was measured."""
        return next((one for one in self.measurements if one.target == target), None)

    @property
    def measurements(self) -> tuple[MeasuredPlan, ...]:
        """The measurements of the confirmed plan, one of each target."""
        found = {one.target: one for one in reversed(self.measured) if one.widths == self.plan.widths}
        return tuple(reversed(found.values()))


@dataclass(frozen=True, repr=False)
class Cut(Answer):
    """A confirmed plan, and the file of the network that was cut to it, refitted and not yet trained."""

    confirmed: Confirmed
    network: Path

    def to_dict(self) -> dict[str, Any]:
        """The confirmed plan as `--json` prints it, and the network's file."""
        return {**self.confirmed.to_dict(), "network": self.network.as_posix()}

    def rows(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """See `Answer.rows`: the plan's."""
        return self.confirmed.plan.rows()


@dataclass(frozen=True)
class Epoch:
    """One epoch of training. Epoch 0 is the network before training.

    Attributes:
        epoch: its number.
        loss: the mean loss; None for epoch 0.
        metric: the validation metric after the epoch.
        learning_rate: the last one; None for epoch 0.
    """

    epoch: int
    loss: float | None
    metric: float
    learning_rate: float | None = None


@dataclass(frozen=True)
class Pruned:
    """The pruned network: the cut is proved, and the remaining weights are refitted.

    Attributes:
        untrained: the file of the network that is best without training. `edgeprune.load` reads it.
        start: the file of the network that training starts from.
        parameters: how many the pruned network and the original network have.
        refitted: whether weights were refitted.
    """

    untrained: Path
    start: Path
    parameters: tuple[int, int]
    refitted: bool


@dataclass(frozen=True)
class Tuned:
    """The pruned network after fine-tuning.

    Attributes:
        network: its file. `edgeprune.load` reads it.
        history: all epochs; empty without training.
        reason: why nothing was trained, or whose weights they are; empty after training.
    """

    network: Path
    history: tuple[Epoch, ...]
    reason: str = ""

    @property
    def best(self) -> Epoch:
        """The epoch whose weights were kept: the one with the best validation metric. Of equal ones, it is the first."""
        return max(self.history, key=lambda epoch: (epoch.metric, -epoch.epoch))
