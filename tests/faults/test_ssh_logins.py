"""Logins that fail at a real sshd, and at dropbear: the message says why and what to do. Without SFTP, the shell is used.

Each server runs in a mount namespace of its own, in which /etc/passwd and /etc/shadow are those of the test. That needs root.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from sshd import SSHD, Proxy, free_port, keygen

from edgeprune.devices import wire
from edgeprune.errors import DeviceError
from edgeprune.records import Host, Target

pytest.importorskip("edgeprune.devices.transports.ssh")
from edgeprune.devices.transports.ssh import Ssh

PING = wire.job_document(0, wire.Identify(20.0, "null"))
SFTP = "/usr/lib/openssh/sftp-server"
DROPBEAR = shutil.which("dropbear", path=os.environ.get("PATH", "") + ":/usr/sbin")
BIND = 'mount --bind "$0/passwd" /etc/passwd && mount --bind "$0/shadow" /etc/shadow && '


class Servers:
    """Starts servers on loopback ports. The user is root, and lives in `home`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self._processes: list[subprocess.Popen[bytes]] = []
        (self.home / ".ssh").mkdir(parents=True, mode=0o700)
        self.home.chmod(0o700)
        keygen(folder / "host")
        shutil.copyfile(f"{keygen(folder / 'client')}.pub", self.home / ".ssh" / "authorized_keys")
        self.shell("/bin/sh")
        (folder / "shadow").write_text("root:*:19000:0:99999:7:::\n")

    def shell(self, shell: str) -> None:
        """The login shell."""
        (self.folder / "passwd").write_text(
            f"root:x:0:0:root:{self.home}:{shell}\nsshd:x:100:65534::/run/sshd:/bin/false\n"
        )

    def script(self, name: str, text: str) -> str:
        """A program in the folder."""
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)
        return str(path)

    def sshd(self, options: str = f"Subsystem sftp {SFTP}\n", mounts: str = "") -> int:
        """The port of a new sshd."""
        assert SSHD is not None
        port, config = free_port(), self.folder / "sshd_config"
        os.makedirs("/run/sshd", exist_ok=True)
        config.write_text(
            f"{options}ListenAddress 127.0.0.1:{port}\nHostKey {self.folder}/host\nPidFile none\nStrictModes no\nUsePAM no\n"
            f"AuthorizedKeysFile {self.home}/.ssh/authorized_keys\nPermitRootLogin yes\nKbdInteractiveAuthentication no\n"
        )
        return self._started([SSHD, "-D", "-e", "-f", str(config)], port, mounts)

    def dropbear(self) -> int:
        """The port of a new dropbear, which has no SFTP."""
        assert DROPBEAR is not None
        port, key = free_port(), self.folder / "dropbear_key"
        convert = ["dropbearkey", "-t", "ed25519", "-f", str(key)]
        done = subprocess.run(convert, capture_output=True, text=True, check=True, timeout=600)
        public = next(line for line in done.stdout.splitlines() if line.startswith("ssh-ed25519"))
        (self.folder / "host.pub").write_text(public + "\n")
        return self._started(
            [DROPBEAR, "-F", "-E", "-r", str(key), "-p", f"127.0.0.1:{port}", "-P", f"{self.folder}/pid"], port, ""
        )

    def _started(self, argv: list[str], port: int, mounts: str) -> int:
        with open(self.folder / "log", "wb") as log:
            command = ["unshare", "--mount", "sh", "-c", f'{BIND}{mounts} exec "$@"', str(self.folder), *argv]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
        self._processes.append(process)
        until = time.monotonic() + 60
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return port
            assert time.monotonic() < until and process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.02)

    def device(self, port: int, **changes: Any) -> Ssh:
        """The transport to a port."""
        kind, key, *_ = (self.folder / "host.pub").read_text().split()
        known = self.folder / "known_hosts"
        known.write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
        fields = {"port": port, "identity": self.folder / "client", "python": os.path.realpath(sys.executable)}
        host = Host("127.0.0.1", **{**fields, "user": "root", "known_hosts": known, **changes})  # type: ignore[arg-type]
        return Ssh(Target(self.folder / "board.toml", "board", "ssh", "null", host=host))

    def failure(self, port: int, **changes: Any) -> str:
        """The message of a failed connection. It comes at once: nothing is tried again."""
        began = time.monotonic()
        with closing(self.device(port, **changes)) as device, pytest.raises(DeviceError) as caught:
            list(device.call([PING], 60))
        assert time.monotonic() - began < 40 and caught.value.exit_code == 5 and str(caught.value).isprintable()
        return str(caught.value)

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
            process.wait(60)


