"""Measured variants of a network on a device, and their explanation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Literal

from edgeprune.records.answer import Answer
from edgeprune.records.device import Device, Samples
from edgeprune.records.target import Precision

Role = Literal["anchor", "baseline", "reference", "fit", "confirm"]


@dataclass(frozen=True)
class Experiment:
    """One variant of a network, measured.

    Attributes:
        role: what the variant is for.
            "anchor": it has the same widths in every batch of a profile, so that drift of the machine cancels out.
            "baseline": the original network in the profile's precision.
            "reference": the original network in fp32, if the profile's precision is another one.
            "fit": the latency model is fitted to it.
            "confirm": the network of a plan.
        batch: experiments with the same number were interleaved in the same processes, run i with run i.
        widths: {group: remaining channels}.
        samples: times of the whole network.
        layer_ns: {layer: nanoseconds} by the runtime's profiler. They rank layers; only `samples` are true times.
        other_ns: nanoseconds by the profiler that belong to no layer.
    """

    role: Role
    batch: int
    widths: dict[str, int]
    samples: Samples
    layer_ns: dict[str, int] = field(default_factory=dict)
    other_ns: int = 0


@dataclass(frozen=True, repr=False)
class Profile(Answer):
    """All experiments with one network structure on one device, runtime, thread count and precision.

    `target` and `model` are names. `network` is the digest of the structure, as in `Groups`.
    """

    target: str
    model: str
    network: str
    device: Device
    threads: int
    precision: Precision
    experiments: tuple[Experiment, ...]

    def __post_init__(self) -> None:
        anchored = {experiment.batch for experiment in self.experiments if experiment.role == "anchor"}
        if not {experiment.batch for experiment in self.experiments} <= anchored:
            raise ValueError("every batch of a profile must hold an anchor")

    def summary(self) -> dict[str, object]:
        """See `Answer.summary`."""
        return {**super().summary(), "device": f"{self.device.cpu}, {self.device.runtime_version}"}

    def rows(self) -> Mapping[str, Sequence[Mapping[str, object]]]:
        """See `Answer.rows`: a row for each experiment."""
        return {"experiments": [self._row(one) for one in self.experiments]}

    def _row(self, one: Experiment) -> dict[str, object]:
        times = [ns for run in one.samples.runs for ns in run.times_ns]
        channels = sum(one.widths.values())
        return {"role": one.role, "batch": one.batch, "channels": channels, "median, ms": median(times) / 1e6}

    def with_experiments(self, more: Iterable[Experiment]) -> Profile:
        """A new profile with these experiments appended."""
        return replace(self, experiments=(*self.experiments, *more))

    @property
    def variants(self) -> tuple[Experiment, ...]:
        """The experiments in the profile's own precision: all but the references."""
        return tuple(experiment for experiment in self.experiments if experiment.role != "reference")

    @property
    def original_role(self) -> Role:
        """The role of the original network in fp32. Budgets that are shares refer to its latency."""
        return "baseline" if self.precision == "fp32" else "reference"

    @property
    def next_batch(self) -> int:
        """The number of the next batch to measure."""
        return 1 + max((experiment.batch for experiment in self.experiments), default=-1)


@dataclass(frozen=True)
class ExplainedLayer:
    """A layer's measurements, and its latency model.

    Attributes:
        name: the layer.
        share: the layer's share of the original network's latency.
        inputs: its input channels in the original network.
        outputs: its output channels in the original network.
        points: (input channels, output channels, nanoseconds by the runtime's profiler) of each measurement.
        input_step: so many input channels cost as much as one. None if the input channels cannot be cut.
        output_step: the same of its output channels.
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
    """The widths of a group that a runtime computes efficiently.

    Attributes:
        name: the group.
        width: its channels in the original network.
        steps: {target: (step, penalty)}. So many channels cost as much as one. The penalty is the latency of widths that are
            not multiples of 4, relative to those that are, minus 1.
    """

    name: str
    width: int
    steps: dict[str, tuple[int, float]]


@dataclass(frozen=True)
class Explanation:
    """A latency model, explained.

    Attributes:
        target: its name.
        runtime: its name.
        emulated: whether the device is emulated.
        simulated: whether the runtime is a stand-in.
        experiments: how many the model is fitted to.
        median_error: the median relative error on variants that the model was not fitted to.
        error: 90 % of these errors are below it.
        exponent: the network's latency is this power of the sum of its layers. It is above 1 if layers slow each other down.
        overhead: share of the original network's latency that is in no layer.
        layers: in the order of execution.
        groups: the groups that can be cut.
    """

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
