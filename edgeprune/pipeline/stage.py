"""Declarations: a stage is a function of records, and an input is what stages read that no stage makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from edgeprune.pipeline.request import Watch

if TYPE_CHECKING:
    from edgeprune.pipeline.run import Run

Record = TypeVar("Record")
Reads = TypeVar("Reads")


def _settled(record: Any) -> bool:
    return True


@dataclass(frozen=True)
class Output:
    """Where a stage writes and what it reports to.

    Files in `folder` are kept with the stage. `scratch` is removed at the end of the run, and the folder that `partial` gives
    outlives a killed stage. `save` replaces one file in one step. `events` is where TensorBoard looks. `fresh` asks a stage
    that is not kept to redo everything.
    """

    folder: Path
    scratch: Path
    partial: Callable[[], Path]
    save: Callable[[Path, Callable[[Path], None]], None]
    events: Path
    watch: Watch
    fresh: bool

    def path(self, name: str) -> Path:
        """The path of a file of this stage; the folders above it are made."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


@dataclass(frozen=True)
class Stage(Generic[Reads, Record]):
    """A function of records.

    Attributes:
        name: names the stage's folders.
        reads: a frozen data class. Each field is named after an input or an earlier stage, and holds its value.
        run: makes the record from what it reads, and from nothing else. The stage's key is the digest of exactly that.
        record: the class of the record; paths in it are files of the stage.
        describe: what the progress line says of a record, and of what it was made from.
        kept: whether the run folder keeps the record. A stage that is not kept decides itself what is missing.
        settled: whether a kept record is reused; an inconclusive verdict is made again.
        releases_device: whether the device is given back first, as before training.
    """

    name: str
    reads: type[Reads]
    run: Callable[[Reads, Output], Record]
    record: type[Record]
    describe: Callable[[Record, Reads], str]
    kept: bool = True
    settled: Callable[[Record], bool] = _settled
    releases_device: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The inputs and stages that it reads."""
        return tuple(field.name for field in fields(self.reads))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Input:
    """What stages read and no stage makes: a part of the project or of the target, a device, a runtime.

    Attributes:
        value: what a stage is given; called once a run, when a stage needs it.
        settings: what of the user's files it follows from, {label: JSON value}. Part of every reader's key.
        machine: what of devices and installed packages it follows from. Part of every reader's key, too.
        of_target: whether it depends on the target. Stages that read no such input are shared by all targets.
        leased: whether it holds the device, so that it is dropped with the lease.
    """

    value: Callable[[Run], Any]
    settings: Callable[[Run], Mapping[str, object]]
    machine: Callable[[Run], Mapping[str, object]] = lambda run: {}
    of_target: bool = False
    leased: bool = False


@dataclass(frozen=True)
class Rules:
    """All stages and inputs of a pipeline, by name.

    Raises `ValueError` for a name that is both, and for a stage that reads a name that is neither.
    """

    stages: Mapping[str, Stage[Any, Any]]
    inputs: Mapping[str, Input]

    def __post_init__(self) -> None:
        if both := sorted(set(self.stages) & set(self.inputs)):
            raise ValueError(f"{', '.join(both)}: names of stages, and of inputs, too")
        for stage in self.stages.values():
            unknown = [name for name in stage.names if name not in self.stages and name not in self.inputs]
            if unknown:
                raise ValueError(f"stage {stage.name} reads {', '.join(unknown)}: no stage and no input has that name")

    def inputs_of(self, stage: Stage[Any, Any]) -> tuple[str, ...]:
        """The inputs that a stage follows from: those it reads, and those of the stages that it reads."""
        found: dict[str, None] = {}
        for name in stage.names:
            found |= dict.fromkeys(self.inputs_of(self.stages[name]) if name in self.stages else (name,))
        return tuple(found)

    def of_target(self, stage: Stage[Any, Any]) -> bool:
        """Whether a stage depends on the target. Other stages are shared by all targets of a project."""
        return any(self.inputs[name].of_target for name in self.inputs_of(stage))
