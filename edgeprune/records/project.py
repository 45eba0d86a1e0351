"""What to compress, on what data, to which budget."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from edgeprune.errors import UsageError
from edgeprune.records.budget import Budget


@dataclass(frozen=True)
class Preprocess:
    """What becomes of the first input inside the network: (x · scale − mean) ÷ std, by channel (dimension 1)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            raise UsageError(f"mean has {len(self.mean)} numbers, std {len(self.std)}; give one of each a channel")
        numbers = (*self.mean, *self.std, self.scale)
        if not all(map(math.isfinite, numbers)) or min(self.std) <= 0 or self.scale == 0:
            raise UsageError("mean, std and scale must be finite, std above zero, scale not zero")

    @property
    def factor(self) -> tuple[float, ...]:
        """What a channel is multiplied by, before `shift` is added."""
        return tuple(self.scale / std for std in self.std)

    @property
    def shift(self) -> tuple[float, ...]:
        """What is added to a channel."""
        return tuple(-mean / std for mean, std in zip(self.mean, self.std, strict=True))


@dataclass(frozen=True)
class Project:
    """`edgeprune.toml` as read: what to compress, on what data, to which budget. Functions stay names here."""

    path: Path
    name: str
    factory: str
    weights: Path | None
    inputs: str
    train: str
    valid: str
    test: str | None
    loss: str | None
    metric: str | None
    closed_loop: str | None = field(default=None, kw_only=True)
    budget: Budget
    clean: str | None = None
    augment: str | None = None
    max_metric_drop: float = 0.01
    preprocess: Preprocess | None = None
    importance: str = "loss-curves"
    lock: tuple[str, ...] = ()
    epochs: int = 20
    learning_rate: float = 0.01
    ema: float | None = None
    seed: int = 0
    budgets: tuple[Budget, ...] = ()  # that `check` holds it to; its `budget` where there are none
    slowdown: float | None = None  # against the baseline that `check` lets pass; a device's own where it is None
