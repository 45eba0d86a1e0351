"""A project: what to compress, on what data, to which budget. Nested as `edgeprune.toml` is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edgeprune.errors import UsageError
from edgeprune.records.budget import Budget


class Function(Protocol):
    """A function of the user's, wherever it comes from.

    A TOML file names one as "module:function"; a program may hand over the object itself.
    """

    @property
    def where(self) -> str:
        """How messages name it: the file, the key and the value."""

    @property
    def name(self) -> str:
        """What identifies it in a stage's key."""

    def load(self) -> Callable[..., Any]:
        """The callable. Raises `UsageError` where it cannot be had."""

    def sources(self) -> Mapping[str, str]:
        """Digests of the code it is made of: {file or package: digest or version}. Runs no user code."""

    def guarded(self, where: str = "") -> AbstractContextManager[None]:
        """A context in which user code runs: what it raises becomes one `UsageError` that begins with `where`."""


@dataclass(frozen=True)
class ModelSection:
    """`[model]`: `factory` makes the network, `inputs` its example inputs; `weights` is a state dict's file."""

    factory: Function
    inputs: Function
    weights: Path | None = None


@dataclass(frozen=True)
class DataSection:
    """`[data]`: the splits, and the functions that judge outputs. See docs/project-file.md."""

    train: Function
    valid: Function
    test: Function | None = None
    loss: Function | None = None
    metric: Function | None = None
    closed_loop: Function | None = None
    clean: Function | None = None
    augment: Function | None = None

    def split(self, name: str) -> Function | None:
        """The function of "train", "valid" or "test"."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]


@dataclass(frozen=True)
class BudgetSection:
    """`[budget]`: the latency to meet, and how much of the metric that may cost."""

    latency: Budget
    max_metric_drop: float = 0.01


@dataclass(frozen=True)
class Preprocess:
    """`[preprocess]`: (x · scale − mean) ÷ std of the first input, by channel (dimension 1), inside the network."""

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
        """What each channel is multiplied by, before `shift` is added."""
        return tuple(self.scale / std for std in self.std)

    @property
    def shift(self) -> tuple[float, ...]:
        """What is added to each channel."""
        return tuple(-mean / std for mean, std in zip(self.mean, self.std, strict=True))


@dataclass(frozen=True)
class PruneSection:
    """`[prune]`: the importance criterion, and names or patterns of parameters whose channels are kept."""

    importance: str = "loss-curves"
    lock: tuple[str, ...] = ()


@dataclass(frozen=True)
class FinetuneSection:
    """`[finetune]`: how the pruned network is trained. `ema` is the decay of the moving average of weights."""

    epochs: int = 20
    learning_rate: float = 0.01
    ema: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class CheckSection:
    """`[check]`: the budgets that `check` decides, `[budget] latency` where there are none.

    `slowdown` is the share by which the artifact may be slower than its baseline. None takes the device's default.
    """

    budget: tuple[Budget, ...] = ()
    slowdown: float | None = None


@dataclass(frozen=True)
class Project:
    """A project as read. `path` is its file, which messages name; `name` names profiles and services."""

    path: Path
    name: str
    model: ModelSection
    data: DataSection
    budget: BudgetSection
    preprocess: Preprocess | None = None
    prune: PruneSection = field(default_factory=PruneSection)
    finetune: FinetuneSection = field(default_factory=FinetuneSection)
    check: CheckSection = field(default_factory=CheckSection)

    @property
    def folder(self) -> Path:
        """The folder of the project file: runs and profiles are kept in it."""
        return self.path.parent
