"""The verbs as functions: all that the command line does, for notebooks and programs.

Every function takes the path of an `edgeprune.toml`, a target and a budget, walks what is missing of the road up to its
verb, and returns the noun. All raise the errors of `edgeprune.errors`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.devices import install as installing
from edgeprune.frontends import toml
from edgeprune.limits import LIMITS
from edgeprune.pipeline import road as pipeline
from edgeprune.pipeline.road import Road, Watch, open_road, read_history
from edgeprune.records import Artifact, Confirmed, History, Plan, Profile, Release, Report, Result, Survey, Verdict
from edgeprune.stages import deploy as deploying

if TYPE_CHECKING:
    from torch import nn


def run(
    project: Path | str,
    target: str = "local",
    budget: str | None = None,
    fresh: bool = False,
    watch: Watch | None = None,
    wait: bool = False,
) -> Result:
    """Walk the whole road: the artifact that meets the budget, its figures and its checks.

    `budget` is a time ("12 ms") or a share of the unpruned model ("50%") and replaces the project file's; `fresh` redoes
    what is already there; `watch` is told of progress; `wait` waits for a device that somebody else holds. Times in the
    result are milliseconds, sizes bytes.
    """
    with open_road(project, target, budget, fresh, watch, wait) as road:
        return road.result


def profile(
    project: Path | str,
    target: str = "local",
    fresh: bool = False,
    watch: Watch | None = None,
    wait: bool = False,
) -> Profile:
    """Measure the network's variants on the device (integer nanoseconds); also kept in `profiles/` beside the project."""
    with open_road(project, target, None, fresh, watch, wait) as road:
        return road.profile


def plan(
    project: Path | str,
    target: str = "local",
    budget: str | None = None,
    fresh: bool = False,
    watch: Watch | None = None,
    wait: bool = False,
) -> Plan:
    """The exact plan for the budget, with its proof; not yet confirmed on the device."""
    with open_road(project, target, budget, fresh, watch, wait) as road:
        return road.plan


def prune(
    project: Path | str,
    target: str = "local",
    budget: str | None = None,
    fresh: bool = False,
    watch: Watch | None = None,
    wait: bool = False,
) -> tuple[Confirmed, Path]:
    """The plan as confirmed on the device, and the file of the cut network (see `load`), not yet fine-tuned."""
    with open_road(project, target, budget, fresh, watch, wait) as road:
        return road.confirmed, road.pruned


def finetune(
    project: Path | str,
    target: str = "local",
    budget: str | None = None,
    fresh: bool = False,
    watch: Watch | None = None,
    wait: bool = False,
) -> Path:
    """The file of the cut network after fine-tuning (see `load`)."""
    with open_road(project, target, budget, fresh, watch, wait) as road:
        return road.tuned


def compile(  # noqa: A001 - the verb's name everywhere
    project: Path | str,
    target: str = "local",
    budget: str | None = None,
    fresh: bool = False,
    watch: Watch | None = None,
    wait: bool = False,
) -> Artifact:
    """The fine-tuned network as the target's runtime loads it."""
    with open_road(project, target, budget, fresh, watch, wait) as road:
        return road.artifact


def verify(
    project: Path | str,
    target: str = "local",
    budget: str | None = None,
    fresh: bool = False,
    watch: Watch | None = None,
    wait: bool = False,
) -> Verdict:
    """All checks of the artifact on the device: numerics, metric, latency, size, memory."""
    with open_road(project, target, budget, fresh, watch, wait) as road:
        return road.verdict


def deploy(
    project: Path | str,
    target: str = "local",
    budget: str | None = None,
    fresh: bool = False,
    watch: Watch | None = None,
    wait: bool = False,
) -> list[Release]:
    """Put the artifact into service on the target's hosts: what runs on each of them now.

    Raises `VerdictError` or `InconclusiveError` where the verdict did not pass, and `VerdictError` too where the release does
    not run on a host, which then serves what it served before; `SecurityError` for what a host refuses.
    """
    with open_road(project, target, budget, fresh, watch, wait) as road:
        return road.deploy()


def check(
    project: Path | str,
    target: str = "local",
    budgets: Sequence[str] = (),
    baseline: Path | None = None,
    reason: str = "",
    watch: Watch | None = None,
    wait: bool = False,
) -> Report:
    """Hold the artifact against its budgets ("12 ms", "p99 20 ms", "50%") and its baseline, which a `reason` makes it."""
    asked = [toml.read_budget("budget", text) for text in budgets]
    with open_road(project, target, watch=watch, wait=wait) as road:
        return road.check(asked, baseline, reason)


def groups(project: Path | str) -> Survey:
    """What of the project's model can be cut: its channel groups and blocks; no device is asked."""
    return pipeline.survey(project)


def history(project: Path | str, target: str = "local", figure: str = "p50_ns") -> History:
    """A figure over all checks of the project on the target, and where it changed its level."""
    return read_history(project, target, figure)


def rollback(
    project: Path | str, target: str = "local", say: Callable[[str], None] = print, wait: bool = False
) -> list[Release]:
    """Put the project's previous release back into service on the target's hosts: what runs on each of them now.

    Raises `UsageError` where nothing was in service before, `SecurityError` where it was altered since.
    """
    path = Path(project)
    known = toml.read_project(path / "edgeprune.toml" if path.is_dir() else path)
    to = toml.read_target(toml.find_target(target, known.path.parent))
    return deploying.rollback(to, known.name, say, LIMITS.lease_wait_s if wait else 0.0)


def releases(target: str = "local", wait: bool = False) -> list[Release]:
    """Every release of every service on the target's hosts."""
    to = toml.read_target(toml.find_target(target, Path.cwd()))
    return deploying.releases(to, LIMITS.lease_wait_s if wait else 0.0)


def setup(target: str, say: Callable[[str], None] = print, wait: bool = False) -> str:
    """Put the agent and the target's runtime on its hosts, without root: the runtime's version there."""
    known = toml.read_target(toml.find_target(target, Path.cwd()))
    found = [installing.setup(one, say, LIMITS.lease_wait_s if wait else 0.0) for _, one in known.all_hosts]
    return found[0]


def load(path: Path | str, model: nn.Module) -> nn.Module:
    """Bring a cut network back: `model` is a fresh unpruned one, `path` a `pruned.safetensors` or `tuned.safetensors`.

    Returns a cut copy of `model` with the saved weights, in eval mode. Raises `UsageError` when they do not belong together.
    """
    from edgeprune.network import surgery as network

    return network.load(path, model)


__all__ = [
    "Road", "check", "compile", "deploy", "finetune", "groups", "history", "load", "open_road", "plan", "profile",
    "prune", "releases", "rollback", "run", "setup", "verify",
]  # fmt: skip
