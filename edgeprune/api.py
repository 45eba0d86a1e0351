"""The verbs as functions, for notebooks and programs. The command line does nothing else.

Every function takes the path of an `edgeprune.toml` and a target, runs the stages that are missing, and returns a record.
All raise the errors of `edgeprune.errors`.

    import edgeprune

    result = edgeprune.run("edgeprune.toml", target="local", budget="50%")
    print(result.status, result.pruned.p50_ms)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from edgeprune.devices import install
from edgeprune.frontends import toml
from edgeprune.limits import LIMITS
from edgeprune.pipeline.request import Watch, read_project, request
from edgeprune.pipeline.run import Run, open_run
from edgeprune.records import (
    Artifact,
    Confirmed,
    History,
    Plan,
    Profile,
    Release,
    Report,
    Result,
    Survey,
    Target,
    Verdict,
)

if TYPE_CHECKING:
    from torch import nn


class Options(TypedDict, total=False):
    """Options that every verb takes.

    Attributes:
        budget: a time ("12 ms") or a share of the original network's latency ("50%"); replaces the project file's.
        fresh: redo everything, the measurements too.
        watch: follows the progress; see `edgeprune.pipeline.request.Watch`.
        wait: wait for a device that somebody else holds.
    """

    budget: str | None
    fresh: bool
    watch: Watch | None
    wait: bool


@contextmanager
def opened(project: Path | str, target: str = "local", **options: Unpack[Options]) -> Iterator[Run]:
    """A run of a project on a target, from which the record of any stage can be read."""
    from edgeprune.stages.registry import RULES

    with open_run(request(project, target, **options), RULES) as run:
        yield run


def run(project: Path | str, target: str = "local", **options: Unpack[Options]) -> Result:
    """Run the whole pipeline: profile, plan, prune, fine-tune, compile, verify.

    Args:
        project: the path of an `edgeprune.toml`, or of its folder.
        target: a target's name, or the path of its file.
        **options: see `Options`.

    Returns:
        The artifact that meets the budget, its figures (milliseconds, bytes) and its checks.

    Example:
        >>> result = edgeprune.run("examples/digits", target="local", budget="50%")
        >>> result.pruned.p50_ms <= result.budget_ms
        True
    """
    from edgeprune.stages.result import result

    with opened(project, target, **options) as started:
        return result(started)


def profile(project: Path | str, target: str = "local", **options: Unpack[Options]) -> Profile:
    """Measure the network's variants on the device, in integer nanoseconds. The profile is kept beside the project."""
    from edgeprune.stages import profile

    with opened(project, target, **options) as started:
        return started.record(profile.STAGE).profile


def plan(project: Path | str, target: str = "local", **options: Unpack[Options]) -> Plan:
    """The exact plan for the budget, with its proof; not yet confirmed on the device."""
    from edgeprune.stages import plan

    with opened(project, target, **options) as started:
        return started.record(plan.STAGE)


def prune(project: Path | str, target: str = "local", **options: Unpack[Options]) -> tuple[Confirmed, Path]:
    """The plan as confirmed on the device, and the file of the pruned network (see `load`), not yet fine-tuned."""
    from edgeprune.stages import confirm, prune

    with opened(project, target, **options) as started:
        return started.record(confirm.STAGE), started.record(prune.STAGE).untrained


def finetune(project: Path | str, target: str = "local", **options: Unpack[Options]) -> Path:
    """The file of the pruned network after fine-tuning (see `load`)."""
    from edgeprune.stages import finetune

    with opened(project, target, **options) as started:
        return started.record(finetune.STAGE).network


def compile(project: Path | str, target: str = "local", **options: Unpack[Options]) -> Artifact:  # noqa: A001
    """The fine-tuned network as the target's runtime loads it."""
    from edgeprune.stages import compile as compiling

    with opened(project, target, **options) as started:
        return started.record(compiling.STAGE)


