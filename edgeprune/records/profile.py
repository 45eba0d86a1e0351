"""Measured variants of a network on a device, and their explanation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from edgeprune.records.device import Device, Samples


@dataclass(frozen=True)
class Experiment:
    """One variant measured: its widths, its whole-network samples, and what the runtime's profiler saw a layer.

    Experiments with the same `batch` were timed in turns in the same processes, run i with run i; the one whose role is
    "anchor" has the same widths in every batch of a profile, and takes the machine's drift out of the others; "reference" is
    the unpruned network in fp32, where the profile's precision is another. `layer_ns`
    ranks layers; only `samples` carry the scale of the network.
    """

    role: str  # "anchor", "baseline", "reference", "fit" or "confirm"
    batch: int
    widths: dict[str, int]
    samples: Samples
    layer_ns: dict[str, int] = field(default_factory=dict)
    other_ns: int = 0


@dataclass(frozen=True)
class Profile:
    """All experiments with one network structure on one device, runtime, thread count and precision."""

    target: str
    model: str
    network: str
    device: Device
    threads: int
    precision: str
    experiments: tuple[Experiment, ...]

    def __post_init__(self) -> None:
        anchored = {experiment.batch for experiment in self.experiments if experiment.role == "anchor"}
        if not {experiment.batch for experiment in self.experiments} <= anchored:
            raise ValueError("every batch of a profile holds its anchor")

    def with_experiments(self, more: Iterable[Experiment]) -> Profile:
        """A new profile with these experiments appended."""
        return replace(self, experiments=(*self.experiments, *more))

    @property
    def variants(self) -> tuple[Experiment, ...]:
        """The experiments in the profile's own precision: all but the references."""
        return tuple(experiment for experiment in self.experiments if experiment.role != "reference")

    @property
    def unpruned_role(self) -> str:
        """The role of the unpruned network in fp32, which shares of a budget refer to."""
        return "baseline" if self.precision == "fp32" else "reference"

    @property
    def next_batch(self) -> int:
        """The number of a batch that is to be measured."""
        return 1 + max((experiment.batch for experiment in self.experiments), default=-1)


@dataclass(frozen=True)
class ExplainedLayer:
    """What was measured of a layer, and what its latency model makes of it.

    `share` is of the unpruned network's latency, `points` are (inputs, outputs, nanoseconds by the runtime's profiler); a step
    is how many channels cost as much as one, None where they stay.
    """

    name: str
    share: float
    inputs: int
    outputs: int
    points: tuple[tuple[int, int, int], ...]
    input_step: int | None
    output_step: int | None


@dataclass(frozen=True)
class ExplainedGroup:
    """Which widths of a group pay: for each target its step, and how much dearer widths are that are no multiple of 4."""

    name: str
    width: int
    steps: dict[str, tuple[int, float]]


@dataclass(frozen=True)
class Explanation:
    """A latency model, explained. `overhead` is the share of the unpruned network's latency that is in no layer."""

    target: str
    runtime: str
    emulated: bool
    simulated: bool
    experiments: int
    median_error: float
    error: float
    exponent: float
    overhead: float
    layers: tuple[ExplainedLayer, ...]
    groups: tuple[ExplainedGroup, ...]
