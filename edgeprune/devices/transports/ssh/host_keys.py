"""known_hosts as OpenSSH reads it, and the verdict on a host key: only a known or a pinned one is accepted."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import paramiko

from edgeprune.devices.transports.ssh.config import PORT, Server
from edgeprune.devices.transports.ssh.settings import listed
from edgeprune.errors import SecurityError, UsageError
from edgeprune.limits import LIMITS
from edgeprune.records import Target

MARKERS = ("", "@revoked", "@cert-authority")


@dataclass(frozen=True)
class Known:
    """A line of known_hosts. `blob` is the public key, and `place` the file and the line."""

    marker: str
    hosts: str
    kind: str
    blob: bytes
    file: Path
    number: int

    def names(self, name: str) -> bool:
        """Whether the line is about a host."""
        name = name.lower()
        if not self.hosts.startswith("|1|"):
            return listed(name, self.hosts.lower().split(","))
        try:
            salt, digest = (base64.b64decode(part, validate=True) for part in self.hosts[3:].split("|"))
        except ValueError:
            return False
        return hmac.compare_digest(hmac.new(salt, name.encode(), "sha1").digest(), digest)

    @property
    def place(self) -> str:
        """The file and the line."""
        return f"{self.file}:{self.number}"


def known_in(file: Path) -> Iterator[Known]:
    """The lines of a known_hosts file. As in ssh, a line that is broken is skipped. It may be no UTF-8."""
    try:
        with open(file, "rb") as stream:
            data = stream.read(LIMITS.known_hosts_bytes + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from error
    if len(data) > LIMITS.known_hosts_bytes:
        raise UsageError(f"{file}: is larger than {LIMITS.known_hosts_bytes >> 20} MB; remove old lines: ssh-keygen -R")
    for number, line in enumerate(data.split(b"\n"), 1):
        words = line.decode("utf-8", "replace").split()
        marker = words.pop(0) if words and words[0].startswith("@") else ""
        if marker not in MARKERS or len(words) < 3 or words[0].startswith("#"):
            continue
        try:
            blob = base64.b64decode(words[2], validate=True)
        except (binascii.Error, ValueError):
            continue
        if blob[4 : 4 + int.from_bytes(blob[:4], "big")] == words[1].encode():
            yield Known(marker, words[0], words[1], blob, file, number)


def known_keys(server: Server) -> list[Known]:
    """The lines about a server, of all its files."""
    return [line for file in server.known_hosts for line in known_in(file) if line.names(server.key_name)]


def known_at_usual_port(server: Server) -> list[Known]:
    """The lines about the same name at port 22: ssh accepts these keys at other ports too."""
    names = [] if server.alias or server.port == PORT else [server.name]
    return [line for file in server.known_hosts for name in names for line in known_in(file) if line.names(name)]


def fingerprint(blob: bytes) -> str:
    """As OpenSSH prints it: SHA256 and the digest in base64 without padding."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def algorithms(known: Iterable[Known], all_of_them: Iterable[str]) -> list[str]:
    """The algorithms of host keys, with those of known keys first: a server may have several keys."""
    kinds = {line.kind for line in known if not line.marker}
    first = [name for name in all_of_them if name in kinds or ("ssh-rsa" in kinds and name.startswith("rsa-sha2-"))]
    return [*first, *(name for name in all_of_them if name not in first)]


class Verdict(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
    """Accepts a known or a pinned host key. Every other key is refused, with what makes it known."""

    def __init__(self, target: Target, server: Server) -> None:
        self._target, self._server = target, server
        self.known = [] if server.fingerprint else known_keys(server)

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        """paramiko calls this for every key, since it knows none itself."""
        blob = key.asbytes()
        if self._server.fingerprint:
            self._require_pinned(fingerprint(blob))
            return
        same = [line for line in (self.known or known_at_usual_port(self._server)) if line.blob == blob]
        revoked = [line for line in same if line.marker == "@revoked"]
        if revoked:
            raise SecurityError(
                f"{self._target.path}: the host key of {self._server.key_name} is revoked in {revoked[0].place}:"
                f" {fingerprint(blob)}. Give the device a new key, or ask who revoked it."
            )
        if any(not line.marker for line in same):
            return
        plain = [line for line in self.known if not line.marker]
        kin = [line for line in plain if line.kind == key.get_name()] or plain
        raise self._changed(kin[0], blob) if kin else self._unknown(key)

    def _require_pinned(self, shown: str) -> None:
        pinned = self._server.fingerprint
        if pinned != shown:
            raise SecurityError(
                f"{self._target.path}: the host key has CHANGED: [connect] fingerprint is {pinned}, the device shows {shown}."
                " If the device was set up anew, pin the new one. Otherwise another machine may be answering in its place."
            )

    def _changed(self, line: Known, blob: bytes) -> SecurityError:
        remove = shlex.join(["ssh-keygen", "-f", str(line.file), "-R", self._server.key_name])
        return SecurityError(
            f"{self._target.path}: the host key has CHANGED: known is {fingerprint(line.blob)} ({line.place}), the device"
            f" shows {fingerprint(blob)}. If the device was set up anew, remove the old line: {remove}. Otherwise another"
            " machine may be answering in its place."
        )

    def _unknown(self, key: paramiko.PKey) -> SecurityError:
        name, files = self._server.key_name, self._server.known_hosts
        authority = [line.place for line in self.known if line.marker == "@cert-authority"]
        why = (
            f" {authority[0]} names an authority for it, and edgeprune checks no host certificates."
            if authority
            else ""
        )
        where = f"add this line to {files[0]}" if files else "name a file in [connect] known_hosts with this line"
        return SecurityError(
            f"{self._target.path}: the host key of {name} is not known: {fingerprint(key.asbytes())}.{why} Compare it with the"
            " device's own console: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub. If they are equal,"
            f" {where}: {name} {key.get_name()} {key.get_base64()}"
        )
