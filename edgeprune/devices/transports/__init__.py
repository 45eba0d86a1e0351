"""Ways to a device, by the name that `[connect] transport` gives."""

from __future__ import annotations

from edgeprune.devices.transports.base import Transport
from edgeprune.devices.transports.local import Local
from edgeprune.errors import RuntimeMissing
from edgeprune.records import Target


def connect(target: Target, wait_s: float = 0.0) -> Transport:
    """The transport of a target; `wait_s` is how long to wait for a device that another host holds."""
    if target.transport == "local":
        return Local()
    _require_paramiko()
    from edgeprune.devices.transports.ssh import Ssh

    return Ssh(target, wait_s)


def commands(target: Target) -> list[str]:
    """The shell commands of every connection to the device: for `--dry-run`."""
    if target.transport == "local":
        return ["this machine is the device: nothing is sent"]
    _require_paramiko()
    from edgeprune.devices.transports import ssh

    return ssh.commands(target)


def _require_paramiko() -> None:
    """Raises `RuntimeMissing` where the extra of the SSH transport is not installed."""
    try:
        import paramiko  # noqa: F401
    except ImportError as error:
        raise RuntimeMissing("paramiko is not installed. Run: pip install 'edgeprune[remote]'") from error
