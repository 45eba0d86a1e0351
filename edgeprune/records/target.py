"""How to reach a device and what runs there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Host:
    """How to reach a device over SSH; what is None comes from `~/.ssh/config` or ssh's defaults."""

    name: str
    user: str | None = None
    port: int | None = None
    identity: Path | None = None
    known_hosts: Path | None = None
    fingerprint: str | None = None  # pinned: SHA256:…
    python: str = "python3"


@dataclass(frozen=True)
class Deployment:
    """How releases get into service: on which hosts (the target's own where none are named), signed with which Ed25519 key,
    which command tells a server of a switch, and how many releases a device keeps."""

    hosts: tuple[str, ...] = ()
    key: Path | None = None
    reload: tuple[str, ...] = ()
    keep: int = 5


@dataclass(frozen=True)
class Prepare:
    """What is changed on a device while it measures, and put back after: nvpmodel's mode by name, and pinned clocks."""

    power_mode: str | None = None
    jetson_clocks: bool = False


@dataclass(frozen=True)
class Target:
    """`targets/NAME.toml` as read: how to reach a device and what runs there.

    `precision` is "fp32", "fp16", "int8", or "auto": whatever is fastest and keeps the metric. `emulated` and `simulated` say
    that an emulated device, or one whose runtime is a stand-in, is what the user wants: its figures are no measure of a real
    one. `dla` is the core of the deep-learning accelerator to use, `power_mode` (nvpmodel's name) and `clocks_pinned` are what
    a Jetson must be in, and `prepare` is what is done to it.
    """

    path: Path
    name: str
    transport: str
    runtime: str
    threads: int = 1
    precision: str = "fp32"
    host: Host | None = None
    emulated: bool = False
    simulated: bool = False
    dla: int | None = None
    power_mode: str | None = None
    clocks_pinned: bool | None = None
    prepare: Prepare | None = None
    deploy: Deployment = Deployment()

    @property
    def state(self) -> tuple[object, ...]:
        """The state that the target asks of a device, which its latencies depend on; empty where it asks for none."""
        asked = self.dla, self.power_mode, self.clocks_pinned, self.prepare
        return asked if any(key is not None for key in asked) else ()

    @property
    def each_host(self) -> list[tuple[str, Target]]:
        """Every host that releases go to, by its name, as a target of its own."""
        if self.host is None:
            return [("here", self)]
        if not self.deploy.hosts:
            return [(self.host.name, self)]
        return [(name, replace(self, host=replace(self.host, name=name))) for name in self.deploy.hosts]

    @property
    def all_hosts(self) -> list[tuple[str, Target]]:
        """The host that is measured on, and every other that releases go to."""
        if self.host is None:
            return self.each_host
        own = (self.host.name, self)
        return [own, *(host for host in self.each_host if host[0] != own[0])]
