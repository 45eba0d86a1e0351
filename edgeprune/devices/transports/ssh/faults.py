"""paramiko's errors, and ours for them."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import paramiko

from edgeprune.devices.validate import printable
from edgeprune.errors import DeviceError, LinkError
from edgeprune.records import Target

# What a link raises. EOFError: the peer closed it.
FAULTS = (paramiko.SSHException, paramiko.SFTPError, OSError, EOFError)
FORBIDDEN = 1  # the reason of a channel that a server does not open (RFC 4254)


@contextmanager
def translated(target: Target, doing: str) -> Iterator[None]:
    """Raise paramiko's errors as ours. `doing` describes the step that failed."""
    try:
        yield
    except FAULTS as error:
        if is_failure(error):
            raise DeviceError(f"{target.name}: {doing}: the device cannot write. Is its disk full?") from error
        if isinstance(error, FileNotFoundError | PermissionError):
            raise DeviceError(f"{target.name}: {doing}: {printable(str(error))}") from error
        raise LinkError(f"{doing}: {described(error)}") from error


def unreachable(place: str, error: BaseException) -> DeviceError:
    """The error for a server that does not answer. `place` is its name and port."""
    if isinstance(error, socket.gaierror):
        return DeviceError(f"no such host: {place}. Fix [connect] host, or write the device's address.")
    if isinstance(error, ConnectionRefusedError):
        return LinkError(f"nothing listens at {place}; is the device on, its port right, and SSH enabled there?")
    if isinstance(error, TimeoutError) or getattr(error, "errno", None) in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return LinkError(f"{place} does not answer; is the device on, and its address right?")
    return LinkError(f"cannot connect to {place}: {described(error)}; is the device on, and its address right?")


def not_spoken(place: str, error: BaseException) -> DeviceError:
    """The error for a server that answers, and with which no SSH connection begins."""
    if isinstance(error, paramiko.ssh_exception.IncompatiblePeer):
        return DeviceError(
            f"{place} offers only algorithms that are too old: {described(error)}. Update its SSH server."
        )
    if "banner" in str(error) or isinstance(error, EOFError):
        return LinkError(
            f"{place} does not speak SSH, or closes the connection at once; is the device on, and its port right? Its"
            " SSH server may also block this machine (fail2ban, MaxStartups, hosts.deny)"
        )
    if "No existing session" in str(error):  # what paramiko says when its deadline for the handshake has passed
        return LinkError(
            f"{place} takes the connection, and the SSH handshake does not end; is the device on, and not busy?"
        )
    return LinkError(f"{place}: {described(error)}")


def not_forwarded(gate: str, place: str, error: paramiko.ChannelException) -> DeviceError:
    """The error for a jump host that does not connect to the next one."""
    if error.code == FORBIDDEN:
        return DeviceError(
            f"the jump host {gate} forbids connections to {place}. Set AllowTcpForwarding yes in its sshd_config."
        )
    return LinkError(f"the jump host {gate} cannot reach {place}; is the device on, and its address right?")


def is_failure(error: BaseException) -> bool:
    """Whether it is SFTP's plain "Failure", which a server sends where it cannot write."""
    return isinstance(error, OSError) and error.errno is None and str(error) == "Failure"


def described(error: BaseException) -> str:
    """The error's message, printable; its class where it has no message."""
    return printable(str(error) or type(error).__name__)
