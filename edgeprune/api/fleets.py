"""The releases on the hosts of a target. The functions are public, as those of `verbs`.

All of them look at every host that they may. An error is raised at the end, and its message says what each host runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict, Unpack

from edgeprune.api import verbs
from edgeprune.devices.fleet import Pace
from edgeprune.devices.patience import parse
from edgeprune.frontends import toml
from edgeprune.limits import LIMITS
from edgeprune.pipeline.request import Given, request
from edgeprune.records import BundleFiles, Fleet, Target
from edgeprune.stages.releases import rollout

Reporter = Callable[[str], None]


class RolloutOptions(TypedDict, total=False):
    """How a fleet is worked through.

    Attributes:
        parallel: hosts at the same time.
        canary: hosts that come first; the others wait until these have proved the release.
        soak: how long the release must run on the canaries: "90s", "10m".
        max_failures: hosts that may fail before no other host begins.
        host_time: the deadline of one host: "15m".
    """

    parallel: int
    canary: int
    soak: str | None
    max_failures: int
    host_time: str | None


def plan(wait: bool = False, **options: Unpack[RolloutOptions]) -> rollout.Plan:
    """The options as a record. Raises `UsageError` for a wrong one."""
    host_time, soak = options.get("host_time"), options.get("soak")
    host_s = LIMITS.host_s if host_time is None else parse(host_time, "--host-time")
    pace = Pace(options.get("parallel", LIMITS.fleet_parallel), options.get("max_failures", 0), host_s)
    soak_s = 0.0 if soak is None else parse(soak, "--soak")
    return rollout.Plan(pace, options.get("canary", 0), soak_s, LIMITS.lease_wait_s if wait else 0.0)


def target_of(name: str) -> Target:
    """A target by its name, or by the path of its file."""
    return toml.read_target(toml.find_target(name, Path.cwd()))


def deploy(
    project: Given,
    target: str | Sequence[str] = "local",
    plan: rollout.Plan | None = None,
    again: bool = False,
    **options: Unpack[verbs.Options],
) -> Fleet:
    """Deploy the artifact on the target's hosts: canaries first, then the others, several at the same time.

    Args:
        project: as in `run`.
        target: a target's name, or the path of its file. Of several, each gets its artifact of their common run.
        plan: from `edgeprune.api.fleets.plan(canary=1, soak="10m")`; by default eight hosts at a time, and none may fail.
        again: continue the last deployment; only hosts that lack its release get it.
        **options: as in `run`.

    Returns:
        Every host with its deployed release.

    Raises:
        VerdictError: verification failed, or the release does not run on a host. That host returns to the release before.
        InconclusiveError: verification was inconclusive.
        SecurityError: a host refuses the release.
    """
    from edgeprune.stages import deploy

    with verbs.opened(project, target, **options) as started:
        return rollout.require(deploy.deployed(started, plan or rollout.Plan(wait_s=started.request.wait_s), again))


def bundle(
    project: Given,
    target: str | Sequence[str] = "local",
    output: Path | str = "bundle",
    **options: Unpack[verbs.Options],
) -> BundleFiles:
    """Write the verified artifact as a signed bundle, for devices that SSH does not reach.

    Args:
        project: as in `run`.
        target: a target's name, or the path of its file. Each of several has a bundle, and its name is added to `output`.
        output: a new folder, a file that ends in .tar, or `oci://REGISTRY/NAME:TAG`.
        **options: as in `run`.

    Returns:
        Where each bundle is, with its digests. On the device: `python3 runner.py --install FILE.tar`.
    """
    from edgeprune.stages import deploy

    with verbs.opened(project, target, **options) as started:
        return deploy.written(started, str(output))


def rollback(
    project: Given, target: str = "local", report: Reporter = print, plan: rollout.Plan | None = None
) -> Fleet:
    """Deploy the previous release of the project on the target's hosts again.

    Args:
        project: as in `run`.
        target: a target's name, or the path of its file.
        report: is called with a line for each step.
        plan: as in `deploy`.

    Raises:
        UsageError: a host has no previous release.
        SecurityError: the previous release was changed since it was deployed.
    """
    asked = request(project, target)
    return rollout.require(rollout.rollback(asked.target, asked.project.name, report, plan or rollout.AT_ONCE))


def withdraw(
    project: Given, release: str, target: str = "local", report: Reporter = print, plan: rollout.Plan | None = None
) -> Fleet:
    """Take a bad release off the hosts, and have them refuse it from now on. Where it is deployed, the one before returns.

    Args:
        project: as in `run`.
        release: its digest, or the first characters of it.
        target: a target's name, or the path of its file.
        report: is called with a line for each step.
        plan: as in `deploy`.
    """
    asked = request(project, target)
    return rollout.require(rollout.withdraw(asked.target, asked.project.name, release, report, plan or rollout.AT_ONCE))


def releases(target: str = "local", wait: bool = False) -> Fleet:
    """All releases of all services on the target's hosts. `wait` waits for a host that somebody else holds.

    Raises:
        DeviceError: a host does not answer. To see the others: `edgeprune.api.fleets.look`.
    """
    return rollout.require(look(target, wait))


def look(target: str = "local", wait: bool = False) -> Fleet:
    """As `releases`, with the errors of hosts that fail in the result."""
    return rollout.releases(target_of(target), LIMITS.lease_wait_s if wait else 0.0)


__all__ = ["bundle", "deploy", "releases", "rollback", "withdraw"]
