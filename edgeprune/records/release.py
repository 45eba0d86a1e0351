"""Signed bundles and the releases on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeprune.records.answer import Answer
from edgeprune.records.device import Device
from edgeprune.records.target import Precision
from edgeprune.records.verdict import Verdict

ReleaseState = Literal["current", "previous", "kept"]
HostStep = Literal["done", "unchanged", "failed", "unknown", "not begun"]


@dataclass(frozen=True)
class Manifest:
    """The signed part of a bundle: its files, and the verification that it passed.

    Attributes:
        schema: the version of this record.
        service: the project's name; a host keeps its releases in a folder of this name.
        target: the name of the target that it was verified on.
        created_s: when, in seconds since 1970.
        edgeprune: the version that made it.
        runtime: the name of the runtime.
        model: the file to load.
        precision: the artifact's.
        threads: CPU threads of an inference.
        dla: the core of the deep-learning accelerator; None if it is not used.
        artifact: the digest of the artifact.
        relative_error: how far a host's outputs may be from the kept ones, relative to the largest one.
        device: the device of the verification.
        verdict: the outcome of the verification.
        files: {name: (bytes, SHA-256)} of all other files of the bundle.
        sequence: counts the releases of a service. Bundles from before this key count as 0, and are ordered by `created_s`.
        reload: the command that notifies a server, and
        keep: how many releases a host keeps, where the bundle is installed by `runner.py --install`.
    """

    schema: int
    service: str
    target: str
    created_s: int
    edgeprune: str
    runtime: str
    model: str
    precision: Precision
    threads: int
    dla: int | None
    artifact: str
    relative_error: float
    device: Device
    verdict: Verdict
    files: dict[str, tuple[int, str]]
    sequence: int = 0
    reload: tuple[str, ...] = ()
    keep: int = 5

    @property
    def order(self) -> tuple[int, int]:
        """The order of releases: by sequence, and those without one by their time."""
        return self.sequence, 0 if self.sequence else self.created_s


@dataclass(frozen=True, repr=False)
class Release(Answer):
    """A bundle on a host.

    Attributes:
        host: its name.
        service: the project's name.
        digest: the digest of the manifest's file.
        state: "current" is deployed, "previous" was deployed before it, and others are "kept".
        since_s: since when it has been in this state, in seconds since 1970; None if it is "kept".
        manifest: its manifest; None if it is damaged.
        damage: why it cannot be deployed; empty if it can be.
    """

    host: str
    service: str
    digest: str
    state: ReleaseState
    since_s: int | None = None
    manifest: Manifest | None = None
    damage: str = ""


@dataclass(frozen=True)
class HostState:
    """What came of the work on one host of a fleet.

    Attributes:
        host: its name.
        step: "unchanged" had nothing to do; "unknown" did not answer in time, so the work may go on there.
        releases: those that were asked for: the deployed one, or all.
        error: why it failed; empty if it did not.
        exit_code: the exit code of that error; 0 if it did not fail.
    """

    host: str
    step: HostStep
    releases: tuple[Release, ...] = ()
    error: str = ""
    exit_code: int = 0


@dataclass(frozen=True, repr=False)
class Fleet(Answer):
    """Every host of a target, in its order, the failed ones too. `stopped` says why hosts were left out, if any were."""

    hosts: tuple[HostState, ...]
    stopped: str = ""
    interrupted: bool = False

    @property
    def releases(self) -> list[Release]:
        """The releases of all hosts."""
        return [release for host in self.hosts for release in host.releases]

    @property
    def failed(self) -> list[HostState]:
        """The hosts that failed or did not answer in time."""
        return [host for host in self.hosts if host.error]

    @property
    def exit_code(self) -> int:
        """130 after an interrupt, else that of the first error; 0 if there is none."""
        return 130 if self.interrupted else next((host.exit_code for host in self.failed), 0)


@dataclass(frozen=True)
class BundleFile:
    """A signed bundle for devices that SSH does not reach.

    Attributes:
        target: the target that it was verified on.
        path: the folder, the .tar file, or the place in a registry: oci://…
        release: its digest, which devices name the release by.
        number: of the release.
        digest: of the artifact in the registry, sha256:…; empty for a file.
    """

    target: str
    path: str
    release: str
    number: int
    digest: str = ""


@dataclass(frozen=True, repr=False)
class BundleFiles(Answer):
    """The bundles of a run: one for each target."""

    bundles: tuple[BundleFile, ...]


Facts = dict[str, str]  # of one host, such as a key or an entry of its audit log


@dataclass(frozen=True)
class HostFacts:
    """What a host reported, or the error and its exit code if it failed."""

    host: str
    facts: tuple[Facts, ...] = ()
    error: str = ""
    exit_code: int = 0


@dataclass(frozen=True, repr=False)
class FleetFacts(Answer):
    """What every host of a target reported, in its order."""

    hosts: tuple[HostFacts, ...]
    interrupted: bool = False

    @property
    def failed(self) -> list[HostFacts]:
        """The hosts that failed."""
        return [host for host in self.hosts if host.error]

    @property
    def exit_code(self) -> int:
        """130 after an interrupt, else that of the first error; 0 if there is none."""
        return 130 if self.interrupted else next((host.exit_code for host in self.failed), 0)
