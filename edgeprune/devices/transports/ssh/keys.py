"""The user's keys: those of files, then those of the SSH agent; and why a server refuses them."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import paramiko

from edgeprune.devices.transports.ssh.config import Server, public_of
from edgeprune.devices.transports.ssh.remote import typed
from edgeprune.devices.validate import printable
from edgeprune.errors import DeviceError
from edgeprune.limits import LIMITS
from edgeprune.records import Target


class Keys:
    """Logs in with the user's keys. paramiko calls `authenticate` (its `AuthStrategy`)."""

    def __init__(self, target: Target, server: Server) -> None:
        self._target, self._server = target, server
        self._tried: list[str] = []
        self._locked: list[Path] = []  # files whose passphrase is not known
        self._touched: list[Path] = []  # security keys
        self._public_only: list[Path] = []  # whose private keys are not here
        self._agent: _Agent | None = None

    def authenticate(self, transport: paramiko.Transport) -> None:
        """Log in. Raises `DeviceError` with what to do if no key is accepted."""
        user = self._server.user
        try:
            transport.auth_none(user)  # it also reports what the server accepts
            return
        except paramiko.BadAuthenticationType as error:
            allowed = list(error.allowed_types)
        try:
            for key in self._keys() if "publickey" in allowed else ():
                with suppress(paramiko.AuthenticationException):
                    further = transport.auth_publickey(user, key)
                    if not further:
                        return
                    raise self._refused(
                        f"after the key, the device wants {', '.join(further)}, which edgeprune cannot give"
                    )
                if not transport.is_active():
                    raise self._refused(
                        f"the device hangs up after {len(self._tried)} keys. Name one: [connect] identity"
                    )
        finally:
            if self._agent is not None:
                self._agent.close()
        raise self._failed(allowed)

    def _keys(self) -> Iterator[paramiko.PKey]:
        wanted = set()
        for path in self._server.identities:
            wanted.add(_public(path))
            key = self._loaded(path)
            if key is not None:
                self._tried.append(str(path))
                yield key
        for key in self._agent_keys():
            if not self._server.identities_only or key.asbytes() in wanted:
                self._tried.append(printable(f"{key.get_name()} of the SSH agent"))
                yield key

    def _loaded(self, path: Path) -> paramiko.PKey | None:
        if path == public_of(path) or not path.is_file():
            self._public_only.append(path)
            return None
        try:
            return paramiko.PKey.from_path(path)
        except (
            paramiko.PasswordRequiredException,
            TypeError,
        ):  # cryptography raises the latter for a missing passphrase
            self._locked.append(path)
        except (paramiko.UnknownKeyType, paramiko.SSHException, ValueError, OSError):
            if (_public(path) or b"")[4:7] == b"sk-":
                self._touched.append(path)
            else:
                self._tried.append(f"{path} (it cannot be read)")
        return None

    def _agent_keys(self) -> list[paramiko.PKey]:
        if self._server.agent == "":
            return []
        self._agent = _Agent(self._server.agent)
        return self._agent.keys()

    def _failed(self, allowed: list[str]) -> DeviceError:
        copy = typed(self._server.asked, "ssh-copy-id")
        if "publickey" not in allowed:
            ways = printable(", ".join(allowed)) or "nothing"
            return self._refused(
                f"the device accepts no key, only: {ways}. Set PubkeyAuthentication yes in its /etc/ssh/sshd_config."
                f" Then: {copy}"
            )
        if self._tried:
            tried = ", ".join(self._tried)
            return self._refused(
                f"the device refuses this user or key; tried: {tried}. Add the key there: {copy}. Or name another in [connect]"
                f" identity. To see why: {typed(self._server.asked)}"
            )
        if self._locked:
            return self._refused(
                f"{self._locked[0]} needs its passphrase. Give it to the SSH agent: ssh-add {self._locked[0]}"
            )
        if self._touched:
            return self._refused(
                f"{self._touched[0]} is a security key, and nobody touches it during a run. Make another key for this device:"
                f" ssh-keygen -t ed25519, then: {copy}"
            )
        if self._public_only:
            return self._refused(
                f"the SSH agent does not hold the private key of {self._public_only[0]}. Add it: ssh-add. Or name another"
                " key in [connect] identity"
            )
        return self._refused(f"this machine has no SSH key. Make one: ssh-keygen -t ed25519, then: {copy}")

    def _refused(self, text: str) -> DeviceError:
        return DeviceError(f"{self._target.path}: {self._server.user}@{self._server.name}: {text}")


class _Agent(paramiko.agent.AgentSSH):  # type: ignore[misc]
    """The SSH agent at a socket, or that of the environment."""

    def __init__(self, place: str | None) -> None:
        super().__init__()
        with suppress(paramiko.SSHException, OSError):
            connection = paramiko.agent.get_agent_connection() if place is None else self._at(place)
            if connection:
                self._connect(connection)

    @staticmethod
    def _at(place: str) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(LIMITS.connect_s)
        connection.connect(place)
        return connection

    def keys(self) -> list[paramiko.PKey]:
        """The keys that it offers."""
        return list(self.get_keys())

    def close(self) -> None:
        """Close its socket."""
        self._close()


def _public(path: Path) -> bytes | None:
    """The public key beside a private one."""
    try:
        with open(public_of(path), "rb") as file:
            return base64.b64decode(file.read(1 << 16).split()[1])
    except (OSError, ValueError, IndexError):
        return None