@pytest.fixture
def servers(tmp_path: Path, alone: None) -> Iterator[Servers]:
    if os.geteuid() != 0 or SSHD is None or shutil.which("unshare") is None:
        pytest.skip("needs root, unshare and an sshd: apt-get install openssh-server")
    made = Servers(tmp_path)
    try:
        yield made
    finally:
        made.stop()


@pytest.mark.slow
def test_a_shell_that_prints_is_named_with_what_it_prints_and_a_test(servers: Servers) -> None:
    servers.shell(
        servers.script("loud", '#!/bin/sh\nprintf "Welcome\\033[31m to the lab\\nline two\\n"\nexec /bin/sh "$@"\n')
    )
    port = servers.sshd()
    text = servers.failure(port)
    assert "the shell of root there prints on a non-interactive login: Welcome" in text and "line two" not in text
    assert f"ssh -p {port} -i {servers.folder}/client root@127.0.0.1 true" in text and ".bashrc" in text


def test_a_shell_that_prints_does_not_matter_where_sftp_needs_no_shell(servers: Servers) -> None:
    servers.shell(servers.script("loud", '#!/bin/sh\necho Welcome\nexec /bin/sh "$@"\n'))
    with closing(servers.device(servers.sshd("Subsystem sftp internal-sftp\n"))) as device:
        assert next(device.call([PING], 60))["runtime"] == "null"


@pytest.mark.parametrize("subsystem", [f"Subsystem sftp {SFTP}\n", "Subsystem sftp internal-sftp\n"])
def test_a_shell_that_only_exits_is_named_with_its_reason(subsystem: str, servers: Servers) -> None:
    servers.shell(servers.script("none", "#!/bin/sh\necho This account is not available.\nexit 1\n"))
    text = servers.failure(servers.sshd(subsystem))
    assert "ends without running a command (exit status 1): This account is not available." in text


def test_a_forced_command_is_named_as_a_cause(servers: Servers) -> None:
    """Images for clouds refuse root so. A sandbox for files has SFTP, and nothing else."""
    keys = servers.home / ".ssh" / "authorized_keys"
    only_sftp = servers.failure(servers.sshd("Subsystem sftp internal-sftp\nForceCommand internal-sftp\n"))
    keys.write_text(f"command=\"echo 'Please login as the user pi.'; exit 142\" {keys.read_text()}")
    refused = servers.failure(servers.sshd())
    assert "(exit status 142): Please login as the user pi. Log in once by hand" in refused
    for text in (only_sftp, refused):
        assert "ends without running a command" in text and "a forced command (authorized_keys, ForceCommand)" in text


def test_a_shell_that_prints_very_much_is_named_as_one_that_prints_little(servers: Servers) -> None:
    servers.shell(servers.script("loud", '#!/bin/sh\nhead -c 3000000 /dev/zero | tr "\\0" x\nexec /bin/sh "$@"\n'))
    text = servers.failure(servers.sshd())
    assert "prints on a non-interactive login: xxx" in text and len(text) < 800


@pytest.mark.slow
def test_a_shell_that_waits_for_input_is_named_as_a_cause(servers: Servers) -> None:
    servers.shell(servers.script("waits", "#!/bin/sh\nexec /bin/sh\n"))
    text = servers.failure(servers.sshd())
    assert "did not answer within 15 s; the login shell of the user there" in text and "Try: ssh -p" in text


def test_an_expired_password_is_named(servers: Servers) -> None:
    (servers.folder / "shadow").write_text("root:*:0:0:99999:7:::\n")
    text = servers.failure(servers.sshd(f"UsePAM yes\nSubsystem sftp {SFTP}\n"))
    assert "expired" in text and "Log in once by hand: ssh -p" in text


def test_a_server_of_one_session_is_named_with_its_option(servers: Servers) -> None:
    assert "MaxSessions 10" in servers.failure(servers.sshd(f"MaxSessions 1\nSubsystem sftp {SFTP}\n"))


# -------------------------------------------------------------------------------------------------------- no SFTP


