"""Log in at a device, through its jump hosts."""

from __future__ import annotations

import logging
import socket
from typing import Any

import paramiko

from edgeprune.devices.transports.ssh.channel import BEAT_S
from edgeprune.devices.transports.ssh.config import Server, servers
from edgeprune.devices.transports.ssh.faults import FAULTS, not_forwarded, not_spoken, unreachable
from edgeprune.devices.transports.ssh.host_keys import Verdict, algorithms
from edgeprune.devices.transports.ssh.keys import Keys
from edgeprune.limits import LIMITS
from edgeprune.records import Host, Target

LOG = "edgeprune.paramiko"  # its records quote the peer, so they are shown only to users who ask for them
logging.getLogger(LOG).propagate = False
logging.getLogger(LOG).addHandler(logging.NullHandler())  # without a handler, Python would print warnings


class _Transport(paramiko.Transport):  # type: ignore[misc]
    """Asks for the kinds of host keys that are wanted. paramiko would add a certificate of each, and prefer it to none."""

    preferred_keys: tuple[str, ...] = ()


def login(target: Target, host: Host, opened: list[paramiko.SSHClient]) -> paramiko.SSHClient:
    """Log in at the device.

    Args:
        target: for errors.
        host: the device.
        opened: every client is appended here before it connects, so that the caller can close them all.

    Returns:
        The client that is logged in at the device.
    """
    gate: tuple[Server, paramiko.SSHClient] | None = None
    for server in servers(target, host):
        gate = server, _client(target, server, _socket(server, gate), opened)
    assert gate is not None
    return gate[1]


def _client(target: Target, server: Server, sock: Any, opened: list[paramiko.SSHClient]) -> paramiko.SSHClient:
    """A client that is logged in at one server."""
    client = paramiko.SSHClient()
    client.set_log_channel(LOG)
    opened.append(client)
    verdict = Verdict(target, server)
    client.set_missing_host_key_policy(verdict)

    def transport(*arguments: Any, **options: Any) -> paramiko.Transport:
        made = _Transport(*arguments, **options)
        made.preferred_keys = tuple(algorithms(verdict.known, made.get_security_options().key_types))
        return made

    try:
        client.connect(
            server.name,
            server.port,
            server.user,
            sock=sock,
            auth_strategy=Keys(target, server),
            transport_factory=transport,
            timeout=LIMITS.connect_s,
            banner_timeout=LIMITS.connect_s,
            auth_timeout=LIMITS.connect_s,
            channel_timeout=LIMITS.connect_s,
        )
    except FAULTS as error:
        raise not_spoken(_place(server), error) from error
    opened_transport = client.get_transport()
    assert opened_transport is not None
    opened_transport.set_keepalive(int(BEAT_S))
    return client


def _socket(server: Server, gate: tuple[Server, paramiko.SSHClient] | None) -> Any:
    """A connection to the server, through the last jump host if there is one."""
    if gate is None:
        return _connected(server)
    transport = gate[1].get_transport()
    assert transport is not None
    try:
        place = server.name, server.port
        return transport.open_channel("direct-tcpip", place, ("127.0.0.1", 0), timeout=LIMITS.connect_s)
    except paramiko.ChannelException as error:
        raise not_forwarded(_place(gate[0]), _place(server), error) from error


def _connected(server: Server) -> socket.socket:
    """A connection to the first address of the server that answers."""
    fault: OSError = TimeoutError()
    try:
        addresses = socket.getaddrinfo(server.name, server.port, server.family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that no DNS can hold
        raise unreachable(_place(server), socket.gaierror(str(error))) from error
    for family, kind, protocol, _, address in addresses:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(LIMITS.connect_s)
            if server.bind:
                connection.bind((server.bind, 0))
            connection.connect(address)
        except OSError as error:
            connection.close()
            fault = error
            continue
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # paramiko does not: 48 ms become 2.5
        return connection
    raise unreachable(_place(server), fault) from fault


def _place(server: Server) -> str:
    return f"{server.name} port {server.port}"
