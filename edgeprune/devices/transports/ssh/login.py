"""Log in at a device, through its jump hosts."""

from __future__ import annotations

import logging
import socket
from typing import Any

import paramiko

from edgeprune.devices.transports.ssh.channel import BEAT_S
from edgeprune.devices.transports.ssh.config import Server, servers
from edgeprune.devices.transports.ssh.host_keys import RefuseUnknown
from edgeprune.errors import DeviceError
from edgeprune.limits import LIMITS
from edgeprune.records import Host, Target

LOG = "edgeprune.paramiko"  # its records quote the peer, so they are shown only to users who ask for them
logging.getLogger(LOG).propagate = False
logging.getLogger(LOG).addHandler(logging.NullHandler())  # without a handler, Python would print warnings


def login(target: Target, host: Host, opened: list[paramiko.SSHClient]) -> paramiko.SSHClient:
    """Log in at the device.

    Args:
        target: for errors.
        host: the device.
        opened: every client is appended here before it connects, so that the caller can close them all.

    Returns:
        The client that is logged in at the device.
    """
    found = servers(target, host)
    client = None
    for server in found:
        client = _client(target, server, client, opened)
    assert client is not None
    return client


def _client(
    target: Target, server: Server, through: paramiko.SSHClient | None, opened: list[paramiko.SSHClient]
) -> paramiko.SSHClient:
    """A client that is logged in at one server."""
    client = paramiko.SSHClient()
    client.set_log_channel(LOG)
    opened.append(client)
    client.set_missing_host_key_policy(RefuseUnknown(target, server))
    if server.fingerprint is None:
        for file in server.known_hosts:
            if file.is_file():
                client.load_system_host_keys(str(file))
    client.connect(
        server.name,
        server.port,
        server.user,
        sock=_socket(server, through),
        key_filename=[str(path) for path in server.identities],
        look_for_keys=server.default_identities,
        timeout=LIMITS.connect_s,
        banner_timeout=LIMITS.connect_s,
        auth_timeout=LIMITS.connect_s,
        channel_timeout=LIMITS.connect_s,
    )
    transport = client.get_transport()
    assert transport is not None
    transport.set_keepalive(int(BEAT_S))
    return client


def _socket(server: Server, through: paramiko.SSHClient | None) -> Any:
    """A connection to the server, through the last jump host if there is one."""
    place = server.name, server.port
    if through is not None:
        transport = through.get_transport()
        assert transport is not None
        return transport.open_channel("direct-tcpip", place, ("127.0.0.1", 0), timeout=LIMITS.connect_s)
    try:
        connection = socket.create_connection(place, timeout=LIMITS.connect_s)
    except socket.gaierror as error:
        raise DeviceError(f"no such host: {server.name}. Fix [connect] host, or write the device's address.") from error
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # paramiko does not: 48 ms become 2.5
    return connection
