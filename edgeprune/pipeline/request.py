"""Requests to a pipeline: one project on one target."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypedDict, Unpack, runtime_checkable

from edgeprune import runtimes
from edgeprune.devices.patience import parse
from edgeprune.errors import UsageError, quoted, usage_error
from edgeprune.frontends import sections, toml
from edgeprune.limits import LIMITS
from edgeprune.records import Project, Target, TargetPrecision

SHARED = "shared"  # the run folder of stages that do not depend on the target
TEXTS = {"budget": '"12 ms" or "50%"', "patience": '"15m"', "precision": '"int8"'}  # options that are texts, such as …


@runtime_checkable
class Described(Protocol):
    """An object that describes a project, such as an `edgeprune.Project`."""

    record: Project


Given = Path | str | Described  # a project, as a user names it: the path of its file, or of its folder, or an object


class Watch(Protocol):
    """Follows the progress of a run: its methods are called as the run proceeds."""

    def start(self, stage: str) -> None:
        """A stage begins."""

    def step(self, done: int, total: int, note: str) -> None:
        """The stage in progress has done `done` of `total` steps."""

    def note(self, text: str) -> None:
        """What the stage in progress waits for."""

    def done(self, stage: str, note: str) -> None:
        """A stage ended, or its record was reused. `note` describes the record."""


class Quiet:
    """A watch that does nothing."""

    def start(self, stage: str) -> None: ...

    def step(self, done: int, total: int, note: str) -> None: ...

    def note(self, text: str) -> None: ...

    def done(self, stage: str, note: str) -> None: ...


class Options(TypedDict, total=False):
    """Options of every stage.

    Attributes:
        budget: a time ("12 ms") or a share of the original network's latency ("50%"); replaces the project file's.
        fresh: redo everything, the measurements too.
        watch: its methods are called with the progress; see `Watch`.
        wait: wait for a device that somebody else holds.
        patience: how long to repeat measurements that other programs disturb: "90s", "15m" or "2h".
        weights: the file of weights of the pruned network that the user trained. They replace fine-tuning.
        precision: replaces the target file's: "fp32", "fp16", "int8" or "auto".
    """

    budget: str | None
    fresh: bool
    watch: Watch | None
    wait: bool
    patience: str | None
    weights: Path | str | None
    precision: TargetPrecision | None


@dataclass(frozen=True)
class Request:
    """One project on one target.

    Attributes:
        project: the project.
        target: the target.
        fresh: redo everything, the measurements too.
        wait_s: how long to wait for a device that somebody else holds, in seconds.
        patience_s: how long to repeat measurements that other programs disturb, in seconds.
        watch: follows the progress.
        weights: the file of weights of the pruned network, instead of fine-tuning; None to train.
    """

    project: Project
    target: Target
    fresh: bool = False
    wait_s: float = 0.0
    patience_s: float = LIMITS.patience_s
    watch: Watch = field(default_factory=Quiet)
    weights: Path | None = None

    @property
    def runs(self) -> Path:
        """The folder that holds all run folders of the project."""
        return self.project.folder / "runs"

    @property
    def profiles(self) -> Path:
        """The folder of the target's profiles, baselines and histories."""
        return self.project.folder / "profiles" / self.target.name


def request(project: Given, target: str = "local", **options: Unpack[Options]) -> Request:
    """Read a project file and a target file.

    Args:
        project: an `edgeprune.Project`, or the path of an `edgeprune.toml` or of its folder.
        target: a target's name, or the path of its file.
        **options: see `Options`.

    Raises:
        UsageError: a file cannot be read or is wrong, or the target's runtime does not have its precision.
    """
    for name, example in TEXTS.items():
        value = options.get(name)
        if not isinstance(value, str | None):
            raise usage_error(f"{name} must be a text such as {example}, not {quoted(value)}")
    known = read_project(project, options.get("budget"))
    if known.budget.goal is not None and known.budget.latency is None:
        raise UsageError(
            f"{known.where('budget', 'goal')} is for edgeprune run, which finds the latency; give a --budget to this command"
        )
    to = toml.read_target(toml.find_target(target, known.folder))
    if to.name == SHARED:
        raise UsageError(f'{to.path}: "{SHARED}" names the run folder that all targets share; rename the target file')
    asked = options.get("precision")
    try:
        runtimes.host(to.runtime).candidates(asked or to.precision)
    except UsageError as error:
        where = f"{to.path}: [runtime] precision = {to.precision!r}" if asked is None else f"precision = {asked!r}"
        raise UsageError(f"{where}: {error}") from error
    to = to if asked is None else replace(to, precision=asked)
    patience, weights = options.get("patience"), options.get("weights")
    if weights is not None and not known.budget.prunes:
        raise UsageError(
            f"{known.where('budget', 'latency')} is missing, so nothing is pruned, and --weights is for the pruned network;"
            f" give the weights as {known.where('model', 'weights')}"
        )
    return Request(
        known,
        to,
        fresh=options.get("fresh", False),
        wait_s=LIMITS.lease_wait_s if options.get("wait") else 0.0,
        patience_s=LIMITS.patience_s if patience is None else parse(patience),
        watch=options.get("watch") or Quiet(),
        weights=None if weights is None else _existing(Path(weights)),
    )


def requests(project: Given, targets: Sequence[str], **options: Unpack[Options]) -> list[Request]:
    """A request for each target. Several targets get one network. Args and Raises as in `request`."""
    if not targets:
        raise UsageError("no target is named; name one, or several for one network")
    asked = [request(project, target, **options) for target in targets]
    names = [one.target.name for one in asked]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"--target names {', '.join(twice)} twice; name each target once")
    project_of = asked[0].project
    if len(asked) > 1 and project_of.budget.latency is None:
        where = project_of.where("budget", "latency")
        raise UsageError(f"{where} is missing, and one network for several targets meets a latency on each; give it")
    return asked


def require_known(options: Iterable[str], kind: type) -> None:
    """Raises `UsageError` for the name of an option that the TypedDict `kind` does not have. Python does not look."""
    known = list(kind.__annotations__)
    for name in options:
        if name not in known:
            raise usage_error(f"there is no option {quoted(name)}{toml.nearest(name, known)}")


def target_names(given: str | Path | Sequence[str | Path]) -> list[str]:
    """The targets that a program names: one, or several. Raises `UsageError` for anything else."""
    several = [given] if isinstance(given, str | Path) else given
    if not isinstance(several, Sequence) or not all(isinstance(one, str | Path) for one in several):
        raise usage_error(f'target must be a name or a path, such as "local", or a list of them, not {quoted(given)}')
    return list(map(str, several))


def _existing(weights: Path) -> Path:
    if not weights.is_file():
        raise UsageError(f"--weights {weights} is not a file; give the weights of the pruned network that you trained")
    return weights


def read_project(project: Given, budget: str | None = None) -> Project:
    """The record of a project. Args and Raises as in `frontends.toml.read_project`."""
    if isinstance(project, Described):
        return project.record if budget is None else sections.replaced(project.record, budget)
    path = Path(project)
    return toml.read_project(path / "edgeprune.toml" if path.is_dir() else path, budget)
