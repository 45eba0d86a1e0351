"""Ways to a device, by `[connect]` of the target file."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable

from edgeprune.devices.transports.base import Transport
from edgeprune.devices.transports.local import Local
from edgeprune.errors import RuntimeMissing
from edgeprune.records import Target

log = logging.getLogger("edgeprune")


def connect(target: Target, wait_s: float = 0.0, notice: Callable[[str], None] = log.warning) -> Transport:
    """The transport of a target.

    Args:
        wait_s: how long to wait for a device that another host holds, or in the queue of a farm.
        notice: gets what is waited for.
    """
    if target.host is None:
        return Local()
    require("paramiko", "remote")
    if target.host.place:
        require("labgrid", "farm")
        from edgeprune.devices.transports.farm import Borrowed

        return Borrowed(target, wait_s, notice)
    from edgeprune.devices.transports.ssh import Ssh

    return Ssh(target, wait_s)


def commands(target: Target) -> list[str]:
    """The shell commands of every connection to the device: for `--dry-run`."""
    if target.host is None:
        return ["this machine is the device: nothing is sent"]
    require("paramiko", "remote")
    if target.host.place:
        require("labgrid", "farm")
        from edgeprune.devices.transports import farm

        return farm.commands(target)
    from edgeprune.devices.transports import ssh

    return ssh.commands(target)


def require(package: str, extra: str) -> None:
    """Raises `RuntimeMissing` where the package of an extra is not installed."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise RuntimeMissing(f"{package} is not installed. Run: pip install 'edgeprune[{extra}]'") from error
