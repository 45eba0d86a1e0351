"""paramiko's errors, and ours for them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager

import paramiko

from edgeprune.devices.transports.ssh.host_keys import fingerprint
from edgeprune.devices.transports.ssh.remote import address
from edgeprune.devices.validate import printable
from edgeprune.errors import DeviceError, LinkError, SecurityError
from edgeprune.records import Target

FAULTS = (paramiko.SSHException, OSError, EOFError)  # what a link raises; EOFError: the peer closed it


@contextmanager
def translated(target: Target, doing: str) -> Iterator[None]:
    """Raise paramiko's errors as ours. `doing` describes the step that failed."""
    try:
        yield
    except (paramiko.AuthenticationException, paramiko.PasswordRequiredException) as error:
        raise DeviceError(
            f"{target.path}: the device refuses this user or key. Try: ssh {address(target)}. Then name the key in [connect]"
            " identity, or add it to the SSH agent: ssh-add"
        ) from error
    except paramiko.BadHostKeyException as error:
        raise SecurityError(
            f"{target.path}: the host key has CHANGED: known is {fingerprint(error.expected_key)}, the device shows"
            f" {fingerprint(error.key)}. If the device was set up anew, remove the old line: ssh-keygen -R"
            f" {shlex.quote(error.hostname)}. Otherwise another machine may be answering in its place."
        ) from error
    except FAULTS as error:
        if is_failure(error):
            raise DeviceError(f"{target.name}: {doing}: the device cannot write. Is its disk full?") from error
        if isinstance(error, FileNotFoundError | PermissionError):
            raise DeviceError(f"{target.name}: {doing}: {printable(str(error))}") from error
        raise LinkError(f"{doing}: {described(error)}") from error


def is_failure(error: BaseException) -> bool:
    """Whether it is SFTP's plain "Failure", which a server sends where it cannot write."""
    return isinstance(error, OSError) and error.errno is None and str(error) == "Failure"


def described(error: BaseException) -> str:
    """The error's message, printable; its class where it has no message."""
    return printable(str(error) or type(error).__name__)
