"""Declarations: a stage is a function of records. An input is a value that stages read and no stage makes."""

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
    """The folders that a stage writes to, and the progress that it reports to.

    Attributes:
        folder: files in it are kept with the stage.
        scratch: a folder that is removed at the end of the run.
        partial: makes a folder that stays if the stage is killed.
        save: replaces a file in one step; see `Store.save`.
        events: the folder that TensorBoard reads.
        watch: is called with the stage's progress.
        fresh: whether a stage that is not kept must redo everything.
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
        run: makes the record from what it reads, and from nothing else. The stage's key is the digest of what it reads.
        record: the class of the record. Paths in it are files of the stage.
        describe: the progress line of a finished stage, from its record and from what it read.
        kept: whether the run folder keeps the record. A stage that is not kept decides itself what is missing.
        settled: whether a kept record is reused. For instance, an inconclusive verdict is made again.
        published: the folder of the record's files that `latest` in the run folder leads to; None if it does not.
        releases_device: whether the device and the run folder are free for other runs meanwhile, for instance in training.
        joint: whether targets with one plan share the stage: it is then of their common run.
    """

    name: str
    reads: type[Reads]
    run: Callable[[Reads, Output], Record]
    record: type[Record]
    describe: Callable[[Record, Reads], str]
    kept: bool = True
    settled: Callable[[Record], bool] = _settled
    published: Callable[[Record], Path] | None = None
    releases_device: bool = False
    joint: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the inputs and stages that it reads."""
        return tuple(field.name for field in fields(self.reads))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Input:
    """A value that stages read and no stage makes: a part of the project or the target, a device, a runtime.

    Attributes:
        value: makes the value. It is called at most once in a run, when a stage needs it.
        settings: the user's settings that it depends on, {label: JSON value}. They are in the key of each reader.
        machine: the facts of devices and installed packages that it depends on, likewise.
        of_target: whether it depends on the target. All targets share the stages that read no such input.
        leased: whether it holds the device. It is then dropped when the lease ends.
    """

    value: Callable[[Run], Any]
    settings: Callable[[Run], Mapping[str, object]]
    machine: Callable[[Run], Mapping[str, object]] = lambda run: {}
    of_target: bool = False
    leased: bool = False


@dataclass(frozen=True)
class Rules:
    """All stages and inputs of a pipeline, by name.

    `redone` is given if several runs share what they redo: it holds the keys of what was redone, which the next runs reuse.

    Raises:
        ValueError: a name is a stage's and an input's, or a stage reads a name that is neither.
    """

    stages: Mapping[str, Stage[Any, Any]]
    inputs: Mapping[str, Input]
    redone: set[str] | None = None

    def __post_init__(self) -> None:
        if both := sorted(set(self.stages) & set(self.inputs)):
            raise ValueError(f"{', '.join(both)}: a name must not be both a stage's and an input's")
        for stage in self.stages.values():
            unknown = [name for name in stage.names if name not in self.stages and name not in self.inputs]
            if unknown:
                raise ValueError(f"stage {stage.name} reads {', '.join(unknown)}: no stage and no input has that name")

    def inputs_of(self, stage: Stage[Any, Any]) -> tuple[str, ...]:
        """The names of the inputs that a stage depends on: its own, and those of the stages that it reads."""
        found: dict[str, None] = {}
        for name in stage.names:
            found |= dict.fromkeys(self.inputs_of(self.stages[name]) if name in self.stages else (name,))
        return tuple(found)

    def after_joint(self, stage: Stage[Any, Any]) -> bool:
        """Whether a stage reads a joint stage, directly or not."""
        read = [self.stages[name] for name in stage.names if name in self.stages]
        return any(one.joint or self.after_joint(one) for one in read)

    def of_target(self, stage: Stage[Any, Any]) -> bool:
        """Whether a stage depends on the target. All targets of a project share the other stages."""
        return any(self.inputs[name].of_target for name in self.inputs_of(stage))
