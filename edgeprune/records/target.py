"""How to reach a device and what runs there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edgeprune.errors import UsageError

Precision = Literal["fp32", "fp16", "int8", "int8-dynamic"]  # of an artifact
TargetPrecision = Literal["fp32", "fp16", "int8", "auto"]  # a runtime may have several artifacts for one
TransportName = Literal["local", "ssh"]


@dataclass(frozen=True)
class Host:
    """How to reach a device over SSH. A value that is None comes from `~/.ssh/config` or ssh's defaults.

    If `place` has tags, the device is any free board of a labgrid coordinator that has them, and `name` is their text. None
    for `coordinator` stands for LG_COORDINATOR or labgrid's default.
    """

    name: str
    user: str | None = None
    port: int | None = None
    identity: Path | None = None
    known_hosts: Path | None = None
    fingerprint: str | None = None  # of the only host key that is accepted: SHA256:…
    python: str = "python3"
    place: tuple[tuple[str, str], ...] = ()  # (key, value) of each tag
    coordinator: str | None = None


@dataclass(frozen=True)
class Deployment:
    """How releases are deployed.

    Attributes:
        hosts: the hosts that releases go to; if there are none, the device that is measured.
        key: the private Ed25519 key that signs releases.
        reload: the command that notifies a server of a new release, in words.
        keep: how many releases a host keeps.
    """

    hosts: tuple[str, ...] = ()
    key: Path | None = None
    reload: tuple[str, ...] = ()
    keep: int = 5


@dataclass(frozen=True)
class Prepare:
    """Settings of a device that are changed while it measures, and restored afterwards.

    `power_mode` is a mode by nvpmodel's name. `jetson_clocks` pins the clocks.
    """

    power_mode: str | None = None
    jetson_clocks: bool = False


@dataclass(frozen=True)
class Target:
    """A target file: how to reach a device and what runs there. docs/target-file.md describes each key.

    Attributes:
        path: the file; error messages name it.
        name: names the profiles and the run folder.
        transport: how to reach the device.
        runtime: the name of the runtime.
        threads: CPU threads of an inference.
        precision: of the artifact. "auto" is the fastest precision that keeps the metric.
        host: the device; None if it is this machine.
        others: boards of the same kind. They share the experiments of the profile.
        emulated: whether the user wants an emulated device. Its times are not those of a board.
        simulated: whether the user wants a stand-in for the runtime. Its times are not those of a board.
        cores: the cores that measurements use, as Linux writes them; None for all.
        dla: the core of the deep-learning accelerator to use.
        power_mode: the mode that a Jetson must be in, by nvpmodel's name.
        clocks_pinned: whether a Jetson's clocks must be pinned.
        prepare: settings that are changed while the device measures.
        deploy: how releases are deployed.
    """

    path: Path
    name: str
    transport: TransportName
    runtime: str
    threads: int = 1
    precision: TargetPrecision = "fp32"
    host: Host | None = None
    others: tuple[Host, ...] = ()
    emulated: bool = False
    simulated: bool = False
    cores: str | None = None
    dla: int | None = None
    power_mode: str | None = None
    clocks_pinned: bool | None = None
    prepare: Prepare | None = None
    deploy: Deployment = Deployment()

    @property
    def state(self) -> tuple[object, ...]:
        """The settings that the device must have, since latencies depend on them; empty if the target names none."""
        asked = self.dla, self.power_mode, self.clocks_pinned, self.prepare
        settings: tuple[object, ...] = asked if any(key is not None for key in asked) else ()
        return (*settings, self.cores) if self.cores else settings

    @property
    def each_host(self) -> list[tuple[str, Target]]:
        """The hosts that releases go to: pairs of a name and a target with only this host.

        Raises `UsageError` if the target is any free board of a farm, and names no hosts.
        """
        if self.host is None:
            return [("here", self)]
        if not self.deploy.hosts and self.host.place:
            raise UsageError(
                f"{self.path}: [connect] place is any free board, so releases need hosts; add [deploy] hosts"
            )
        if not self.deploy.hosts:
            return [(self.host.name, self)]
        return [(name, replace(self, host=replace(self.host, name=name, place=()))) for name in self.deploy.hosts]

    @property
    def all_hosts(self) -> list[tuple[str, Target]]:
        """The boards that are measured, then the other hosts that releases go to; pairs as in `each_host`."""
        if self.host is None:
            return self.each_host
        found = {self.host.name: self}
        found |= {host.name: replace(self, host=host) for host in self.others if not host.place}
        if self.deploy.hosts:
            found |= {name: one for name, one in self.each_host if name not in found}
        return list(found.items())