def verify(project: Path | str, target: str = "local", **options: Unpack[Options]) -> Verdict:
    """All checks of the artifact on the device: numerics, metric, latency, size, memory."""
    from edgeprune.stages import verify

    with opened(project, target, **options) as started:
        return started.record(verify.STAGE)


def deploy(project: Path | str, target: str = "local", **options: Unpack[Options]) -> list[Release]:
    """Deploy the artifact on the target's hosts.

    Returns:
        What runs on each host now.

    Raises:
        VerdictError: verification failed, or the release does not run on a host, which then runs what it ran before.
        InconclusiveError: verification was inconclusive.
        SecurityError: a host refuses the release.
    """
    from edgeprune.stages import deploy

    with opened(project, target, **options) as started:
        return deploy.deployed(started)


def check(
    project: Path | str,
    target: str = "local",
    budgets: Sequence[str] = (),
    baseline: Path | None = None,
    reason: str = "",
    **options: Unpack[Options],
) -> Report:
    """Compare the artifact with its budgets and its baseline.

    Args:
        project: the path of an `edgeprune.toml`, or of its folder.
        target: a target's name, or the path of its file.
        budgets: such as "12 ms", "p99 20 ms" or "50%"; they replace the project's.
        baseline: the baseline's file; by default the one in the target's profiles.
        reason: with a reason, the measurement becomes the baseline.
        **options: see `Options`.
    """
    from edgeprune.stages import check

    wanted = [toml.read_budget("budget", text) for text in budgets]
    with opened(project, target, **options) as started:
        return check.check(started, check.Options(wanted, baseline, reason))


def groups(project: Path | str) -> Survey:
    """What of the project's model can be cut: its channel groups and blocks. Asks no device."""
    from edgeprune.stages import survey

    return survey.of_project(read_project(project))


def history(project: Path | str, target: str = "local", figure: str = "p50_ns") -> History:
    """A figure over all checks of the project on the target, and where its level changed."""
    from edgeprune.stages.history import of_request

    return of_request(request(project, target), figure)


def rollback(
    project: Path | str, target: str = "local", say: Callable[[str], None] = print, wait: bool = False
) -> list[Release]:
    """Deploy the project's previous release again on the target's hosts, and return what runs on each of them now.

    Raises `UsageError` where there is no previous release, and `SecurityError` where it was changed since.
    """
    from edgeprune.stages import deploy

    asked = request(project, target, wait=wait)
    return deploy.rollback(asked.target, asked.project.name, say, asked.wait_s)


def releases(target: str = "local", wait: bool = False) -> list[Release]:
    """Every release of every service on the target's hosts."""
    from edgeprune.stages import deploy

    return deploy.releases(_target(target), LIMITS.lease_wait_s if wait else 0.0)


def setup(target: str, say: Callable[[str], None] = print, wait: bool = False) -> str:
    """Install the agent and the target's runtime on its hosts, without root, and return the runtime's version there."""
    found = [install.setup(one, say, LIMITS.lease_wait_s if wait else 0.0) for _, one in _target(target).all_hosts]
    return found[0]


def load(path: Path | str, model: nn.Module) -> nn.Module:
    """Load a pruned network.

    Args:
        path: a `pruned.safetensors` or `tuned.safetensors` that edgeprune wrote.
        model: a new instance of the original network; it stays unchanged.

    Returns:
        A pruned copy of `model` with the saved weights, in eval mode.

    Raises:
        UsageError: the file and the model do not belong together.

    Example:
        >>> network = edgeprune.load(edgeprune.finetune("edgeprune.toml", budget="50%"), build())
    """
    from edgeprune.network import weights

    return weights.load(path, model)


def _target(name: str) -> Target:
    return toml.read_target(toml.find_target(name, Path.cwd()))


__all__ = [
    "check", "compile", "deploy", "finetune", "groups", "history", "load", "plan", "profile", "prune", "releases",
    "rollback", "run", "setup", "verify",
]  # fmt: skip
