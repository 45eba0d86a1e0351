"""Host keys: only a known or a pinned one is accepted."""

from __future__ import annotations

import base64
import hashlib

import paramiko

from edgeprune.devices.transports.ssh.config import Server
from edgeprune.errors import SecurityError
from edgeprune.records import Target


def fingerprint(key: paramiko.PKey) -> str:
    """As OpenSSH prints it: SHA256 and the digest in base64 without padding."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")


class RefuseUnknown(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
    """Refuses an unknown host key, with the line that makes it known. A pinned fingerprint must be that of the key."""

    def __init__(self, target: Target, server: Server) -> None:
        self._target, self._server = target, server

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        """Accept the pinned key; refuse every other one."""
        pinned, shown = self._server.fingerprint, fingerprint(key)
        if pinned is None:
            raise SecurityError(
                f"{self._target.path}: the host key of {hostname} is not known: {shown}. Compare it with the device's own"
                " console: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub. If they are equal, add this line to"
                f" {self._server.known_hosts[0]}: {hostname} {key.get_name()} {key.get_base64()}"
            )
        if pinned != shown:
            raise SecurityError(
                f"{self._target.path}: the host key has CHANGED: [connect] fingerprint is {pinned}, the device shows {shown}."
                " If the device was set up anew, pin the new one. Otherwise another machine may be answering in its place."
            )
