"""A project: what to compress, on what data, to which budget. Nested as `edgeprune.toml` is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from edgeprune.errors import UsageError
from edgeprune.records.budget import LIMITED, Budget, Limit

SplitName = Literal["train", "valid", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "valid", "test")
Optimizer = Literal["sgd", "adamw"]
OPTIMIZERS: Mapping[Optimizer, tuple[float, float]] = {  # default learning rate and weight decay
    "sgd": (0.01, 1e-4),
    "adamw": (1e-3, 1e-2),
}
# The keywords of `edgeprune.Project` that are not named as their keys in the file are.
KEYWORDS = {
    ("model", "factory"): "model",
    ("model", "inputs"): "example_inputs",
    ("budget", "latency"): "budget",
    ("check", "budget"): "check_budget",
}


def keyword(section: str, key: str) -> str:
    """The keyword of `edgeprune.Project` that stands for a key of the project file."""
    return KEYWORDS.get((section, key), key)


def where(path: Path, objects: bool, section: str, key: str = "") -> str:
    """A key in messages: "edgeprune.toml: [data] train", or the keyword: "Project(train=...)".

    Args:
        path: the project file.
        objects: whether the project is made of objects.
        section: the key's section.
        key: its name; empty for the whole section.
    """
    if objects:
        return f"Project({keyword(section, key)}=...)" if key else "Project(...):"
    return f"{path}: [{section}] {key}".rstrip()


@runtime_checkable
class Function(Protocol):
    """A function that the user wrote.

    A TOML file names one as "module:function". A program may pass the object itself.
    """

    @property
    def where(self) -> str:
        """The function's name in messages: the file, the key and the value."""

    @property
    def name(self) -> str:
        """The function's name in a stage's key."""

    def load(self) -> Callable[..., Any]:
        """The callable. Raises `UsageError` if it cannot be imported."""

    def sources(self) -> Mapping[str, str]:
        """Digests of its code: {file or package: digest or version}. Runs no user code."""

    def guarded(self, where: str = "") -> AbstractContextManager[None]:
        """A context that user code runs in. An error of the code becomes a `UsageError` that begins with `where`."""


@dataclass(frozen=True)
class ModelSection:
    """`[model]`: `factory` makes the network, `inputs` makes example inputs, and `weights` is the file of a state dict."""

    factory: Function
    inputs: Function
    weights: Path | None = None


@dataclass(frozen=True)
class DataSection:
    """`[data]`: the splits, the loss and the metric. docs/project-file.md describes each function.

    `train` may be left out if nothing is pruned. `batch_dims` is the dimension that holds the samples: of each input, then of
    the targets. Empty is 0 for all.

    The splits may be made from samples without labels: `samples` then names them. `is_agreement` is whether the metric is the
    agreement with the original network.
    """

    valid: Function
    train: Function | None = None
    test: Function | None = None
    loss: Function | None = None
    metric: Function | None = None
    closed_loop: Function | None = None
    clean: Function | None = None
    augment: Function | None = None
    batch_dims: tuple[int, ...] = ()
    samples: str | None = None
    is_agreement: bool = False

    @property
    def metric_name(self) -> str:
        """The metric's name in reports."""
        return "agreement with the original" if self.is_agreement else "metric"

    def split(self, name: SplitName) -> Function | None:
        """The function that returns a split; None if the project has no such split."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]

    def key(self, name: SplitName) -> str:
        """The key of `[data]` that gives a split."""
        return name if self.samples is None else "samples"


@dataclass(frozen=True)
class BudgetSection:
    """`[budget]`: the limits to meet, and how much lower the metric may be than the original network's.

    Without a limit nothing is pruned: the network is compiled and verified.

    Attributes:
        latency: of one call.
        max_metric_drop: how much lower the metric may be.
        size: bytes of the artifact.
        parameters: how many the network has.
        macs: multiply-accumulates of one call.
        activations: most bytes of tensors that live at the same time.
        memory: peak of the process on the device.
        throughput: samples a second on the device, at least.
        energy: of one call on the device, beyond that of the idle device.
        goal: "fastest" to find the least latency at which the metric falls by at most `max_metric_drop`.
    """

    latency: Budget | None = None
    max_metric_drop: float = 0.01
    size: Limit | None = None
    parameters: Limit | None = None
    macs: Limit | None = None
    activations: Limit | None = None
    memory: Limit | None = None
    throughput: Limit | None = None
    energy: Limit | None = None
    goal: Literal["fastest"] | None = None

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The limits on other figures than latency."""
        found = (getattr(self, figure) for figure in LIMITED)
        return tuple(limit for limit in found if limit is not None)

    @property
    def prunes(self) -> bool:
        """Whether the network is pruned: there is a limit to meet."""
        return self.latency is not None or self.goal is not None or bool(self.limits)

    def __str__(self) -> str:
        latency = [str(one) for one in (self.latency or self.goal,) if one is not None]
        return ", ".join([*latency, *map(str, self.limits)])


