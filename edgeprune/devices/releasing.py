"""The releases on one host: list, publish, activate. The agent does the work there; see `agent/releases.py`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from edgeprune.devices import transports, wire
from edgeprune.devices.bench import identified
from edgeprune.devices.transports.base import Refusal, Transport, ask
from edgeprune.devices.validate import printable
from edgeprune.errors import BusyError, DeviceError, EdgepruneError, SecurityError, UsageError, VerdictError
from edgeprune.limits import LIMITS
from edgeprune.records import Device, Manifest, Release, Target
from edgeprune.runtimes import machine
from edgeprune.storage import codec

KEY_CHARS = 1100
LATEST_S = 2**33  # of times that a host may report
# The kinds of refusal that are no fault of the link or the agent.
REFUSALS: Mapping[str, type[EdgepruneError]] = {
    "refused": SecurityError,
    "unhealthy": VerdictError,
    "busy": BusyError,
    "no-ssh-keygen": UsageError,
}
Reply = TypeVar("Reply")


class ReleaseHost:
    """A connected host that releases go to.

    Raises:
        SecurityError: the host refuses a bundle or a release, for instance since it was altered.
        VerdictError: a release does not run there.
        BusyError: another process changes the releases there.
        UsageError: the host has no ssh-keygen to check signatures with.
        DeviceError: the host or the link fails.
    """

    def __init__(
        self, name: str, target: Target, transport: Transport, left_s: Callable[[], float] = lambda: LIMITS.host_s
    ) -> None:
        self.name, self.transport = name, transport
        self._target, self._transport, self._left_s = target, transport, left_s

    def device(self) -> Device:
        """What the host is."""
        return identified(self._transport, self._target)

    def releases(self) -> list[Release]:
        """Every release of every service."""
        found = self._ask(wire.ListReleases(LIMITS.release_s, self._target.runtime)).releases
        return [_release(self.name, entry) for entry in found]

    def current(self, service: str) -> Release:
        """The release of a service that is deployed. Raises `DeviceError` where there is none."""
        for release in self.releases():
            if release.service == service and release.state == "current":
                return release
        raise DeviceError(f"{self.name}: no release of {service} is deployed")

    def publish(self, service: str, files: Sequence[Path], digest: str, signer: str) -> bool:
        """Send a signed bundle. The host checks it and runs it, and does not deploy it yet.

        Args:
            service: the name of the service.
            files: the bundle's files, its manifest first.
            digest: SHA-256 of the manifest, in hex.
            signer: the public key that it is signed with.

        Returns:
            Whether the host accepted the key as its first one.
        """
        source = os.path.dirname(self._transport.put(files))
        runtime = self._target.runtime
        return self._ask(
            wire.Publish(LIMITS.release_s, runtime, service, digest, source, signer, LIMITS.check_s, whoami())
        ).enrolled

    def activate(self, service: str, digest: str) -> str | None:
        """Deploy a release that is on the host. Where it does not run, the host returns to the release before.

        Returns:
            The digest of the release before, if there was one.
        """
        job = wire.Activate(
            deadline_s=LIMITS.release_s,
            runtime=self._target.runtime,
            service=service,
            digest=digest,
            check_s=LIMITS.check_s,
            reload=self._target.deploy.reload,
            reload_s=LIMITS.reload_s,
            keep=self._target.deploy.keep,
            who=whoami(),
        )
        return self._ask(job).previous

    def withdraw(self, service: str, digest: str) -> str | None:
        """Have the host refuse a release from now on. Returns the digest of the one that is deployed then."""
        reload, keep = self._target.deploy.reload, self._target.deploy.keep
        runtime, s = self._target.runtime, LIMITS.release_s
        return self._ask(
            wire.Withdraw(s, runtime, service, digest, LIMITS.check_s, reload, LIMITS.reload_s, keep, whoami())
        ).current

    def keys(
        self, add: Sequence[str] = (), retire: Sequence[str] = (), revoke: Sequence[str] = ()
    ) -> dict[str, tuple[str, ...]]:
        """Change the public keys whose bundles the host accepts. Returns {state: keys}."""
        job = wire.ChangeKeys(LIMITS.job_s, whoami(), tuple(add), tuple(retire), tuple(revoke))
        found: dict[str, tuple[str, ...]] = {"accepted": (), "retired": (), "revoked": ()}
        for entry in self._ask(job).keys:
            found[entry.state] += (printable(entry.key, KEY_CHARS),)
        return found

    def audit(self) -> tuple[str, ...]:
        """The last lines of the host's audit log, as they are there."""
        return self._ask(wire.ReadAudit(LIMITS.job_s, LIMITS.audit_bytes)).lines

    def metrics(self, service: str) -> str:
        """The figures of a running service, in Prometheus' text format."""
        return self._ask(wire.ReadMetrics(LIMITS.job_s, service)).text

    def _ask(self, job: wire.Job[Reply]) -> Reply:
        try:
            timely = replace(job, deadline_s=min(job.deadline_s, self._left_s()))
            return ask(self._transport, self._target.name, timely)
        except Refusal as error:
            if error.kind not in REFUSALS:
                raise
            fix = ". Run there: apt install openssh-client" if error.kind == "no-ssh-keygen" else ""
            raise REFUSALS[error.kind](f"{self._target.name}: {error.message}{fix}") from error


@contextmanager
def open_host(
    name: str, target: Target, wait_s: float = 0.0, left_s: Callable[[], float] = lambda: LIMITS.host_s
) -> Iterator[ReleaseHost]:
    """Connect to a host.

    Args:
        name: the host's.
        target: names only this host.
        wait_s: how long to wait for a host that another process holds.
        left_s: the time that is left for the host; it raises if there is none.
    """
    with closing(transports.connect(target, wait_s)) as transport:
        yield ReleaseHost(name, target, transport, left_s)


def whoami() -> str:
    """Who works on this machine, for audit logs on devices."""
    return printable(machine.whoami(), 200)


def _release(host: str, entry: wire.ReleaseEntry) -> Release:
    manifest, damage = None, entry.damage
    if not damage:
        try:
            manifest = codec.loads(Manifest, codec.dumps(entry.manifest), f"{host}: manifest.json")
        except UsageError:
            damage = "made by another version of edgeprune"
    if entry.since_s is not None and entry.since_s >= LATEST_S:
        raise DeviceError(f"{host}: the list of its releases cannot be used: one is deployed since {entry.since_s}")
    return Release(host, entry.service, entry.digest, entry.state, entry.since_s, manifest, damage)