@pytest.mark.parametrize("kind", ["sshd", "dropbear"])
def test_without_sftp_files_go_through_the_shell(kind: str, servers: Servers, tmp_path: Path) -> None:
    if kind == "dropbear" and DROPBEAR is None:
        pytest.skip("no dropbear on this machine; apt-get install dropbear-bin")
    port = servers.dropbear() if kind == "dropbear" else servers.sshd("")
    proxy = Proxy(port)
    content = os.urandom(6_000_000)
    (tmp_path / "it's a file.bin").write_bytes(content)
    with closing(servers.device(proxy.port)) as device:
        assert next(device.call([PING], 60))["runtime"] == "null"
        proxy.cut_after = proxy.sent + 4_500_000  # the upload continues where the link dropped
        remote = device.put([tmp_path / "it's a file.bin"])
        assert Path(remote).read_bytes() == content
        assert proxy.sent < len(content) + 4_500_000
        device.get(remote, tmp_path / "back")
        with pytest.raises(DeviceError, match="missing"):
            device.get("/missing", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    assert (servers.home / ".edgeprune").stat().st_mode & 0o777 == 0o700
    proxy.close()


def test_a_home_that_is_read_only_is_named_with_the_reason(servers: Servers) -> None:
    mounts = 'mount --bind "$0/home" "$0/home" && mount -o remount,ro,bind "$0/home" && '
    for options in ("Subsystem sftp internal-sftp\n", ""):
        text = servers.failure(servers.sshd(options, mounts))
        assert "cannot be written" in text and "Read-only file system" in text


# --------------------------------------------------------------------------------------------------------- Python

OLD = (
    '#!/bin/sh\nword=$(printf %s "$2" | sed "s/.*write(\'\\([0-9a-f]*\\) .*/\\1/")\nprintf \'%s 3.5 \' $word\nexit 1\n'
)
STRIPPED = """#!{python}
import sys
sys.argv.remove("-I") if "-I" in sys.argv else None
sys.modules["json"] = None
code = sys.argv[2]
sys.argv = ["-c", *sys.argv[3:]]
exec(code)
"""


@pytest.mark.parametrize(
    ("python", "reason"),
    [
        ("/usr/bin/no-such-python", "there is no /usr/bin/no-such-python on the device"),
        ("/etc/passwd", "the device cannot run /etc/passwd"),
        ("old", "is Python 3.5, and 3.8 is needed"),
        ("stripped", r"lacks a part of its standard library \(.*json"),
        ("/bin/false", "/bin/false on the device does not start"),
    ],
)
def test_a_python_that_is_missing_too_old_or_stripped_ends_at_once_and_names_the_key(
    python: str, reason: str, servers: Servers
) -> None:
    texts = {"old": OLD, "stripped": STRIPPED.format(python=os.path.realpath(sys.executable))}
    if python in texts:
        python = servers.script(python, texts[python])
    text = servers.failure(servers.sshd(), python=python)
    assert f"{servers.folder}/board.toml: [connect] python" in text and "not back within" not in text
    assert re.search(reason, text), text


# ----------------------------------------------------------------------------------------------------------- keys


def test_a_refused_key_names_the_keys_that_were_tried_and_how_to_add_one(servers: Servers, tmp_path: Path) -> None:
    port, stranger = servers.sshd(), keygen(tmp_path / "stranger")
    text = servers.failure(port, identity=stranger)
    assert f"tried: {stranger}" in text and f"ssh-copy-id -p {port} -i {stranger} root@127.0.0.1" in text


def test_a_board_that_takes_only_passwords_says_which_option_to_set(servers: Servers) -> None:
    text = servers.failure(servers.sshd("PubkeyAuthentication no\nPasswordAuthentication yes\n"))
    assert "only: password" in text and "PubkeyAuthentication yes" in text and "ssh-copy-id -p" in text


def test_a_key_with_a_passphrase_names_ssh_add_and_a_security_key_another_key(servers: Servers, tmp_path: Path) -> None:
    port, locked = servers.sshd(), tmp_path / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(locked)], check=True, timeout=600)
    assert f"ssh-add {locked}" in servers.failure(port, identity=locked)
    touched = tmp_path / "touched"
    touched.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n")
    touched.chmod(0o600)
    Path(f"{touched}.pub").write_text("sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29t me\n")
    assert "is a security key" in servers.failure(port, identity=touched)


# -------------------------------------------------------------------------------------------------------- network


def answering(answer: bytes) -> int:
    """The port of a server that is no SSH server."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                connection.sendall(answer)
                connection.close()

    threading.Thread(target=serve, daemon=True).start()
    return int(server.getsockname()[1])


def test_a_port_that_is_closed_or_does_not_speak_ssh_is_named(servers: Servers) -> None:
    closed = free_port()
    text = servers.failure(closed)
    assert f"nothing listens at 127.0.0.1 port {closed}" in text and f"Try: ssh -p {closed} " in text
    for answer in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b""):
        assert "does not speak SSH" in servers.failure(answering(answer))


def test_a_jump_host_that_forwards_nothing_is_named(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = servers.sshd("AllowTcpForwarding no\n")
    monkeypatch.setenv("HOME", str(servers.home))
    kind, key, *_ = (servers.folder / "host.pub").read_text().split()
    (servers.home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{gate} {kind} {key}\n")
    (servers.home / ".ssh" / "config").write_text(
        f"Host 127.0.0.1\n ProxyJump gate\nHost gate\n HostName 127.0.0.1\n Port {gate}\n"
        f" IdentityFile {servers.folder}/client\n ProxyJump none\n"
    )
    text = servers.failure(free_port())
    assert f"the jump host 127.0.0.1 port {gate} forbids connections" in text and "AllowTcpForwarding yes" in text
