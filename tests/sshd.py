"""A real sshd on a loopback port for one test, as root or as a user. A proxy before it can fail."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeprune.records import Deployment, Host, Target

Certify = Callable[[Path], Path]
SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def keygen(path: Path, kind: str = "ed25519") -> Path:
    argv = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(path)]
    subprocess.run(argv, check=True, timeout=600)
    return path


@dataclass
class Sshd:
    """The server. `home` is the folder of its users, and `target` reaches it through the proxy."""

    folder: Path
    port: int
    proxy: Proxy

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def target(self) -> Target:
        host = Host(
            "127.0.0.1",
            port=self.proxy.port,
            identity=self.folder / "client",
            known_hosts=self.folder / "known_hosts",
            python=os.path.realpath("/proc/self/exe"),
        )
        return Target(self.folder / "sshd.toml", "sshd", "ssh", "null", host=host)

    def transport(self, wait_s: float = 0.0, **changes: Any) -> Any:
        from edgeprune.devices.transports.ssh import Ssh

        target = self.target
        assert target.host is not None
        return Ssh(replace(target, host=replace(target.host, **changes)), wait_s)

    def agents(self) -> list[int]:
        """The agent's processes."""
        found = []
        for process in Path("/proc").iterdir():
            with suppress(OSError):
                if process.name.isdigit() and str(self.home).encode() in (process / "cmdline").read_bytes():
                    found.append(int(process.name))
        return found


def named(servers: Mapping[str, Sshd], home: Path) -> Target:
    """A target whose hosts are these servers, by their names in `home`/.ssh/config. The key there signs."""
    config = ""
    for name, server in servers.items():
        config += f"Host {name}\n HostName 127.0.0.1\n Port {server.proxy.port}\n"
        config += f" UserKnownHostsFile {server.folder}/known_hosts\n IdentityFile {server.folder}/client\n"
    (home / ".ssh" / "config").write_text(config)
    first = next(iter(servers.values())).target
    host = Host("127.0.0.1", python=sys.executable)
    return replace(first, host=host, deploy=Deployment(tuple(servers), home / ".ssh" / "id_ed25519"))


def start(
    folder: Path, own_lease: bool = False, disk_bytes: int | None = None, certify: Certify | None = None
) -> tuple[subprocess.Popen[bytes], Sshd]:
    """Start a server.

    Args:
        folder: an empty folder.
        own_lease: it is a board of its own: its lease is not that of this machine. That needs root.
        disk_bytes: its home is a file system of its own of this size. That needs `own_lease`.
        certify: makes a certificate of the host's key, and gives its path.
    """
    assert SSHD is not None
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)
    (folder / "home").mkdir()
    port = free_port()
    host, client = keygen(folder / "host"), keygen(folder / "client")
    shutil.copyfile(f"{client}.pub", folder / "authorized_keys")
    config = folder / "sshd_config"
    config.write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {host}\nAuthorizedKeysFile {folder}/authorized_keys\nPidFile none\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        f"PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp -d {folder}/home\nMaxStartups 50\n"
    )
    if certify is not None:
        with open(config, "a") as file:
            file.write(f"HostCertificate {certify(host)}\n")
    log = open(folder / "log", "wb")  # noqa: SIM115 - the server writes to it
    argv = [SSHD, "-D", "-e", "-f", str(config)]
    if own_lease:
        for file in (Path("/tmp/edgeprune-lease"), folder / "lease"):
            file.touch()
        mounted = f'mount --bind "{folder}/lease" /tmp/edgeprune-lease && '
        if disk_bytes is not None:
            mounted += f'mount -t tmpfs -o size={disk_bytes} none "{folder}/home" && '
        mounted += 'exec "$@"'
        argv = ["unshare", "--mount", "sh", "-c", mounted, "sh", *argv]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=log)
    log.close()
    until = time.monotonic() + 10
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        assert time.monotonic() < until and process.poll() is None, (folder / "log").read_text()
        time.sleep(0.02)
    proxy = Proxy(port)
    kind, key, *_ = (folder / "host.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{proxy.port} {kind} {key}\n")
    return process, Sshd(folder, port, proxy)


class Proxy:
    """Forwards bytes to a port. It can hold them, drop its connections, and refuse new ones."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._flowing = threading.Event()
        self._flowing.set()
        self._open: list[socket.socket] = []
        self.refusing = False
        self.delay_s = 0.0  # before each piece of data
        self.cut_after: int | None = None  # bytes towards the server
        self.sent = 0  # bytes towards the server
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self) -> None:
        """Silence the link: no byte passes, and no connection closes."""
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    def cut(self) -> None:
        """Every connection is closed."""
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open.clear()

    def close(self) -> None:
        self.flow()
        self.cut()
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # else a thread that waits in accept would take one more
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            if self.refusing:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._to))
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open += [near, far]
            threading.Thread(target=self._pump, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, False), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with suppress(OSError, ValueError):
            while data := source.recv(1 << 16):
                self._flowing.wait(60)
                time.sleep(self.delay_s)
                sink.sendall(data)
                if up:
                    self.sent += len(data)
                    if self.cut_after is not None and self.sent > self.cut_after:
                        self.cut_after = None
                        self.cut()
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
