"""One SSH connection to a device: the agent there, and its files.

paramiko may wait forever when a peer vanishes. So nothing here waits without a timeout. A call that takes no timeout runs
under `_within`, which closes the connection when the time is up.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import paramiko

from edgeprune.devices import bundle, wire
from edgeprune.devices.transports.base import Conversation, Document, Refusal, hello, slowness, understood
from edgeprune.devices.transports.ssh.channel import AgentChannel
from edgeprune.devices.transports.ssh.diagnosis import no_session, require_python, require_shell
from edgeprune.devices.transports.ssh.faults import FAULTS, translated
from edgeprune.devices.transports.ssh.files import Files, Sftp, Shell, run
from edgeprune.devices.transports.ssh.login import login
from edgeprune.devices.transports.ssh.remote import FOLDER, FOLDERS, agent_command, agent_path
from edgeprune.devices.validate import printable
from edgeprune.errors import DeviceError, LinkError
from edgeprune.limits import LIMITS
from edgeprune.records import Host, Target
from edgeprune.runtimes import machine

SHELL_WAITS = (
    "; the login shell of the user there, or a forced command (authorized_keys), may wait for input instead of running what it"
    " is given"
)
Value = TypeVar("Value")
Reply = TypeVar("Reply")


class Connection:
    """A login at the device with a started agent. Every fault of the link is raised as `LinkError`."""

    def __init__(self, target: Target, host: Host) -> None:
        self._target, self._host = target, host
        self._clients: list[paramiko.SSHClient] = []
        self._channel: AgentChannel | None = None
        try:
            with translated(target, "cannot connect"):
                self._client = login(target, host, self._clients)
                self._files = self._opened_files()
                self.home = self._files.home
                self._channel = self._start_agent()
        except BaseException:
            self.close()
            raise

    def greet(self, token: str) -> None:
        """Take the lease. Raises `BusyError` where another token holds it."""
        assert self._channel is not None
        try:
            self._conversation = Conversation(
                self._channel, hello(machine.whoami(), token, LIMITS.host_silence_s), LIMITS.silence_s
            )
        except LinkError as error:
            try:
                self._require_other_cause(error)
                with suppress(*FAULTS, AttributeError):  # AttributeError: paramiko's own where the link just closed
                    self._files.remove(agent_path())  # it may be damaged: the next try sends it again
            except LinkError:
                raise error from None
            finally:
                self.close()
            raise
        except DeviceError as error:
            self.close()
            raise DeviceError(f"{self._target.name}: {error}") from error
        except BaseException:
            self.close()
            raise

    def ask(self, jobs: Sequence[Document], deadline_s: float) -> Iterator[Document]:
        """Send jobs to the agent; yields its replies in order."""
        return self._conversation.ask(jobs, deadline_s)

    def order(self, job: wire.Job[Reply]) -> Reply:
        """The agent's reply to one job about files. Raises `Refusal` or `DeviceError` where the agent cannot do it."""
        deadline_s = job.deadline_s * slowness(self._target)
        (document,) = self._conversation.ask([wire.job_document(0, job)], deadline_s)
        try:
            return understood(self._target.name, job, 0, document)
        except Refusal as error:
            if error.kind != "disk-full":
                raise
            raise DeviceError(f"{self._target.name}: {error.message}. Free some space there.") from error

    # ------------------------------------------------------------------------------------------------------ files

    def upload(self, data: bytes, remote: str, partial: int) -> None:
        """Write a file, of which an earlier try left `partial` bytes. The agent checks all of it afterwards."""
        with translated(self._target, f"uploading {os.path.basename(remote)}"):
            self._files.write(remote, data, partial if partial <= len(data) else 0)

    def download(self, remote: str, path: Path) -> None:
        """Read a file of at most `LIMITS.output_bytes`."""
        with translated(self._target, f"downloading {os.path.basename(remote)}"):
            data = self._files.read(remote, LIMITS.output_bytes + 1)
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

    def _opened_files(self) -> Files:
        """SFTP; the shell where the server has no SFTP."""
        channel = self._session()
        try:
            return self._within(lambda: _sftp(channel), waiting=SHELL_WAITS)
        except FAULTS:
            channel.close()
            require_shell(self._target, self._host, self._client, clean=True)
            return Shell(self._client)

    def _session(self) -> paramiko.Channel:
        transport = self._client.get_transport()
        assert transport is not None
        try:
            return self._within(lambda: transport.open_session(timeout=LIMITS.connect_s))
        except paramiko.ChannelException as error:
            raise no_session(self._target) from error

    def _start_agent(self) -> AgentChannel:
        """Start the agent; send its file first where it is missing."""
        remote = agent_path()
        if self._files.size(remote) != len(bundle.agent()):
            self._send_agent(remote)
        channel = self._session()
        command = agent_command(self._host, f"{self.home}/{remote}")
        self._within(lambda: channel.exec_command(command))
        return AgentChannel(channel)

    def _require_other_cause(self, fault: LinkError) -> None:
        """Raises `DeviceError` if the shell or the Python of the device is why the agent ended."""
        if self._channel is None or not self._channel.ended():
            return  # it runs, or the link broke
        self._channel.close()
        require_shell(self._target, self._host, self._client, clean=False)
        require_python(self._target, self._host, self._client, fault)

    def _send_agent(self, remote: str) -> None:
        try:
            for folder in FOLDERS:
                self._files.make_folder(folder)
            part = f"{remote}.{secrets.token_hex(4)}.part"
            self._files.write(part, bundle.agent())
            self._files.rename(part, remote)
        except (PermissionError, paramiko.SFTPError, FileNotFoundError, DeviceError) as error:
            if isinstance(error, LinkError):
                raise
            raise self._not_writable(error) from error
        except OSError as error:
            if isinstance(error, TimeoutError) or error.errno is not None:
                raise
            raise self._not_writable(error) from error  # SFTP's plain "Failure"

    def _not_writable(self, error: Exception) -> DeviceError:
        """SFTP gives no reason: the shell does."""
        tried = run(self._client, f"touch {FOLDER}-probe && rm {FOLDER}-probe")
        reason = tried.reason if tried.status else printable(str(error))
        return DeviceError(
            f"{self._target.name}: {printable(self.home)} on the device cannot be written ({reason}). Is it full or read-only?"
            " edgeprune needs a folder there."
        )

    def _within(self, work: Callable[[], Value], seconds: float = LIMITS.connect_s, waiting: str = "") -> Value:
        """Run a call that takes no timeout. Closes the connection when the time is up. `waiting` may say why it is."""
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
                raise LinkError(f"the device did not answer within {seconds:g} s{waiting}") from error
            raise
        finally:
            timer.cancel()


def _sftp(channel: paramiko.Channel) -> Sftp:
    channel.settimeout(LIMITS.connect_s)
    channel.invoke_subsystem("sftp")
    return Sftp(paramiko.SFTPClient(channel))
