"""known_hosts as OpenSSH reads it, and the verdict on a host key: only a known or a pinned one is accepted."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import shlex
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import paramiko

from edgeprune.devices.transports.ssh.certificates import SUFFIX, certificate
from edgeprune.devices.transports.ssh.config import PORT, Server
from edgeprune.devices.transports.ssh.settings import listed
from edgeprune.errors import SecurityError, UsageError
from edgeprune.limits import LIMITS
from edgeprune.records import Target

AUTHORITY, REVOKED = "@cert-authority", "@revoked"
MARKERS = ("", REVOKED, AUTHORITY)
SYSTEM = "/etc"  # whose files only root can change


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
    """The algorithms of host keys, with those of known keys first: a server may have several keys.

    Certificates come before all of them where an authority is known, and are not asked for elsewhere.
    """
    all_of_them, known = list(all_of_them), list(known)
    certificates = [name + SUFFIX for name in all_of_them if any(line.marker == AUTHORITY for line in known)]
    kinds = {line.kind for line in known if not line.marker}
    first = [name for name in all_of_them if name in kinds or ("ssh-rsa" in kinds and name.startswith("rsa-sha2-"))]
    return [*certificates, *first, *(name for name in all_of_them if name not in first)]


class Verdict(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
    """Accepts a known, a certified or a pinned host key. Every other key is refused, with what makes it known."""

    def __init__(self, target: Target, server: Server) -> None:
        self._target, self._server = target, server
        pinned = server.fingerprint is not None
        self._own, self._usual = ([], []) if pinned else (known_keys(server), known_at_usual_port(server))

    @property
    def known(self) -> list[Known]:
        """The lines about the server. Lines about its port come before those about its name."""
        return self._own + self._usual

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        """paramiko calls this for every key, since it knows none itself. It has checked that the server holds the key."""
        blob = key.asbytes()  # without a certificate
        if self._server.fingerprint:
            self._require_pinned(fingerprint(blob))
            return
        self._refuse_revoked(blob, "host key")
        try:
            self._require_certified(key.public_blob.key_blob if key.public_blob else b"")
            return
        except ValueError as error:
            why = f" {error}." if str(error) else ""
        own, usual = ([line for line in lines if not line.marker] for lines in (self._own, self._usual))
        if any(line.blob == blob for line in own or usual):
            return
        kin = [line for line in own if line.kind == key.get_name()] or own
        raise self._changed(kin[0], blob, why) if kin else self._unknown(key, why)

    def _refuse_revoked(self, blob: bytes, what: str) -> None:
        for line in self.known:
            if line.marker == REVOKED and line.blob == blob:
                raise SecurityError(
                    f"{self._target.path}: the {what} of {self._server.key_name} is revoked in {line.place}:"
                    f" {fingerprint(blob)}. Give the device a new key, or ask who revoked it."
                )

    def _require_certified(self, shown: bytes) -> None:
        """Raises `ValueError` with the reason if no certificate vouches for the key. It is empty if none is expected."""
        lines = [line for line in self.known if line.marker == AUTHORITY]
        if not lines:
            raise ValueError
        if not shown:
            raise ValueError(f"{lines[0].place} names an authority for it, but the device shows no certificate")
        found = certificate(shown)
        self._refuse_revoked(found.authority, "authority")
        if not any(line.blob == found.authority for line in lines):
            raise ValueError(f"No @cert-authority line for it has the authority {fingerprint(found.authority)}")
        found.require(self._server.alias or self._server.name, time.time())

    def _require_pinned(self, shown: str) -> None:
        pinned = self._server.fingerprint
        if pinned != shown:
            raise SecurityError(
                f"{self._target.path}: the host key has CHANGED: [connect] fingerprint is {pinned}, the device shows {shown}."
                " If the device was set up anew, pin the new one. Otherwise another machine may be answering in its place."
            )

    def _changed(self, line: Known, blob: bytes, why: str) -> SecurityError:
        remove = shlex.join(["ssh-keygen", "-f", str(line.file), "-R", self._server.key_name])
        return SecurityError(
            f"{self._target.path}: the host key has CHANGED: known is {fingerprint(line.blob)} ({line.place}), the device"
            f" shows {fingerprint(blob)}.{why} If the device was set up anew, remove the old line: {remove}. Otherwise another"
            " machine may be answering in its place."
        )

    def _unknown(self, key: paramiko.PKey, why: str) -> SecurityError:
        name = self._server.key_name
        files = [file for file in self._server.known_hosts if not file.is_relative_to(SYSTEM)]  # of the user
        where = f"add this line to {files[0]}" if files else "name a file in [connect] known_hosts with this line"
        return SecurityError(
            f"{self._target.path}: the host key of {name} is not known: {fingerprint(key.asbytes())}.{why} Compare it"
            " with the device's own console: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub. If they are equal,"
            f" {where}: {name} {key.get_name()} {key.get_base64()}"
        )
