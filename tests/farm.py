"""A labgrid farm on loopback: a coordinator, two boards, and an exporter for each. A board is an sshd with its own lease."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import sshd

from edgeprune.records import Host, Target

TAGS = {"board": "pi5", "ram": "8g"}


def absent() -> str:
    """Why there can be no farm on this machine; empty if there can be one."""
    try:
        import labgrid  # noqa: F401
        import paramiko  # noqa: F401
    except ImportError as error:
        return f"{error.name} is not installed; pip install 'edgeprune[farm]'"
    if sshd.SSHD is None:
        return "no sshd on this machine; apt-get install openssh-server"
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        return "two boards on one machine need root, for a lease each"
    return ""


@dataclass
class LoopbackFarm:
    """The farm. Places rack1 and rack2 have `TAGS`. `target` is any of them, reached through `proxy` to the coordinator."""

    folder: Path
    boards: list[sshd.Sshd]
    proxy: sshd.Proxy
    coordinator: str  # its own address
    exporters: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """The coordinator's address for edgeprune. Exporters and the administrator go past the proxy."""
        return f"127.0.0.1:{self.proxy.port}"

    def board(self, place: str) -> sshd.Sshd:
        return self.boards[int(place[-1]) - 1]

    def target(self, **tags: str) -> Target:
        wanted = tuple((tags or TAGS).items())
        host = Host(
            ",".join(f"{key}={value}" for key, value in wanted),
            identity=self.folder / "client",
            known_hosts=self.folder / "known_hosts",
            python=sys.executable,
            place=wanted,
            coordinator=self.address,
        )
        return Target(self.folder / "farm.toml", "farm", "ssh", "null", host=host)

    def write(self, path: Path, runtime: str, more: str = "") -> Path:
        """A target file of any board of the farm."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f'[connect]\ntransport = "ssh"\nplace = "board=pi5,ram=8g"\ncoordinator = "{self.address}"\n'
            f'identity = "{self.folder}/client"\nknown_hosts = "{self.folder}/known_hosts"\npython = "{sys.executable}"\n'
            f'{more}\n[runtime]\nname = "{runtime}"\n'
        )
        return path

    def ask(self, method: str, request: Any) -> Any:
        """A call of the coordinator's administrator."""
        import grpc
        from labgrid.remote.generated.labgrid_coordinator_pb2_grpc import CoordinatorStub

        with grpc.insecure_channel(self.coordinator) as channel:
            return getattr(CoordinatorStub(channel), method)(request, timeout=20)

    def add_places(self) -> None:
        from labgrid.remote.generated import labgrid_coordinator_pb2 as messages

        for name in ("rack1", "rack2"):
            self.ask("AddPlace", messages.AddPlaceRequest(name=name))
            self.ask("SetPlaceTags", messages.SetPlaceTagsRequest(placename=name, tags=TAGS))
            self.ask("AddPlaceMatch", messages.AddPlaceMatchRequest(placename=name, pattern=f"*/{name}/*"))

    def delete_places(self) -> None:
        from labgrid.remote.generated import labgrid_coordinator_pb2 as messages

        for name in ("rack1", "rack2"):
            self.ask("DeletePlace", messages.DeletePlaceRequest(name=name))

    def export(self, name: str) -> None:
        """The exporter of a board starts. It says how to reach the board."""
        port = self.board(name).proxy.port
        service = f"{{address: 127.0.0.1, username: {getpass.getuser()}, port: {port}}}"
        (self.folder / f"{name}.yaml").write_text(f"{name}:\n  NetworkService: {service}\n")
        argv = ["labgrid.remote.exporter", "--hostname", "127.0.0.1", "-n", name, f"{name}.yaml"]
        self.exporters[name] = _started(argv, self.folder, "connected to coordinator", LG_COORDINATOR=self.coordinator)

    def unexport(self, name: str) -> None:
        """The exporter of a board ends: the board is offline."""
        _end(self.exporters.pop(name))
        until = time.monotonic() + 60
        while any(place.name == name and place.services for place in self.farm.places()):
            assert time.monotonic() < until
            time.sleep(0.05)

    @property
    def farm(self) -> Any:
        from edgeprune.devices.transports.farm import Farm

        return Farm(self.address)

    @property
    def holders(self) -> dict[str, str]:
        """{place: who holds it}, without free places."""
        return {place.name: place.holder for place in self.farm.places() if place.holder}


@contextmanager
def loopback(folder: Path) -> Iterator[LoopbackFarm]:
    servers, running = [], []
    try:
        for number in (1, 2):
            own = folder / f"board{number}"
            own.mkdir()
            process, server = sshd.start(own, own_lease=True)
            running.append(process)
            servers.append(server)
        first = servers[0].folder
        for server in servers:
            (server.folder / "authorized_keys").write_bytes((first / "client.pub").read_bytes())
        (folder / "known_hosts").write_text("".join((s.folder / "known_hosts").read_text() for s in servers))
        os.rename(first / "client", folder / "client")
        argv = ["labgrid.remote.coordinator", "-l", "127.0.0.1:0"]
        coordinator = _started(argv, folder, "listening on")
        running.append(coordinator)
        said = (folder / "labgrid.remote.coordinator.log").read_text()
        port = int(said.rpartition("listening on 127.0.0.1:")[2].split()[0])
        made = LoopbackFarm(folder, servers, sshd.Proxy(port), f"127.0.0.1:{port}")
        made.add_places()
        made.export("rack1")
        made.export("rack2")
        until = time.monotonic() + 60
        while sum(len(place.services) for place in made.farm.places()) < 2:
            assert time.monotonic() < until
            time.sleep(0.05)
        yield made
        made.proxy.close()
        running += made.exporters.values()
    finally:
        for server in servers:
            server.proxy.close()
        for process in running:
            _end(process)


def _started(argv: Sequence[str], folder: Path, ready: str, **environment: str) -> subprocess.Popen[bytes]:
    """A program of labgrid, once it has printed that it is ready."""
    path = folder / f"{argv[0]}.log"
    with open(path, "ab") as log:
        begin = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", *argv], cwd=folder, stdout=log, stderr=log, env={**os.environ, **environment}
        )
    until = time.monotonic() + 60
    while ready not in path.read_text()[begin:]:
        assert process.poll() is None and time.monotonic() < until, path.read_text()[begin:]
        time.sleep(0.05)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(60)
        return
    process.kill()
    process.wait(60)


def with_key(target: Target, folder: Path) -> Target:
    """The same target with another file of known hosts, which is empty."""
    assert target.host is not None
    empty = folder / "known_hosts"
    empty.touch()
    return replace(target, host=replace(target.host, known_hosts=empty))