@dataclass(frozen=True)
class Preprocess:
    """`[preprocess]`: (x · scale − mean) ÷ std of the first input, by channel (dimension 1), inside the network."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            raise UsageError(f"mean has {len(self.mean)} numbers, std {len(self.std)}; give one of each for a channel")
        numbers = (*self.mean, *self.std, self.scale)
        if not all(map(math.isfinite, numbers)) or min(self.std) <= 0 or self.scale == 0:
            raise UsageError("mean, std and scale must be finite, std above zero, and scale must not be zero")

    @property
    def factor(self) -> tuple[float, ...]:
        """The factor of each channel: scale ÷ std."""
        return tuple(self.scale / std for std in self.std)

    @property
    def shift(self) -> tuple[float, ...]:
        """The number that is added to each channel after its factor: −mean ÷ std."""
        return tuple(-mean / std for mean, std in zip(self.mean, self.std, strict=True))


@dataclass(frozen=True)
class PruneSection:
    """`[prune]`: the importance criterion, and names or patterns of parameters whose channels must not be removed."""

    importance: str = "loss-curves"
    lock: tuple[str, ...] = ()


@dataclass(frozen=True)
class FinetuneSection:
    """`[finetune]`: how the pruned network is trained.

    Attributes:
        epochs: of the built-in training, as all other keys but `seed` and `trainer`.
        optimizer: its algorithm; see `OPTIMIZERS`.
        learning_rate: the highest one; None is the optimiser's default.
        weight_decay: of all parameters; None is the optimiser's default.
        ema: the decay of the weights' moving average; None for none.
        seed: of everything that is random.
        trainer: the user's function that trains instead.
    """

    epochs: int = 20
    optimizer: Optimizer = "sgd"
    learning_rate: float | None = None
    weight_decay: float | None = None
    ema: float | None = None
    seed: int = 0
    trainer: Function | None = None

    def __post_init__(self) -> None:
        if self.trainer is None:
            return
        unused = [one.name for one in fields(self) if getattr(self, one.name) != one.default]
        if unused := [name for name in unused if name not in ("seed", "trainer")]:
            raise UsageError(
                f"trainer excludes {' and '.join(unused)}, which belong to the built-in training; remove one or the other"
            )

    @property
    def rate(self) -> float:
        """The highest learning rate."""
        return OPTIMIZERS[self.optimizer][0] if self.learning_rate is None else self.learning_rate

    @property
    def decay(self) -> float:
        """The weight decay."""
        return OPTIMIZERS[self.optimizer][1] if self.weight_decay is None else self.weight_decay


@dataclass(frozen=True)
class CheckSection:
    """`[check]`: the limits of `edgeprune check`.

    Attributes:
        budget: the latency budgets; if there are none, `[budget] latency`.
        slowdown: the share by which the artifact may be slower than its baseline; None is the device's default.
    """

    budget: tuple[Budget, ...] = ()
    slowdown: float | None = None


@dataclass(frozen=True)
class Project:
    """A project: a file, or Python objects.

    Attributes:
        path: the project file; the folder of a project that is made of objects.
        name: names profiles and services.
        objects: whether it is made of objects. Messages then name keywords instead of keys of a file.
    """

    path: Path
    name: str
    model: ModelSection
    data: DataSection
    budget: BudgetSection
    preprocess: Preprocess | None = None
    prune: PruneSection = field(default_factory=PruneSection)
    finetune: FinetuneSection = field(default_factory=FinetuneSection)
    check: CheckSection = field(default_factory=CheckSection)
    objects: bool = False

    def __post_init__(self) -> None:
        if self.budget.prunes and self.data.train is None:
            given = self.where("data", "train")
            raise UsageError(f"{given} is missing; pruning reads training data; give it, or leave out the budget")

    @property
    def folder(self) -> Path:
        """The folder that runs and profiles are kept in: for a project file, the folder of the file."""
        return self.path if self.objects else self.path.parent

    @property
    def code(self) -> Path:
        """The folder of the user's code. The code of objects may be anywhere."""
        return Path(self.path.anchor) if self.objects else self.path.parent

    def where(self, section: str, key: str) -> str:
        """A key in messages; see `where`."""
        return where(self.path, self.objects, section, key)
