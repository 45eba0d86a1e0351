"""Host certificates of OpenSSH: who signed one, and whether it is valid for a host.

The format is that of OpenSSH's PROTOCOL.certkeys. The rules are those of `ssh`. A certificate without names is valid for no
host, as in OpenSSH since 10.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import paramiko

from edgeprune.devices.transports.ssh.settings import fits
from edgeprune.limits import LIMITS

SUFFIX = "-cert-v01@openssh.com"
HOST = 2  # the type of a host's certificate; 1 is a user's
# The kinds of keys, how many fields each has in a certificate, and the signatures that an authority may make with it.
FIELDS = {"ssh-ed25519": 1, "ssh-rsa": 2} | dict.fromkeys([f"ecdsa-sha2-nistp{size}" for size in (256, 384, 521)], 2)
SIGNATURES = {kind: (kind,) for kind in FIELDS} | {"ssh-rsa": ("rsa-sha2-256", "rsa-sha2-512")}  # no SHA-1


@dataclass(frozen=True)
class Certificate:
    """A certificate as it was sent. `authority` is the public key that signs it; `signed` is all but the signature."""

    kind: int
    names: tuple[str, ...]
    begins: int
    ends: int
    options: bytes
    authority: bytes
    signed: bytes
    signature: bytes

    def require(self, host: str, now: float) -> None:
        """Raises `ValueError` if it does not vouch for a host. Whether its authority is trusted is another question."""
        if not self._is_signed():  # first: until then anybody may have written the rest
            raise ValueError("Its certificate has a wrong signature")
        if self.kind != HOST:
            raise ValueError("Its certificate is that of a user")
        if not self.begins <= now < self.ends:
            raise ValueError(f"Its certificate is valid only from {_day(self.begins)} to {_day(self.ends)}")
        if not any(fits(host.lower(), name) for name in self.names):
            raise ValueError(f"Its certificate is not for the name {host}")
        if self.options:
            raise ValueError("Its certificate has critical options, and ssh knows none for hosts")

    def _is_signed(self) -> bool:
        try:
            kind, signature = _Reader(self.authority).text(), _Reader(self.signature)
            algorithm, _ = signature.text(), signature.string()  # paramiko would pad what is too short
            if algorithm not in SIGNATURES.get(kind, ()) or signature.rest:
                return False
            key = paramiko.PKey.from_type_string(kind, self.authority)
            return bool(key.verify_ssh_sig(self.signed, paramiko.Message(self.signature)))
        except (paramiko.SSHException, ValueError):
            return False


def certificate(blob: bytes) -> Certificate:
    """Read a certificate. Raises `ValueError` if it is broken or of an unknown kind."""
    if len(blob) > LIMITS.certificate_bytes:
        raise ValueError("Its certificate is too large")
    reader = _Reader(blob)
    fields = FIELDS.get(reader.text().removesuffix(SUFFIX))
    if fields is None:
        raise ValueError("Its certificate is of an unknown kind")
    for _ in range(1 + fields):  # a nonce, and the host's key
        reader.string()
    _, kind, _ = reader.number(8), reader.number(4), reader.string()  # serial number, type, identity
    names, begins, ends = _Reader(reader.string()), reader.number(8), reader.number(8)
    options, _, _ = reader.string(), reader.string(), reader.string()  # critical ones, extensions, reserved
    authority, signed = reader.string(), reader.done
    signature = reader.string()
    if reader.rest:
        raise ValueError("Its certificate is too long")
    listed = []
    while names.rest:
        listed.append(names.text().lower())
    return Certificate(kind, tuple(listed), begins, ends, options, authority, signed, signature)


class _Reader:
    """Reads the strings and numbers of SSH. Raises `ValueError` where the data ends before them."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "big")

    def string(self) -> bytes:
        return self._take(self.number(4))

    def text(self) -> str:
        return self.string().decode("utf-8", "replace")

    @property
    def done(self) -> bytes:
        return self._data[: self._at]

    @property
    def rest(self) -> bool:
        return self._at < len(self._data)

    def _take(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        if len(taken) < size:
            raise ValueError("Its certificate ends too early")
        self._at += size
        return taken


def _day(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return "the end of time"
