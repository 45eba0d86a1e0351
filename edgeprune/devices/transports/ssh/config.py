"""Which SSH servers to log in at: `[connect]` in the target's file, then ssh's configuration, then ssh's defaults."""

from __future__ import annotations

import getpass
import hashlib
import os
import re
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgeprune.devices.transports.ssh.settings import Asked, Settings, Value, at_home, expanded, settings
from edgeprune.devices.validate import printable
from edgeprune.errors import SecurityError, UsageError
from edgeprune.limits import LIMITS
from edgeprune.records import Host, Target

SYSTEM_KNOWN_HOSTS = "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"
OWN_KNOWN_HOSTS = "~/.ssh/known_hosts ~/.ssh/known_hosts2"
DEFAULT_KEYS = ("id_rsa", "id_ecdsa", "id_ed25519")
PORT = 22
PUBLIC = ".pub"
# [user@]host[:port], where an IPv6 address with a port is in brackets. It may be a URI: ssh://…
PLACE = re.compile(r"(?:ssh://)?(?:(.*)@)?(?:\[([^\]]*)\](?::(\d+))?|([^:/]*):(\d+)|([^/]*))/?")
FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}


@dataclass(frozen=True)
class Server:
    """One SSH server, and how to log in there.

    Attributes:
        asked: the host as the target file or a ProxyJump names it; commands for the user do too.
        name: the host name or address.
        user: the user there.
        port: the TCP port.
        identities: the files of keys to try: private ones, or public ones of keys that the SSH agent holds.
        identities_only: whether to try no other keys of the SSH agent.
        agent: the socket of the SSH agent; None for that of the environment, empty for no agent.
        known_hosts: the files of known host keys; the user adds new keys to the first.
        alias: the name of its key in these files, if that is not its own (HostKeyAlias).
        fingerprint: the only accepted host key, if it is pinned.
        family: of the addresses to try; any by default.
        bind: the address of this machine to connect from.
    """

    asked: Host
    name: str
    user: str
    port: int
    identities: tuple[Path, ...]
    identities_only: bool
    agent: str | None
    known_hosts: tuple[Path, ...]
    alias: str = ""
    fingerprint: str | None = None
    family: int = socket.AF_UNSPEC
    bind: str = ""

    @property
    def key_name(self) -> str:
        """The name of its key in known_hosts."""
        return self.alias or (self.name if self.port == PORT else f"[{self.name}]:{self.port}")


def parsed(host: Host) -> Host:
    """A host whose name may hold a user and a port, as ssh takes them: `user@host`, `[::1]:2222`, `ssh://user@host:2222`."""
    match = PLACE.fullmatch(host.name)
    if match is None:
        return host  # no name: it is refused when it is checked
    user, inside, inside_port, outside, outside_port, whole = match.groups()
    name, port = inside or outside or whole or "", inside_port or outside_port
    return replace(host, name=name, user=host.user or user or None, port=host.port or (int(port) if port else None))


def servers(target: Target, host: Host) -> list[Server]:
    """The jump hosts in their order, then the device.

    Raises:
        UsageError: ssh's configuration cannot be read or is not supported, or an identity is missing.
        SecurityError: others can read the identity, or a name looks like an option or a command.
    """
    found: list[Server] = []
    jumps: Sequence[str] | None = None
    while True:
        host = parsed(host)
        own = settings(_asked(target, host), Path.home())
        found.insert(0, _server(target, host, own))
        # The hosts before the last one of a list are given to it; the first one follows its own configuration.
        jumps = jumps or [_expanded_jump(jump, found[0]) for jump in _jumps(own)]
        if not jumps:
            return found
        if len(found) > LIMITS.jumps:
            raise UsageError(
                f"~/.ssh/config: {printable(found[-1].name)} has over {LIMITS.jumps} jump hosts. Use fewer. Does a jump host"
                " jump through itself? Give it: ProxyJump none"
            )
        host, jumps = Host(jumps[-1]), jumps[:-1]


def _jumps(own: Settings) -> list[str]:
    for value in own.every("proxy"):
        if value.text == "proxycommand":
            if [word.lower() for word in value.words[1:]] == ["none"]:
                return []
            raise UsageError(
                f"{value.place}: ProxyCommand of {printable(own.host)} is not supported: it runs a program. Write ProxyJump"
                " instead."
            )
        jumps = [jump.strip() for word in value.words for jump in word.split(",") if jump.strip()]
        return [] if [jump.lower() for jump in jumps] == ["none"] else jumps
    return []


def _expanded_jump(jump: str, server: Server) -> str:
    """A jump host with the tokens of ProxyJump replaced. Another `%` may begin the zone of an IPv6 address."""
    tokens = {"h": server.name, "n": server.asked.name, "p": str(server.port), "r": server.user, "%": "%"}
    return re.sub(r"%([hnpr%])", lambda match: tokens[match[1]], jump)


