"""Host certificates at a real sshd: what edgeprune accepts is what `ssh` accepts, and a refusal says why."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from sshd import SSHD, Sshd, keygen, start

from edgeprune.errors import SecurityError

pytest.importorskip("edgeprune.devices.transports.ssh")
from edgeprune.devices.transports.ssh.certificates import certificate
from edgeprune.devices.transports.ssh.login import login

pytestmark = pytest.mark.skipif(SSHD is None, reason="no sshd on this machine; apt-get install openssh-server")
GOOD = ("-h", "-n", "127.0.0.1")
# CA: the authority's key; KEY: the host's own; OTHER: another key; PORT: the server's.
LISTED = "@cert-authority [127.0.0.1]:PORT CA\n"
KNOWN = "[127.0.0.1]:PORT KEY\n"


@dataclass(frozen=True)
class Case:
    """A certificate by ssh-keygen's options, and the lines of known_hosts. `why` is empty if the host is known by them."""

    options: tuple[str, ...]
    known: str
    why: str = ""
    authority: str = "ed25519"
    ssh: bool = True  # whether every version of ssh agrees


CASES = {
    "an authority of ed25519": Case(GOOD, LISTED),
    "an authority of ecdsa": Case(GOOD, LISTED, authority="ecdsa"),
    "an authority of rsa": Case(GOOD, LISTED, authority="rsa"),
    "an authority for all hosts": Case(GOOD, "@cert-authority * CA\n"),
    "an authority for the host at any port": Case(GOOD, "@cert-authority 127.0.0.1 CA\n"),
    "an authority beside another key": Case(GOOD, LISTED + "[127.0.0.1]:PORT OTHER\n"),
    "one name of several": Case(("-h", "-n", "board,127.0.0.1"), LISTED),
    "a pattern of names": Case(("-h", "-n", "127.0.*"), LISTED, ssh=False),
    "expired beside the plain key": Case((*GOOD, "-V", "20200101:20210101"), LISTED + KNOWN),
    "unlisted beside the plain key": Case(GOOD, KNOWN),
    "an authority of other hosts": Case(GOOD, "@cert-authority *.example CA\n", "is not known: SHA256:.{43}. Compare"),
    "an authority that is not listed": Case(GOOD, "@cert-authority * OTHER\n", "No @cert-authority line for it has"),
    "a plain line of the authority": Case(GOOD, "[127.0.0.1]:PORT CA\n", "CHANGED"),
    "a wrong name": Case(("-h", "-n", "board"), LISTED, "is not for the name 127.0.0.1"),
    "no name": Case(("-h",), LISTED, "is not for the name", ssh=False),
    "expired": Case((*GOOD, "-V", "20200101:20210101"), LISTED, "only from 20(19|20)-.* UTC to 202"),
    "expired beside another key": Case(
        (*GOOD, "-V", "20200101:20210101"), LISTED + "[127.0.0.1]:PORT OTHER\n", "CHANGED.*only from"
    ),
    "not yet valid": Case((*GOOD, "-V", "+52w:+53w"), LISTED, "valid only from"),
    "a user's": Case(("-n", "127.0.0.1"), LISTED, "that of a user"),
    "critical options": Case((*GOOD, "-O", "critical:force-command=id"), LISTED, "critical options"),
    "a signature by SHA-1": Case((*GOOD, "-t", "ssh-rsa"), LISTED, "wrong signature", authority="rsa"),
    "a revoked authority": Case(GOOD, LISTED + "@revoked * CA\n", "the authority of .* is revoked in .*:2"),
    "a revoked authority beside the plain key": Case(GOOD, LISTED + KNOWN + "@revoked * CA\n", "is revoked in .*:3"),
    "a revoked key": Case(GOOD, LISTED + "@revoked * KEY\n", "the host key of .* is revoked in .*:2"),
}


@contextmanager
def serving(folder: Path, case: Case) -> Iterator[Sshd]:
    """An sshd that shows the certificate, and its known_hosts."""
    authority, other = keygen(folder / "ca", case.authority), keygen(folder / "other")

    def certify(host: Path) -> Path:
        argv = ["ssh-keygen", "-q", "-s", str(authority), "-I", "board", *case.options, f"{host}.pub"]
        subprocess.run(argv, check=True, timeout=600)
        return Path(f"{host}-cert.pub")

    process, server = start(folder, certify=certify)
    try:
        text = case.known.replace("PORT", str(server.proxy.port))
        for word, path in (("CA", authority), ("KEY", folder / "host"), ("OTHER", other)):
            text = re.sub(rf"\b{word}\b", " ".join(Path(f"{path}.pub").read_text().split()[:2]), text)
        (folder / "known_hosts").write_text(text)
        yield server
    finally:
        server.proxy.close()
        process.terminate()
        process.wait(60)


def connect(server: Sshd) -> None:
    """Log in as edgeprune does."""
    target, opened = server.target, []  # type: ignore[var-annotated]
    assert target.host is not None
    try:
        with closing(login(target, target.host, opened)):
            pass
    finally:
        for client in opened:
            client.close()


def ssh_accepts(server: Sshd) -> bool:
    """Whether OpenSSH's client logs in."""
    options = ["StrictHostKeyChecking=yes", "BatchMode=yes", "IdentitiesOnly=yes", "GlobalKnownHostsFile=none"]
    options += [f"UserKnownHostsFile={server.folder}/known_hosts", f"IdentityFile={server.folder}/client"]
    argv = ["ssh", "-F", "none", "-p", str(server.proxy.port), *[f"-o{option}" for option in options], "127.0.0.1"]
    return subprocess.run([*argv, "true"], stdin=subprocess.DEVNULL, capture_output=True, timeout=600).returncode == 0


@pytest.mark.parametrize("name", CASES)
def test_a_certificate_is_accepted_as_ssh_accepts_it(name: str, tmp_path: Path, alone: None) -> None:
    case = CASES[name]
    with serving(tmp_path, case) as server:
        if case.why:
            with pytest.raises(SecurityError, match=case.why) as caught:
                connect(server)
            assert str(caught.value).isprintable()
        else:
            connect(server)
        if case.ssh and shutil.which("ssh"):
            assert ssh_accepts(server) == (not case.why)


def test_a_certificate_of_which_one_byte_changed_vouches_for_nothing(tmp_path: Path) -> None:
    authority, host = keygen(tmp_path / "ca"), keygen(tmp_path / "host")
    argv = ["ssh-keygen", "-q", "-s", str(authority), "-I", "board", "-h", "-n", "board", f"{host}.pub"]
    subprocess.run(argv, check=True, timeout=600)
    blob = base64.b64decode((tmp_path / "host-cert.pub").read_text().split()[1])
    certificate(blob).require("board", 1e9)
    for at in range(len(blob)):
        changed = blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]
        with pytest.raises(ValueError, match="Its certificate"):
            certificate(changed).require("board", 1e9)
    for broken in (b"", blob[:-1], blob + b"\0", b"\xff" * 100_000):
        with pytest.raises(ValueError, match="Its certificate"):
            certificate(broken)
