"""A device over SSH. Only this package imports paramiko, which the extra `remote` installs."""

from __future__ import annotations

from edgeprune.devices.transports.ssh.remote import commands
from edgeprune.devices.transports.ssh.transport import Ssh

__all__ = ["Ssh", "commands"]