def _asked(target: Target, host: Host) -> Asked:
    _checked(host.name, "host", target)
    given = {"user": host.user, "port": None if host.port is None else str(host.port)}
    known = {name: text for name, text in given.items() if text}
    return Asked(host.name, local_user(), local_user(), known, str(target.path))


def _server(target: Target, host: Host, own: Settings) -> Server:
    """A host with what ssh's configuration adds to it."""
    if host.identity:
        _require_private(target, host.identity)
    name = _checked(own.hostname(), "host", target)
    user = _checked(own.first("user", local_user()), "user", target)
    port = own.first("port", str(PORT))
    if not port.isdigit() or not 0 < int(port) < 1 << 16:
        place = own.every("port")[0].place
        raise UsageError(f"{place}: Port {printable(port)} of {printable(host.name)} is not a port. Write 1 to 65535.")
    tokens = _tokens(own, name, user, port)
    return Server(
        asked=host,
        name=name,
        user=user,
        port=int(port),
        identities=_identities(host, own, tokens),
        identities_only=own.flag("identitiesonly"),
        agent=_agent(own, tokens),
        known_hosts=(host.known_hosts,) if host.known_hosts else _known_hosts(own, tokens),
        alias=own.first("hostkeyalias"),
        fingerprint=host.fingerprint,
        family=FAMILIES.get(own.first("addressfamily").lower(), socket.AF_UNSPEC),
        bind=own.first("bindaddress"),
    )


def _tokens(own: Settings, name: str, user: str, port: str) -> dict[str, str]:
    """What stands for `%` and a letter in paths."""
    here = socket.gethostname()
    jump = ",".join(word for value in own.every("proxy") for word in value.words)
    connection = hashlib.sha1(f"{here}{name}{port}{user}{jump}".encode(), usedforsecurity=False).hexdigest()
    return {
        "C": connection, "d": str(Path.home()), "h": name, "i": str(os.getuid()), "j": jump, "L": here.partition(".")[0],
        "k": own.first("hostkeyalias", own.asked), "l": here, "n": own.asked, "p": port, "r": user, "u": local_user(),
    }  # fmt: skip


def _identities(host: Host, own: Settings, tokens: dict[str, str]) -> tuple[Path, ...]:
    if host.identity:
        return (host.identity,)
    home = Path.home()
    given = own.every("identityfile")
    named = [at_home(expanded(value, tokens), home) for value in given if value.text.lower() != "none"]
    paths = [Path(path) for path in named] if given else [home / ".ssh" / name for name in DEFAULT_KEYS]
    return tuple(path for path in paths if path.is_file() or public_of(path).is_file())


def public_of(identity: Path) -> Path:
    """The file of an identity's public key. The identity may be this file itself, if an SSH agent holds the private key."""
    return identity if identity.suffix == PUBLIC else identity.with_name(identity.name + PUBLIC)


def _agent(own: Settings, tokens: dict[str, str]) -> str | None:
    for value in own.every("identityagent"):
        if value.text in ("none", "SSH_AUTH_SOCK"):
            return "" if value.text == "none" else None
        if value.text.startswith("$") and not value.text.startswith("${"):
            return os.environ.get(value.text[1:], "")
        return at_home(expanded(value, tokens), Path.home())
    return None


def _known_hosts(own: Settings, tokens: dict[str, str]) -> tuple[Path, ...]:
    found: list[str] = []
    for name, default in (("userknownhostsfile", OWN_KNOWN_HOSTS), ("globalknownhostsfile", SYSTEM_KNOWN_HOSTS)):
        value = own.every(name)[0] if name in own.found else Value(tuple(default.split()), "")
        found += [expanded(value, tokens, word) for word in value.words if word.lower() not in ("none", os.devnull)]
    return tuple(Path(at_home(path, Path.home())) for path in found)


def _require_private(target: Target, identity: Path) -> None:
    if not identity.is_file():
        raise UsageError(f"{target.path}: [connect] identity: no file {identity}. Make a key: ssh-keygen -t ed25519")
    if identity.suffix != PUBLIC and os.stat(identity).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SecurityError(f"{target.path}: others can read {identity}. Run: chmod 600 {identity}")


def _checked(value: str, what: str, target: Target) -> str:
    """A host or user name that no tool could take for an option or a command."""
    if value.startswith("-") or not value or not all(c.isalnum() or c in "._-:%@" for c in value):
        raise SecurityError(f"{target.path}: [connect] {what} = {printable(repr(value))} is not a {what} name. Fix it.")
    return value


def local_user() -> str:
    """The name of this machine's user; empty where there is none, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
