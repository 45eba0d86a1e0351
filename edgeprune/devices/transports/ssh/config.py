"""Which SSH servers to log in at: `[connect]` in the target's file, then `~/.ssh/config`, then ssh's defaults."""

from __future__ import annotations

import getpass
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko

from edgeprune.devices.validate import printable
from edgeprune.errors import SecurityError, UsageError
from edgeprune.limits import LIMITS
from edgeprune.records import Host, Target

SYSTEM_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")


@dataclass(frozen=True)
class Server:
    """One SSH server, and how to log in there.

    Attributes:
        name: the host name or address.
        user: the user there.
        port: the TCP port.
        identities: the files of private keys to try.
        default_identities: whether to try `~/.ssh/id_*` too.
        known_hosts: the files of known host keys; the user adds new keys to the first.
        fingerprint: the only accepted host key, if it is pinned.
    """

    name: str
    user: str
    port: int
    identities: tuple[Path, ...]
    default_identities: bool
    known_hosts: tuple[Path, ...]
    fingerprint: str | None


def servers(target: Target, host: Host) -> list[Server]:
    """The jump hosts in their order, then the device.

    Raises:
        UsageError: `~/.ssh/config` cannot be read or is not supported, or an identity is missing.
        SecurityError: others can read the identity, or a name looks like an option or a command.
    """
    config = _config()
    settings = config.lookup(host.name) if config else {}
    if "proxycommand" in settings:
        raise UsageError(f"~/.ssh/config: ProxyCommand of {host.name} is not supported. Write ProxyJump instead.")
    jumps = [jump for jump in settings.get("proxyjump", "").split(",") if jump and jump != "none"]
    if len(jumps) > LIMITS.jumps:
        raise UsageError(f"~/.ssh/config: {host.name} has over {LIMITS.jumps} jump hosts. Use fewer.")
    hops = [_jump(jump) for jump in jumps]
    found = [_server(target, hop, config.lookup(hop.name) if config else {}) for hop in hops]
    return [*found, _server(target, host, settings)]


def _config() -> paramiko.SSHConfig | None:
    path = Path("~/.ssh/config").expanduser()
    if not path.is_file():
        return None
    try:
        return paramiko.SSHConfig.from_path(str(path))
    except (paramiko.ConfigParseError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {printable(str(error))}") from error


def _jump(text: str) -> Host:
    """A jump host, written as [user@]name[:port]."""
    user, _, place = text.rpartition("@")
    name, _, port = place.partition(":")
    return Host(name, user or None, int(port) if port.isdigit() else None)


def _server(target: Target, host: Host, settings: Mapping[str, Any]) -> Server:
    """A host with what `~/.ssh/config` adds to it."""
    identities = [host.identity] if host.identity else [Path(path) for path in settings.get("identityfile", [])]
    expanded = [path.expanduser() for path in identities]
    if host.identity:
        _require_private(target, host.identity)
    return Server(
        name=_checked(str(settings.get("hostname", host.name)), "host", target),
        user=_checked(str(host.user or settings.get("user") or local_user()), "user", target),
        port=host.port or int(settings.get("port", 22)),
        identities=tuple(path for path in expanded if path.is_file()),
        default_identities=not identities,
        known_hosts=(host.known_hosts,) if host.known_hosts else _known_hosts(settings),
        fingerprint=host.fingerprint,
    )


def _require_private(target: Target, identity: Path) -> None:
    if not identity.is_file():
        raise UsageError(f"{target.path}: [connect] identity: no file {identity}. Make a key: ssh-keygen -t ed25519")
    if os.stat(identity).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SecurityError(f"{target.path}: others can read {identity}. Run: chmod 600 {identity}")


def _checked(value: str, what: str, target: Target) -> str:
    """A host or user name that no tool could take for an option or a command."""
    if value.startswith("-") or not value or not all(c.isalnum() or c in "._-:%@" for c in value):
        raise SecurityError(f"{target.path}: [connect] {what} = {printable(repr(value))} is not a {what} name. Fix it.")
    return value


def _known_hosts(settings: Mapping[str, Any]) -> tuple[Path, ...]:
    own = str(settings.get("userknownhostsfile", "~/.ssh/known_hosts")).split()
    return (*(Path(path).expanduser() for path in own), SYSTEM_KNOWN_HOSTS)


def local_user() -> str:
    """The name of this machine's user; empty where there is none, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
