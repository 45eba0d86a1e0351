"""What is asked of a pipeline: one project on one target."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from edgeprune import runtimes
from edgeprune.errors import UsageError
from edgeprune.frontends import toml
from edgeprune.limits import LIMITS
from edgeprune.records import Project, Target

SHARED = "shared"  # the run folder of stages that read nothing of a target


class Watch(Protocol):
    """Follows the progress of a run."""

    def start(self, stage: str) -> None:
        """A stage begins."""

    def step(self, done: int, total: int, note: str) -> None:
        """The stage in progress advances."""

    def done(self, stage: str, note: str) -> None:
        """A stage ended, or was reused; `note` describes its record."""


class Quiet:
    """Follows nothing."""

    def start(self, stage: str) -> None: ...

    def step(self, done: int, total: int, note: str) -> None: ...

    def done(self, stage: str, note: str) -> None: ...


@dataclass(frozen=True)
class Request:
    """One project on one target. `fresh` redoes what is kept; `wait_s` is how long to wait for a device in use, in seconds."""

    project: Project
    target: Target
    fresh: bool = False
    wait_s: float = 0.0
    watch: Watch = field(default_factory=Quiet)

    @property
    def runs(self) -> Path:
        """The folder of all run folders of the project."""
        return self.project.folder / "runs"

    @property
    def profiles(self) -> Path:
        """The folder that keeps what the target's device answered."""
        return self.project.folder / "profiles" / self.target.name


def request(
    project: Path | str,
    target: str = "local",
    budget: str | None = None,
    fresh: bool = False,
    wait: bool = False,
    watch: Watch | None = None,
) -> Request:
    """Read a project file and a target file.

    Args:
        project: the path of an `edgeprune.toml`, or of its folder.
        target: a target's name, or the path of its file.
        budget: "12 ms" or "50%"; replaces the file's.
        fresh: redo what the run folder and the profile hold.
        wait: wait for a device that somebody else holds.
        watch: follows the progress.

    Raises:
        UsageError: a file that cannot be read, or a precision that the target's runtime does not have.
    """
    known = read_project(project, budget)
    to = toml.read_target(toml.find_target(target, known.folder))
    if to.name == SHARED:
        raise UsageError(f'{to.path}: "{SHARED}" names the run folder that all targets share; rename the target file')
    try:
        runtimes.host(to.runtime).candidates(to.precision)
    except UsageError as error:
        raise UsageError(f"{to.path}: [runtime] precision = {to.precision!r}: {error}") from error
    return Request(known, to, fresh, LIMITS.lease_wait_s if wait else 0.0, watch or Quiet())


def read_project(project: Path | str, budget: str | None = None) -> Project:
    """The project of an `edgeprune.toml`, or of the folder that holds one. Raises `UsageError` for a bad file."""
    path = Path(project)
    return toml.read_project(path / "edgeprune.toml" if path.is_dir() else path, budget)
