"""Ways to a device, by the name that `[connect] transport` gives."""

from __future__ import annotations

from edgeprune.devices.transports.base import Transport
from edgeprune.devices.transports.local import Local
from edgeprune.records import Target


def connect(target: Target, wait_s: float = 0.0) -> Transport:
    """The transport of a target; `wait_s` is how long to wait for a device that somebody else holds."""
    if target.transport == "local":
        return Local()
    from edgeprune.devices.transports.ssh import Ssh  # paramiko is an extra

    return Ssh(target, wait_s)


def commands(target: Target) -> list[str]:
    """What is done on the device at every connection, in words of the shell: for `--dry-run`."""
    if target.transport == "local":
        return ["this machine is the device: nothing is sent"]
    from edgeprune.devices.transports import ssh

    return ssh.commands(target)
