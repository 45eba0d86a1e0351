"""One SSH connection to a device: the agent there, and its files.

paramiko may wait forever when a peer vanishes. So nothing here waits without a timeout. A call that takes no timeout runs
under `_within`, which closes the connection when the time is up.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import paramiko

from edgeprune.devices import bundle, wire
from edgeprune.devices.transports.base import Conversation, Document, Refusal, hello, understood
from edgeprune.devices.transports.ssh.channel import AgentChannel
from edgeprune.devices.transports.ssh.config import local_user
from edgeprune.devices.transports.ssh.faults import FAULTS, translated
from edgeprune.devices.transports.ssh.login import login
from edgeprune.devices.transports.ssh.remote import FOLDERS, agent_command, agent_path
from edgeprune.devices.validate import printable
from edgeprune.errors import DeviceError, LinkError
from edgeprune.limits import LIMITS
from edgeprune.records import Host, Target

CHUNK = 1 << 15  # bytes of one SFTP write
Value = TypeVar("Value")
Reply = TypeVar("Reply")


class Connection:
    """A login at the device with a started agent. Every fault of the link is raised as `LinkError`."""

    def __init__(self, target: Target, host: Host) -> None:
        self._target = target
        self._clients: list[paramiko.SSHClient] = []
        self._channel: AgentChannel | None = None
        try:
            with translated(target, "cannot connect"):
                client = login(target, host, self._clients)
                self._sftp = self._within(client.open_sftp)
                self._sftp.get_channel().settimeout(LIMITS.silence_s)
                self.home = self._sftp.normalize(".")
                self._channel = self._start_agent(client, host)
        except BaseException:
            self.close()
            raise

    def greet(self, token: str) -> None:
        """Take the lease. Raises `BusyError` where another token holds it."""
        assert self._channel is not None
        who = f"{local_user() or 'somebody'}@{socket.gethostname()}"
        try:
            self._conversation = Conversation(self._channel, hello(who, token, LIMITS.host_silence_s), LIMITS.silence_s)
        except BaseException as error:
            if isinstance(error, LinkError):  # the agent's file may be damaged: the next try sends it again
                with suppress(*FAULTS, AttributeError):  # AttributeError: paramiko's own where the link just closed
                    self._sftp.remove(agent_path())
            self.close()
            raise

    def ask(self, jobs: Sequence[Document], deadline_s: float) -> Iterator[Document]:
        """Send jobs to the agent; yields its replies in order."""
        return self._conversation.ask(jobs, deadline_s)

    def order(self, job: wire.Job[Reply]) -> Reply:
        """The agent's reply to one job about files. Raises `Refusal` or `DeviceError` where the agent cannot do it."""
        (document,) = self._conversation.ask([wire.job_document(0, job)], job.deadline_s)
        try:
            return understood(self._target.name, job, 0, document)
        except Refusal as error:
            if error.kind != "disk-full":
                raise
            raise DeviceError(f"{self._target.name}: {error.message}. Free some space there.") from error

    # ------------------------------------------------------------------------------------------------------ files

    def upload(self, data: bytes, remote: str, partial: int) -> None:
        """Write a file, of which an earlier try left `partial` bytes. The agent checks all of it afterwards."""
        start = partial if 0 < partial <= len(data) else 0
        mode = "r+b" if start else "wb"
        with (
            translated(self._target, f"uploading {os.path.basename(remote)}"),
            self._sftp.open(remote, mode) as target,
        ):
            target.seek(start)
            target.set_pipelined(True)
            for at in range(start, len(data), CHUNK):
                target.write(data[at : at + CHUNK])

    def download(self, remote: str, path: Path) -> None:
        """Read a file of at most `LIMITS.output_bytes`."""
        with translated(self._target, f"downloading {os.path.basename(remote)}"):
            with self._sftp.open(remote, "rb") as source:
                source.prefetch(min(source.stat().st_size or 0, LIMITS.output_bytes))
                data = source.read(LIMITS.output_bytes + 1)
            if len(data) > LIMITS.output_bytes:
                raise DeviceError(f"{self._target.name} sends a file of over {LIMITS.output_bytes >> 20} MB")
            path.write_bytes(data)

    # -------------------------------------------------------------------------------------------- beginning and end

    def leave(self) -> None:
        """Let the agent end, so that the lease is free when this returns. It waits `LIMITS.end_s` at most."""
        if self._channel is not None:
            self._channel.leave()

    def close(self) -> None:
        """Close everything; it never waits for the peer."""
        if self._channel is not None:
            self._channel.close()
        for client in reversed(self._clients):
            transport = client.get_transport()
            if transport is not None:
                with suppress(OSError, EOFError):
                    transport.sock.close()
            client.close()

    def _start_agent(self, client: paramiko.SSHClient, host: Host) -> AgentChannel:
        """Start the agent; send its file first where it is missing."""
        remote = agent_path()
        try:
            present = self._sftp.stat(remote).st_size == len(bundle.agent())
        except FileNotFoundError:
            present = False
        if not present:
            self._send_agent(remote)
        channel = self._within(lambda: client.get_transport().open_session(timeout=LIMITS.connect_s))
        command = agent_command(host, f"{self.home}/{remote}")
        self._within(lambda: channel.exec_command(command))
        return AgentChannel(channel)

    def _send_agent(self, remote: str) -> None:
        try:
            for folder in FOLDERS:
                with suppress(OSError):
                    self._sftp.mkdir(folder, 0o700)
            part = f"{remote}.{secrets.token_hex(4)}.part"
            with self._sftp.open(part, "wb") as target:
                target.write(bundle.agent())
            with suppress(OSError):
                self._sftp.remove(remote)
            self._sftp.rename(part, remote)
        except (PermissionError, paramiko.SFTPError, FileNotFoundError) as error:
            raise self._not_writable(error) from error
        except OSError as error:
            if isinstance(error, TimeoutError) or error.errno is not None:
                raise
            raise self._not_writable(error) from error  # SFTP's plain "Failure"

    def _not_writable(self, error: Exception) -> DeviceError:
        return DeviceError(
            f"{self._target.name}: {printable(self.home)} on the device cannot be written ({printable(str(error))})."
            " Is it full or read-only? edgeprune needs a folder there."
        )

    def _within(self, work: Callable[[], Value], seconds: float = LIMITS.connect_s) -> Value:
        """Run a call that takes no timeout. Closes the connection when the time is up."""
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self.close()

        timer = threading.Timer(seconds, expire)
        timer.start()
        try:
            return work()
        except FAULTS as error:
            if expired.is_set():
                raise LinkError(f"the device did not answer within {seconds:g} s") from error
            raise
        finally:
            timer.cancel()
